"""Takes a connection away from aiohttp after a request, to serve it as a WebSocket or an event stream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from aiohttp import web
from msgspec import Struct

from service.web.http.http_connections import HTTP_CONNECTIONS
from service.web.http.http_protocol import HttpProtocol

if TYPE_CHECKING:
    from aiohttp.http import WebSocketReader


class DetachedConnection(Struct, frozen=True, gc=False):
    """A connection that HTTP no longer owns."""

    transport: asyncio.Transport | None
    """None if the connection is lost."""
    early_data: bytes
    """Bytes that the peer sent after the request."""
    has_eof: bool
    """Whether the peer has closed its sending half."""


class DetachedResponse(web.StreamResponse):
    """aiohttp's response to a request whose connection is detached: writes nothing."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Writes nothing: the new owner of the connection sends the head."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Writes nothing: the connection belongs to its new owner."""


def detach(request: web.Request) -> DetachedConnection:
    """Passes the connection of a request to the caller. The handler must return a DetachedResponse."""
    protocol, transport = request.protocol, request.transport
    if transport is not None:
        request.app[HTTP_CONNECTIONS].remove(transport)
    trailing = _TrailingBytes()
    protocol.set_parser(cast("WebSocketReader", trailing))
    if isinstance(protocol, HttpProtocol):
        trailing.feed_data(protocol.pop_unparsed())
    protocol.transport = None  # otherwise aiohttp closes it in the next line
    protocol.connection_lost(None)
    has_eof = isinstance(protocol, HttpProtocol) and protocol.has_eof
    return DetachedConnection(transport, bytes(trailing.data), has_eof)


class _TrailingBytes:
    """Takes the place of aiohttp's WebSocketReader, and collects the bytes after the request."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Collects the bytes."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Does nothing: the new owner handles the end of the connection."""
