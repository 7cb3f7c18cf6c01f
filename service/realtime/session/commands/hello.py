"""`hello` on a connection that is authenticated already."""

from __future__ import annotations

from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Hello
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Hello) -> None:
    """Refuses: the handshake has taken the only hello there is; `refresh` swaps a token."""
    raise ServiceError(
        ErrorCode.INVALID_MESSAGE, "this connection is authenticated; send refresh to swap its token", path="$.type"
    )
