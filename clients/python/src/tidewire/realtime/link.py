"""One WebSocket: a port, and its adapter for the library websockets."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from tidewire.errors import ConnectionFailedError
from tidewire.http.flow import Response, refusal

SUBPROTOCOL = Subprotocol("tidewire.v1")
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Bytes of a frame of the service, which may hold all events that were missed."""
OPEN_TIMEOUT = 10.0
SEND_TIMEOUT = 10.0
CLOSE_TIMEOUT = 2.0

_log = logging.getLogger("tidewire.wire")
_log.setLevel(logging.WARNING)  # at DEBUG, websockets logs every frame, tokens too


class LinkClosedError(Exception):
    """The connection has ended. `code` is 1006 if it broke."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Link(Protocol):
    """A WebSocket. `send` and `receive` raise LinkClosedError."""

    async def send(self, text: str) -> None:
        """Sends a text frame; waits while the connection takes no more."""

    async def receive(self) -> str:
        """Returns the next text frame."""

    async def close(self) -> None:
        """Closes the connection, and waits a moment for the close of the service."""


Dial: TypeAlias = Callable[[str], Awaitable[Link]]
"""Opens a link to a URL. Raises TidewireError."""


@dataclass(frozen=True, slots=True)
class WebSocketDial:
    """Opens WebSockets."""

    verify: bool | ssl.SSLContext
    proxy: str | None

    async def __call__(self, url: str) -> Link:
        """Opens one. Raises TidewireError."""
        try:
            socket = await connect(
                url,
                subprotocols=[SUBPROTOCOL],
                max_size=MAX_FRAME_BYTES,
                compression=None,
                ping_interval=None,  # connection.py sends pings
                open_timeout=OPEN_TIMEOUT,
                close_timeout=CLOSE_TIMEOUT,
                logger=_log,
                proxy=self.proxy,
                ssl=self._context() if url.startswith("wss:") else None,
            )
        except InvalidStatus as error:
            response = error.response
            headers = {name.lower(): value for name, value in response.headers.raw_items()}
            raise refusal(Response(response.status_code, headers, bytes(response.body or b""))) from None
        except (InvalidHandshake, WebSocketException, OSError, asyncio.TimeoutError, EOFError) as error:
            raise ConnectionFailedError(str(error) or type(error).__name__) from None
        return _WebSocket(socket)

    def _context(self) -> ssl.SSLContext:
        if isinstance(self.verify, ssl.SSLContext):
            return self.verify
        context = ssl.create_default_context()
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


class _WebSocket:
    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    async def send(self, text: str) -> None:
        try:
            await asyncio.wait_for(self._socket.send(text), SEND_TIMEOUT)
        except ConnectionClosed as error:
            raise _closed(error) from None
        except asyncio.TimeoutError:
            self._socket.transport.abort()
            raise LinkClosedError(1006, "the service does not read") from None

    async def receive(self) -> str:
        try:
            frame = await self._socket.recv()
        except ConnectionClosed as error:
            raise _closed(error) from None
        return frame if isinstance(frame, str) else frame.decode(errors="replace")

    async def close(self) -> None:
        await self._socket.close()


def _closed(error: ConnectionClosed) -> LinkClosedError:
    return LinkClosedError(1006) if error.rcvd is None else LinkClosedError(error.rcvd.code, error.rcvd.reason)
