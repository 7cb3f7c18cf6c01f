"""`tidewire publish`: publishes one event over the backend API, or removes a value."""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

import msgspec

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
    if args.remove and args.exclude is not None:
        parser.error("--remove goes to every subscriber: no --exclude")
    fields: dict[str, Any] = {"id": args.id, "if_rev": args.if_rev, "sender": args.sender}
    if args.remove:
        return api.run_call(args, lambda client: client.remove_value(args.channel, args.type, args.key, **fields))
    fields |= {"key": args.key, "exclude": args.exclude}
    return api.run_call(args, lambda client: client.publish(args.channel, args.type, args.data, **fields))


def _json(text: str) -> Any:
    """Checks JSON, and returns it as it is written."""
    try:
        json.loads(text, object_pairs_hook=reject_duplicate_keys, parse_constant=_refuse_constant)
        return msgspec.Raw(text.encode())
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
