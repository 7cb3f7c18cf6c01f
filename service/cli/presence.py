"""`tidewire presence`: counts the users in channels over the backend API."""

from __future__ import annotations

import argparse
import asyncio
import json

from service.cli import api, output
from service.cli.options import Commands, service_url


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
    key = api.find_key(args)
    if key is None:
        return 1
    text = asyncio.run(
        api.call("POST", f"{service_url(args)}/api/v1/presence/counts", key, {"channels": args.channels})
    )
    if text is None:
        return 1
    for one in json.loads(text)["counts"]:
        output.result(f"{one['count']}\t{one['channel']}")
    return 0
