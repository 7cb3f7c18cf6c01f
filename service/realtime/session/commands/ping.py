"""`ping`: asks for a `pong`."""

from __future__ import annotations

from service.protocol.messages import Ping, Pong
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


def handle(node: Node, connection: Connection, command: Ping) -> None:
    """Replies with `pong`."""
    connection.reply(Pong(id=command.id))
