"""`hello` on a connection that is already authenticated: refused."""

from __future__ import annotations

from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Hello
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Hello) -> None:
    """Raises ServiceError(INVALID_MESSAGE). `refresh` replaces a token."""
    raise ServiceError(
        ErrorCode.INVALID_MESSAGE, "this connection is authenticated; send refresh to change its token", path="$.type"
    )
