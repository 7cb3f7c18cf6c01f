"""`tidewire publish`: publishes one event over the backend API."""

from __future__ import annotations

import argparse
import json
from typing import Any

from service.cli import api
from service.cli.options import Commands
from service.protocol.unique_keys import reject_duplicate_keys


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "publish",
        help="publish one event",
        description=f"Publishes one event over the backend API. {api.KEY_SOURCES}",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel of the event, such as room:1")
    parser.add_argument("type", metavar="TYPE", help="type of the event, such as chat.message")
    parser.add_argument("data", type=_json, metavar="DATA", help="data of the event, as JSON")
    parser.add_argument("--id", help="id of the event; a repeated id is accepted once")
    parser.add_argument("--key", help="key of a latest event; must equal what the contract finds in DATA")
    api.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Publishes the event."""
    event = {"type": args.type, "data": args.data, "id": args.id, "key": args.key}
    event = {name: value for name, value in event.items() if value is not None or name == "data"}
    return api.run_call(args, "POST", f"channels/{api.path_segment(args.channel)}/events", event)


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
