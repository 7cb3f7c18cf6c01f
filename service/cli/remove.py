"""`tidewire remove`: takes back one durable event over the backend API."""

from __future__ import annotations

import argparse

from service.cli import api
from service.cli.options import Commands


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "remove",
        help="take back one event",
        description=f"Takes back one durable event, and tells subscribers, over the backend API. {api.KEY_SOURCES}",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel of the event, such as room:1")
    parser.add_argument("id", metavar="ID", help="id of the event")
    parser.add_argument(
        "--offset", type=int, help="offset of the event (default: that of the newest event with the id)"
    )
    api.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Takes back the event."""
    return api.run_call(args, lambda client: client.remove_event(args.channel, args.id, offset=args.offset))
