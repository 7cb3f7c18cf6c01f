"""`tidewire erase`: takes back what a user has published, in all channels, over the backend API."""

from __future__ import annotations

import argparse
import asyncio
import json

from service.cli import api, output
from service.cli.options import Commands, service_url


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
    key = api.find_key(args)
    return 1 if key is None else asyncio.run(_erase(service_url(args), args.user, key, args.cursor))


async def _erase(service: str, user: str, key: str, cursor: str | None) -> int:
    sums = {"removed": 0, "channels": 0}
    while True:
        query = "" if cursor is None else f"?cursor={api.path_segment(cursor)}"
        text = await api.call("DELETE", f"{service}/api/v1/users/{api.path_segment(user)}{query}", key)
        if text is None:
            if cursor is not None:
                output.note(f"tidewire: continue with --cursor '{cursor}'")
            return 1
        page = json.loads(text)
        sums = {name: number + page[name] for name, number in sums.items()}
        cursor = page.get("cursor")
        if cursor is None:
            output.result(json.dumps(sums))
            return 0
