"""A TCP connection of this process to itself, for the latency probe: a real WebSocket, and a client that echoes.

No listener stays open and no upgrade is sent: the accepted end becomes a WebSocket directly.
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
from service.web.http.socket_options import set_socket_options
from service.web.ws.read_scheduler import ReadScheduler
from service.web.ws.websocket import WebSocket, WebSocketContext

HOST = "127.0.0.1"
"""Available in every network namespace, even in one without other IPv4 addresses."""
CONNECT_TIMEOUT = 1.0
"""Seconds in which the connection must be established."""

_ZERO_MASK = bytes(4)


class LoopbackConnection:
    """Both ends of a connection of the latency probe."""

    __slots__ = ("_client", "transport")

    def __init__(self, websocket: WebSocket, client: asyncio.Transport) -> None:
        self.transport = websocket
        self._client = client

    def cut(self) -> None:
        """Aborts both ends."""
        self.transport.abort()
        self._client.abort()


async def connect(bounds: Bounds, clock: Clock, handler: MessageHandler, metrics: Metrics) -> LoopbackConnection:
    """Connects with the socket options and bounds of a client's connection. Raises OSError."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            server_socket, client_socket = await _connect_sockets(bounds)
    except TimeoutError as error:
        raise ConnectionError(f"no connection to {HOST} within {CONNECT_TIMEOUT:g} s") from error
    loop = asyncio.get_running_loop()
    transports = list[asyncio.Transport]()
    try:
        for end, factory in ((client_socket, EchoClient), (server_socket, asyncio.Protocol)):
            transport, _ = await loop.connect_accepted_socket(factory, end)
            transports.append(transport)
    except BaseException:
        for transport in transports:
            transport.abort()
        server_socket.close()
        client_socket.close()
        raise
    client, server = transports
    read_scheduler = ReadScheduler(clock, metrics, bounds.deadlines.message)
    context = WebSocketContext(bounds, clock, metrics, read_scheduler)
    websocket = WebSocket(context, server, account=ByteBudget(bounds.outbox.node_bytes).account(UNAUTHENTICATED_TENANT))
    websocket.handler = handler
    server.set_protocol(websocket)
    websocket.connection_made(server)
    return LoopbackConnection(websocket, client)


async def _connect_sockets(bounds: Bounds) -> tuple[socket.socket, socket.socket]:
    """The accepted socket, with the options of the public listener, and the client's socket."""
    loop = asyncio.get_running_loop()
    client_socket = socket.socket()
    try:
        client_socket.setblocking(False)
        with socket.socket() as listener:
            listener.setblocking(False)
            set_socket_options([listener], bounds)
            listener.bind((HOST, 0))
            listener.listen(1)
            await loop.sock_connect(client_socket, listener.getsockname())
            while True:
                server_socket, peer = await loop.sock_accept(listener)
                if peer == client_socket.getsockname():
                    return server_socket, client_socket
                server_socket.close()  # another process has connected to the port
    except BaseException:
        client_socket.close()
        raise


class EchoClient(asyncio.Protocol):
    """A WebSocket client that sends back every message unchanged (RFC 6455 §5.2)."""

    _transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport for the echoes."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Echoes every whole message; closes the connection after a close frame."""
        self._buffer += data
        while (payload := _find_payload(self._buffer)) is not None:
            start, size = payload
            frame, self._buffer = self._buffer[: start + size], self._buffer[start + size :]
            if frame[0] != FIN | TEXT:  # a close frame: the server sends nothing else
                self._transport.close()
                return
            self._transport.write(_mask_frame(frame, start))


def _find_payload(data: bytes) -> tuple[int, int] | None:
    """Start and size of the first frame's payload; None if the frame is incomplete. A server's frames have no mask."""
    if len(data) < 2:
        return None
    start, size = 2, data[1]
    if size >= 126:
        start = 4 if size == 126 else 10
        size = int.from_bytes(data[2:start], "big")
    return (start, size) if len(data) >= start + size else None


def _mask_frame(frame: bytes, start: int) -> bytes:
    """The frame as a client sends it. A zero mask suffices: masks protect intermediaries (§10.3), and there are none
    here."""
    return struct.pack("!BB", frame[0], MASK | frame[1]) + frame[2:start] + _ZERO_MASK + frame[start:]
