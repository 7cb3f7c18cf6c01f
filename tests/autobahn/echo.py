"""A server that says back what it hears, on the service's own WebSocket: what the Autobahn cases talk to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from service.adapters.clock import SystemClock
from service.core.limits import Limits, OutboxLimits, Rate
from service.protocol.deflate import Deflater, negotiate
from service.protocol.framing import BINARY, RSV1, TEXT, accept_key, frame
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import ByteBudget
from service.telemetry.metrics import Metrics
from service.web.ws.read_scheduler import ReadScheduler
from service.web.ws.websocket import WebSocket, WebSocketContext

BOUNDS = Bounds(
    # The cases ask for messages of 16 MiB and for thousands at once; what bounds a client of the service is tested elsewhere.
    limits=Limits(message_bytes=1 << 30, connection_rate=Rate(per_second=1e9, burst=10**9)),
    # Some cases wait a second before they hang up.
    outbox=OutboxLimits(close_grace=10, node_bytes=1 << 32),
)
ACCOUNT = ByteBudget(BOUNDS.outbox.node_bytes).account("cases")


class Echo:
    """An Ear that answers each message with itself: deflated, where that was agreed."""

    def __init__(self, socket: WebSocket, deflater: Deflater) -> None:
        self._socket = socket
        self._deflater = deflater

    def message_received(self, message: str | bytes) -> None:
        opcode, payload = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        bits = self._socket.window_bits
        deflated = self._deflater.deflate(payload, bits) if bits else payload
        self._socket.write(frame(opcode, deflated, RSV1 if bits else 0))

    def pause_writing(self) -> None:
        """Nothing else is written meanwhile: a case waits for its echo."""

    def resume_writing(self) -> None:
        """See `paused`."""

    def eof_received(self) -> bool:
        """See Ear."""
        return False

    def connection_lost(self) -> None:
        """There is nothing to free."""


class Handshake(asyncio.Protocol):
    """Takes any upgrade, with what it offers of compression, and makes a WebSocket of its connection."""

    def __init__(self, terms: WebSocketContext, deflater: Deflater | None) -> None:
        self._terms = terms
        self._deflater = deflater
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # told, not asked: uvloop's are no subclasses of asyncio's

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, early = self._data.partition(b"\r\n\r\n")
        if not end:
            return
        lines = (line.partition(b": ") for line in head.split(b"\r\n")[1:])
        fields = {name.lower(): value for name, _, value in lines}
        offers = fields.get(b"sec-websocket-extensions", b"").decode()
        agreement = negotiate(offers) if self._deflater is not None else None
        answer = [
            b"HTTP/1.1 101 Switching Protocols",
            b"Upgrade: websocket",
            b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + accept_key(fields[b"sec-websocket-key"]),
            *([b"Sec-WebSocket-Extensions: " + agreement.response] if agreement is not None else []),
        ]
        assert self._transport is not None
        window_bits = agreement.window_bits if agreement is not None else 0
        socket = WebSocket(self._terms, self._transport, window_bits, account=ACCOUNT)
        socket.handler = Echo(socket, self._deflater or Deflater(1))
        self._transport.set_protocol(socket)
        socket.connection_made(self._transport)
        socket.write(b"\r\n".join((*answer, b"", b"")))
        if early:
            socket.data_received(early)


@asynccontextmanager
async def echoing(*, compresses: bool) -> AsyncIterator[str]:
    """Listens on a free port of loopback for the length of the block; gives the address."""
    clock, metrics = SystemClock(), Metrics()
    terms = WebSocketContext(BOUNDS, clock, metrics, ReadScheduler(clock, metrics, BOUNDS.deadlines.message))
    # The fastest level: the cases measure nothing here, and what is made is read by the same rules.
    deflater = Deflater(1) if compresses else None
    server = await asyncio.get_running_loop().create_server(lambda: Handshake(terms, deflater), "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()
