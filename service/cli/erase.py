"""`tidewire erase`: takes back what a user has published, in all channels, over the backend API."""

from __future__ import annotations

import argparse

from service.cli import api
from service.cli.options import Commands


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "erase",
        help="take back what a user has published",
        description=f"Takes back what a user has published in all channels, over the backend API. {api.KEY_SOURCES}",
    )
    parser.add_argument("user", metavar="USER", help="user to erase, as in tokens")
    parser.add_argument("--cursor", help="where to continue, as an erasure that failed has printed it")
    api.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Erases the user, page by page, and prints the sums."""
    return api.run_call(args, lambda client: client.erase_user(args.user, cursor=args.cursor))
