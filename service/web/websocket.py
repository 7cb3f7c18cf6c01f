"""The Socket of the realtime core, on aiohttp's WebSocket."""

from __future__ import annotations

import socket
import sys

from aiohttp import WSCloseCode, WSMsgType, web

from service.core.clock import Clock
from service.core.limits import TokenBucket
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.protocol.messages import SUBPROTOCOL
from service.telemetry.metrics import Metrics
from service.web.edge import Edge

_NO_CODE = CloseCode.ABNORMAL.code


class WebSocket:
    """Implements realtime.socket.Socket. Answers pings itself, at the connection's rate: a flood of them ends it."""

    def __init__(self, edge: Edge, clock: Clock, metrics: Metrics) -> None:
        self.response = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            heartbeat=edge.deadlines.heartbeat,
            max_msg_size=edge.limits.message_bytes + 1,  # aiohttp refuses a message of exactly its maximum
            compress=False,  # negotiated per connection it costs 195 KB each
            autoping=False,
            writer_limit=0,  # each write waits until the kernel has taken all: what waits, waits in the outbox
        )
        self._edge = edge
        self._clock = clock
        self._metrics = metrics
        self._pings = TokenBucket(edge.limits.connection_rate, clock.monotonic())
        self._request: web.Request | None = None

    def check(self, request: web.Request) -> None:
        """Raises ServiceError(INVALID_REQUEST) if the request is no handshake as RFC 6455 has it."""
        try:
            ready = self.response.can_prepare(request).ok
        except ValueError:  # a key that is no ASCII
            ready = False
        if not ready:
            raise ServiceError(
                ErrorCode.INVALID_REQUEST,
                "this is no WebSocket handshake: it needs Connection: Upgrade, Sec-WebSocket-Version: 13, "
                "and a Sec-WebSocket-Key of 16 bytes as base64",
            )

    async def open(self, request: web.Request) -> None:
        """Answers an upgrade that has passed `check`."""
        self._request = request
        await self.response.prepare(request)
        transport = request.transport
        if transport is None:
            return
        transport.set_write_buffer_limits(high=0)
        raw = transport.get_extra_info("socket")
        if raw is not None:
            _bound_kernel_buffers(raw, self._edge)

    async def receive(self) -> str | bytes | None:
        """See Socket."""
        while True:
            message = await self.response.receive()
            if message.type is WSMsgType.TEXT:
                text: str = message.data
                return text
            if message.type is WSMsgType.BINARY:
                binary: bytes = message.data
                return binary
            if message.type is WSMsgType.PONG:
                continue
            if message.type is not WSMsgType.PING:
                self._note_end()
                return None
            if not await self._pong(message.data):
                return None

    async def _pong(self, data: bytes) -> bool:
        if self._pings.take(self._clock.monotonic()):
            self._metrics.rate_limited.labels(scope="connection").inc()
            await self.response.close(code=CloseCode.RATE_LIMITED.code, message=b"too many pings")
            return False
        try:
            await self.response.pong(data)
        except ConnectionError:
            return False
        return True

    def _note_end(self) -> None:
        code = self.response.close_code
        if code == WSCloseCode.MESSAGE_TOO_BIG:
            self._metrics.limit_hits.labels(limit="message_bytes").inc()
        elif isinstance(self.response.exception(), TimeoutError):
            self._metrics.limit_hits.labels(limit="heartbeat").inc()

    async def send(self, payload: bytes) -> None:
        """See Socket."""
        await self.response.send_frame(payload, WSMsgType.TEXT)

    async def close(self, code: int, reason: str) -> None:
        """See Socket."""
        await self.response.close(code=code, message=reason.encode()[:123])

    def abort(self) -> None:
        """See Socket."""
        if self._request is not None and self._request.transport is not None:
            self._request.transport.abort()

    @property
    def close_code(self) -> int:
        """See Socket."""
        return self.response.close_code or _NO_CODE


def _bound_kernel_buffers(raw: socket.socket, edge: Edge) -> None:
    """What waits in the kernel no delivery class can reach, and what a vanished peer never acknowledges must not stay."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, edge.outbox.send_buffer)
    if sys.platform == "linux" and raw.family in (socket.AF_INET, socket.AF_INET6):
        patience = round((edge.deadlines.heartbeat + edge.outbox.stall) * 1000)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
