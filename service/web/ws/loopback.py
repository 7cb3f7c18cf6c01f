"""A TCP connection of this process to itself, for the latency probe: a WebSocket as every client's, and a client that echoes.

No listener stays open and nothing is asked for: the near end is made a WebSocket here, as after an upgrade.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import cast

from service.core.clock import Clock
from service.protocol.framing import FIN, MASK, TEXT
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import UNAUTHENTICATED_TENANT, ByteBudget
from service.realtime.connections.transport import MessageHandler
from service.telemetry.metrics import Metrics
from service.web.http.socket_options import bound_buffers
from service.web.ws.read_scheduler import ReadScheduler
from service.web.ws.websocket import Terms, WebSocket

HOST = "127.0.0.1"
"""Every network namespace has it, one without IPv4 beyond it too."""
PATIENCE = 1.0
"""Seconds that the connection may take to be made."""

_NO_MASK = bytes(4)


class Line:
    """Implements realtime.probe.Loopback."""

    __slots__ = ("_far", "transport")

    def __init__(self, near: WebSocket, far: asyncio.Transport) -> None:
        self.transport = near
        self._far = far

    def cut(self) -> None:
        """See Loopback."""
        self.transport.abort()
        self._far.abort()


async def connect(bounds: Bounds, clock: Clock, handler: MessageHandler, metrics: Metrics) -> Line:
    """A new connection, on the terms of every client's. Raises OSError."""
    try:
        async with asyncio.timeout(PATIENCE):
            near, far = await _pair(bounds)
    except TimeoutError as error:
        raise ConnectionError(f"no connection to {HOST} within {PATIENCE:g} s") from error
    loop = asyncio.get_running_loop()
    transports = list[asyncio.Transport]()
    try:
        for end, factory in ((far, Echo), (near, asyncio.Protocol)):
            transport, _ = await loop.connect_accepted_socket(factory, end)
            transports.append(transport)
    except BaseException:
        for transport in transports:
            transport.abort()
        near.close()
        far.close()
        raise
    client, server = transports
    terms = Terms(bounds, clock, metrics, ReadScheduler(clock, metrics, bounds.deadlines.message))
    websocket = WebSocket(terms, server, account=ByteBudget(bounds.outbox.node_bytes).account(UNAUTHENTICATED_TENANT))
    websocket.handler = handler
    server.set_protocol(websocket)
    websocket.connection_made(server)
    return Line(websocket, client)


async def _pair(bounds: Bounds) -> tuple[socket.socket, socket.socket]:
    """The accepted end, with the options that the public listener gives, and the other one."""
    loop = asyncio.get_running_loop()
    far = socket.socket()
    try:
        far.setblocking(False)
        with socket.socket() as listener:
            listener.setblocking(False)
            bound_buffers([listener], bounds)
            listener.bind((HOST, 0))
            listener.listen(1)
            await loop.sock_connect(far, listener.getsockname())
            while True:
                near, peer = await loop.sock_accept(listener)
                if peer == far.getsockname():
                    return near, far
                near.close()  # somebody else on this machine has found the port
    except BaseException:
        far.close()
        raise


class Echo(asyncio.Protocol):
    """The far end: a WebSocket client that sends back every message as it came (RFC 6455 §5.2)."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._buffer += data
        while (end := _end_of_frame(self._buffer)) is not None:
            start, size = end
            frame, self._buffer = self._buffer[: start + size], self._buffer[start + size :]
            if frame[0] != FIN | TEXT:  # the goodbye: nothing else is ever sent to it
                self._transport.close()
                return
            self._transport.write(_masked(frame, start))


def _end_of_frame(data: bytes) -> tuple[int, int] | None:
    """Where the payload of the first frame begins, and its size; None if the frame is not whole. A server's: no mask."""
    if len(data) < 2:
        return None
    start, size = 2, data[1]
    if size >= 126:
        start = 4 if size == 126 else 10
        size = int.from_bytes(data[2:start], "big")
    return (start, size) if len(data) >= start + size else None


def _masked(frame: bytes, start: int) -> bytes:
    """The frame as a client sends it. A mask is there to mislead what stands between (§10.3); here nothing does."""
    return struct.pack("!BB", frame[0], MASK | frame[1]) + frame[2:start] + _NO_MASK + frame[start:]
