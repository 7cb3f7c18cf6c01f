"""A deadline for request headers, which aiohttp lacks: connections that never finish asking are cut."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.core.clock import Clock, Timer
from service.core.limits import Deadlines
from service.telemetry.metrics import Metrics
from service.web.front import Door

SWEEP_INTERVAL = 1.0
"""Seconds between two looks. The first one starts the clock of a new connection, so it is cut at most twice this much after
its deadline."""


class HeaderDeadline:
    """Watches the server's connections: one that has no request in hand for too long is aborted."""

    def __init__(self, deadlines: Deadlines, clock: Clock, metrics: Metrics) -> None:
        self._first = deadlines.header
        self._next = deadlines.header + deadlines.keep_alive
        self._clock = clock
        self._metrics = metrics
        self._idle: dict[web.RequestHandler, tuple[float, float]] = {}
        self._busy: set[web.RequestHandler] = set()
        self._server: web.Server | None = None
        self._door: Door | None = None
        self._timer: Timer | None = None

    def middleware(self) -> Middleware:
        """Notes which connections have a complete request in hand."""

        @web.middleware
        async def note(request: web.Request, handler: Handler) -> web.StreamResponse:
            protocol = request.protocol
            self._busy.add(protocol)
            try:
                return await handler(request)
            finally:
                self._busy.discard(protocol)
                self._idle[protocol] = (self._clock.monotonic(), self._next)

        return note

    def start(self, server: web.Server, door: Door) -> None:
        """Begins to watch the server's connections, and those that have sent nothing yet."""
        self._server = server
        self._door = door
        self._timer = self._clock.call_later(SWEEP_INTERVAL, self._sweep)

    def stop(self) -> None:
        """Ends watching."""
        if self._timer is not None:
            self._timer.cancel()

    def _sweep(self) -> None:
        self._timer = self._clock.call_later(SWEEP_INTERVAL, self._sweep)
        now = self._clock.monotonic()
        before, self._idle = self._idle, {}  # whoever is gone is forgotten
        for protocol in self._server.connections if self._server is not None else ():
            if protocol in self._busy:
                continue
            since, allowed = self._idle[protocol] = before.get(protocol, (now, self._first))
            if now - since >= allowed and protocol.transport is not None:
                self._cut(protocol.transport)
        for front, since in list(self._door.waiting.items()) if self._door is not None else ():
            if now - since >= self._first and front.transport is not None:
                self._cut(front.transport)

    def _cut(self, transport: asyncio.Transport) -> None:
        self._metrics.limit_hits.labels(limit="header_deadline").inc()
        transport.abort()
