"""Rooms on python-socketio: a message goes to all members of the room, including its sender. `server.py PORT PING`."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import parse_qs

# All of these are installed in this server's own environment, not in the project's.
import socketio  # type: ignore[import-not-found]
import uvloop
from aiohttp import web


def application(ping: float) -> web.Application:
    """Returns an aiohttp application with the server."""
    io = socketio.AsyncServer(
        async_mode="aiohttp",
        transports=["websocket"],
        http_compression=False,
        ping_interval=ping,
        cors_allowed_origins=[],
    )
    rooms: dict[str, str] = {}

    async def connect(sid: str, environ: dict[str, Any], auth: object = None) -> None:
        rooms[sid] = parse_qs(environ["QUERY_STRING"])["room"][0]
        await io.enter_room(sid, rooms[sid])

    async def event(sid: str, data: object) -> None:
        await io.emit("event", data, room=rooms[sid])

    def disconnect(sid: str, reason: object = None) -> None:
        rooms.pop(sid, None)

    io.on("connect", connect)
    io.on("event", event)
    io.on("disconnect", disconnect)
    app = web.Application()
    io.attach(app)
    return app


if __name__ == "__main__":
    uvloop.install()
    web.run_app(
        application(float(sys.argv[2])),
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        backlog=4096,
        print=None,
    )
