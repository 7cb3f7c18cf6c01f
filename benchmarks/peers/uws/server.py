"""Rooms on uWebSockets: a message goes to all members of the room, including its sender. `server.py PORT IDLE`."""

from __future__ import annotations

import sys
from typing import Any

# Installed in this server's own environment, not in the project's.
from socketify import App, AppListenOptions, CompressOptions, OpCode  # type: ignore[import-not-found]

app = App()


def upgrade(response: Any, request: Any, context: Any) -> None:
    """Stores the room that the path names with the connection."""
    response.upgrade(
        request.get_header("sec-websocket-key"),
        request.get_header("sec-websocket-protocol"),
        request.get_header("sec-websocket-extensions"),
        context,
        request.get_parameter(0),
    )


def joined(connection: Any) -> None:
    """It has come."""
    connection.subscribe(connection.get_user_data())


def message(connection: Any, data: str | bytes, opcode: int) -> None:
    """To all, the sender too: that is the application's `publish`, a connection's own leaves it out."""
    app.publish(connection.get_user_data(), data, OpCode.TEXT, False)


def main(port: int, idle: int) -> None:
    """Serves until it is ended."""
    behaviour = {
        "compression": CompressOptions.DISABLED,
        "max_payload_length": 65_536,
        "max_backpressure": 1_048_576,
        "idle_timeout": idle,
        "send_pings_automatically": True,
        "upgrade": upgrade,
        "open": joined,
        "message": message,
    }
    app.ws("/room/:room", behaviour)
    app.listen(AppListenOptions(port=port, host="127.0.0.1"))
    app.run()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
