"""`tidewire purge`: drops the history and the state of a channel over the backend API."""

from __future__ import annotations

import argparse

from service.cli import api
from service.cli.options import Commands


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "purge",
        help="drop a channel's history and state",
        description=f"Drops the history and the state of a channel, over the backend API. {api.KEY_SOURCES}",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel to purge, such as room:1")
    api.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Purges the channel."""
    return api.run_call(args, lambda client: client.purge(args.channel))
