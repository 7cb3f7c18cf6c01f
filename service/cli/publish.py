"""`tidewire publish`: publishes one event over the backend API, or removes a value."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from service.cli import api
from service.cli.options import Commands
from service.protocol.unique_keys import reject_duplicate_keys

_ABSENT = object()
"""The data of a removal. None is the data `null`."""


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "publish",
        help="publish one event, or remove a value",
        description=f"Publishes one event over the backend API, or removes a value of the state. {api.KEY_SOURCES}",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel of the event, such as room:1")
    parser.add_argument("type", metavar="TYPE", help="type of the event, such as chat.message")
    parser.add_argument(
        "data",
        type=_json,
        nargs="?",
        default=_ABSENT,
        metavar="DATA",
        help="data of the event, as JSON; none with --remove",
    )
    parser.add_argument("--id", help="id of the event; a repeated id is accepted once")
    parser.add_argument("--key", help="key of a latest event; must equal what the contract finds in DATA")
    parser.add_argument("--remove", action="store_true", help="remove the value of --key; the type must be removable")
    parser.add_argument(
        "--if-rev", type=int, metavar="REV", help="only if the value of the key has this rev; 0: only if there is none"
    )
    parser.add_argument("--from", dest="sender", metavar="USER", help="user on whose behalf the event is published")
    parser.add_argument(
        "--exclude", metavar="CONNECTION", help="connection of the user in --from that does not get the event"
    )
    api.add_arguments(parser)
    parser.set_defaults(run=partial(run, parser))


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Publishes the event, or removes the value."""
    if args.remove and (args.data is not _ABSENT or args.key is None):
        parser.error("--remove needs --key, and no DATA")
    if not args.remove and args.data is _ABSENT:
        parser.error("DATA is missing: the data of the event, as JSON")
    event = {
        "type": args.type,
        "id": args.id,
        "key": args.key,
        "if_rev": args.if_rev,
        "from": args.sender,
        "exclude": args.exclude,
    }
    event = {name: value for name, value in event.items() if value is not None}
    event |= {"removed": True} if args.remove else {"data": args.data}
    return api.run_call(args, "POST", f"channels/{api.path_segment(args.channel)}/events", event)


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
