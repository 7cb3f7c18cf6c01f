"""`tidewire presence`: counts the users in channels over the backend API."""

from __future__ import annotations

import argparse

from service.cli import api, output
from service.cli.options import Commands


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "presence",
        help="count the users in channels",
        description=f"Prints the number of users in each channel, over the backend API. {api.KEY_SOURCES}",
    )
    parser.add_argument("channels", nargs="+", metavar="CHANNEL", help="channel, such as room:1; at most 1000")
    api.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints a line for each channel: the number of its users, and its name."""
    return api.run_call(args, lambda client: client.presence_counts(args.channels), _show)


def _show(counts: dict[str, int]) -> None:
    for channel, count in counts.items():
        output.result(f"{count}\t{channel}")
