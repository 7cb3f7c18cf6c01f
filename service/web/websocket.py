"""The Socket of the realtime core, on aiohttp's WebSocket."""

from __future__ import annotations

import asyncio
import socket
import sys

from aiohttp import WebSocketError, WSCloseCode, WSMessage, WSMsgType, web

from service.core.clock import Clock
from service.core.limits import TokenBucket
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.protocol.messages import SUBPROTOCOL
from service.realtime.node import Bounds
from service.telemetry.metrics import Metrics

_NO_CODE = CloseCode.ABNORMAL.code


class WebSocket:
    """Implements realtime.socket.Socket. Answers pings itself; a flood of control frames, above the rate of messages, ends it."""

    def __init__(self, bounds: Bounds, clock: Clock, metrics: Metrics) -> None:
        self.response = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            heartbeat=bounds.deadlines.heartbeat,
            max_msg_size=bounds.limits.message_bytes + 1,  # aiohttp refuses a message of exactly its maximum
            compress=False,  # negotiated per connection it costs 195 KB each
            autoping=False,
            writer_limit=0,  # each write waits until the kernel has taken all: what waits, waits in the outbox
        )
        self._bounds = bounds
        self._clock = clock
        self._metrics = metrics
        self._control = TokenBucket(bounds.limits.connection_rate, clock.monotonic())
        self._ended_with: int | None = None
        """The code with which this side ended it, on its own account."""
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
            _bound_kernel_buffers(raw, self._bounds)

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
            if message.type not in (WSMsgType.PING, WSMsgType.PONG):
                self._note_end(message)
                return None
            if self._control.take(self._clock.monotonic()):
                await self._end_flood()
                return None
            if message.type is WSMsgType.PING and not await self._pong(message.data):
                return None

    async def _pong(self, data: bytes) -> bool:
        try:
            async with asyncio.timeout(self._bounds.outbox.stall):
                await self.response.pong(data)
        except ConnectionError:
            return False
        except TimeoutError:
            self._metrics.limit_hits.labels(limit="stall").inc()
            self.abort()
            return False
        return True

    async def _end_flood(self) -> None:
        self._metrics.rate_limited.labels(scope="connection").inc()
        self._ended_with = CloseCode.RATE_LIMITED.code
        try:
            async with asyncio.timeout(self._bounds.outbox.close_grace):
                await self.close(self._ended_with, "too many control frames")
        except (TimeoutError, ConnectionError):
            self.abort()

    def _note_end(self, last: WSMessage) -> None:
        cause = last.data if last.type is WSMsgType.ERROR else self.response.exception()
        if isinstance(cause, WebSocketError):  # aiohttp has closed with the code of this, and forgotten it
            self._ended_with = cause.code
            if cause.code == WSCloseCode.MESSAGE_TOO_BIG:
                self._metrics.limit_hits.labels(limit="message_bytes").inc()
        elif isinstance(cause, TimeoutError):
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
        return self._ended_with or self.response.close_code or _NO_CODE


def _bound_kernel_buffers(raw: socket.socket, bounds: Bounds) -> None:
    """What waits in the kernel no delivery class can reach, and what a vanished peer never acknowledges must not stay."""
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bounds.outbox.send_buffer)
    if sys.platform == "linux" and raw.family in (socket.AF_INET, socket.AF_INET6):
        patience = round((bounds.deadlines.heartbeat + bounds.outbox.stall) * 1000)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
