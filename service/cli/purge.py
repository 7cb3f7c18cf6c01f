"""`tidewire purge`: drops the history and the state of a channel over the backend API."""

from __future__ import annotations

import argparse
import asyncio
from urllib.parse import quote

from service.cli import api, output
from service.cli.options import Commands, service_url


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
    key = api.find_key(args)
    if key is None:
        return 1
    url = f"{service_url(args)}/api/v1/channels/{quote(args.channel, safe='')}/history"
    text = asyncio.run(api.call("DELETE", url, key))
    if text is None:
        return 1
    output.result(text)
    return 0
