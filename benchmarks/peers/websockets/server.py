"""Rooms on `websockets`: what comes from one member goes to all of its room, itself too. `server.py PORT PING`."""

from __future__ import annotations

import logging
import sys
from collections import defaultdict
from typing import Any

# All three are installed in this server's own environment, not in the project's.
import uvloop
from websockets.asyncio.server import broadcast, serve

rooms: defaultdict[str, set[Any]] = defaultdict(set)


async def member(connection: Any) -> None:
    """Serves one until it goes."""
    room = rooms[connection.request.path]
    room.add(connection)
    try:
        async for message in connection:
            broadcast(room, message)
    finally:
        room.discard(connection)


async def main(port: int, ping: float) -> None:
    """Serves until it is ended."""
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
    async with serve(member, "127.0.0.1", port, compression=None, ping_interval=ping, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
