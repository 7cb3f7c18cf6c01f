"""The HTTP connections of one listener, WebSockets excluded: counted, capped, and closed when they wait too long.

A connection is *busy* from the end of a request to its response. Otherwise it *waits*: it has sent nothing, part of a
head or part of a body, or it is kept alive after a response. Every wait has a deadline, which aiohttp lacks.

At a cap, the connection that has waited longest is closed for the new one, as nginx does with reusable connections.
Clients send their request at once, so this closes connections that never send one. A busy connection is never closed
for a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from math import inf

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from msgspec import Struct

from service.core.clock import Timer
from service.core.limits import Deadlines
from service.realtime.runtime import Runtime
from service.web.http.connection_caps import ConnectionCaps

CHECK_INTERVAL = 1.0
"""Seconds between two checks of the deadlines; a connection is closed at most this late."""


class _Address(Struct, eq=False):
    """The connections of one address."""

    name: str
    count: int = 0
    waiting: dict[asyncio.Transport, None] = {}
    """The waiting ones, longest wait first."""


class _Connection(Struct, eq=False):
    address: _Address | None
    """None where addresses are not counted."""
    deadline: float
    """Monotonic time at which the wait ends; infinite while the connection is busy."""
    is_closing: bool = False
    """Whether the connection only writes the rest of its response."""


class HttpConnections:
    """Tracks connections by transport, from accept until they end or become WebSockets."""

    def __init__(self, caps: ConnectionCaps, deadlines: Deadlines, close_grace: float, runtime: Runtime) -> None:
        """`close_grace`: seconds that a closing connection may take to send what is left."""
        self.caps = caps
        self._deadlines = deadlines
        self._close_grace = close_grace
        self._runtime = runtime
        self._all: dict[asyncio.Transport, _Connection] = {}
        self._waiting: dict[asyncio.Transport, None] = {}
        """The waiting ones, longest wait first."""
        self._addresses: dict[str, _Address] = {}
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[asyncio.Transport]:
        return iter(tuple(self._all))

    def start(self) -> None:
        """Starts to check the deadlines."""
        self._timer = self._runtime.clock.call_later(CHECK_INTERVAL, self._check_deadlines)

    def stop(self) -> None:
        """Stops checking the deadlines."""
        if self._timer is not None:
            self._timer.cancel()

    # --- states of a connection ---------------------------------------------------------------------------------------

    def add(self, transport: asyncio.Transport, address: str) -> bool:
        """Adds a new connection, which waits for its first request. At a cap, evicts a waiting connection; if there is
        none, aborts the new one and returns False."""
        owner, caps = self._addresses.get(address), self.caps
        if caps.may_be_full(len(self._all), 0 if owner is None else owner.count):
            if not self._evict_for_new(owner):
                transport.abort()
                return False
            owner = self._addresses.get(address)
        if caps.counts_addresses:
            if owner is None:
                owner = self._addresses[address] = _Address(address)
            owner.count += 1
            owner.waiting[transport] = None
        self._all[transport] = _Connection(owner, self._runtime.clock.monotonic() + self._deadlines.header)
        self._waiting[transport] = None
        return True

    def remove(self, transport: asyncio.Transport) -> None:
        """Removes a connection that has ended or becomes a WebSocket; harmless if it was removed before."""
        connection = self._all.pop(transport, None)
        if connection is None:
            return
        self._waiting.pop(transport, None)
        address = connection.address
        if address is not None:
            address.waiting.pop(transport, None)
            address.count -= 1
            if not address.count:
                del self._addresses[address.name]

    def mark_waiting(self, transport: asyncio.Transport) -> None:
        """Restarts the deadline for a request head."""
        self._wait(transport, self._deadlines.header)

    def mark_busy(self, transport: asyncio.Transport) -> None:
        """Records that a whole request has arrived: the connection is not evicted before its response."""
        connection = self._all.get(transport)
        if connection is None:
            return
        connection.deadline = inf
        self._waiting.pop(transport, None)
        if connection.address is not None:
            connection.address.waiting.pop(transport, None)

    def mark_closing(self, transport: asyncio.Transport) -> None:
        """Records that the connection only writes the rest of its response: it is aborted after `close_grace`."""
        self._wait(transport, self._close_grace)
        if (connection := self._all.get(transport)) is not None:
            connection.is_closing = True

    def middleware(self) -> Middleware:
        """Tracks which connections of an aiohttp application wait and which are busy."""

        @web.middleware
        async def track(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            if transport is None:
                return await handler(request)
            is_answered = False

            def on_whole_body() -> None:
                if not is_answered:
                    self.mark_busy(transport)

            if not request.content.is_eof():
                # A handler that reads the body refuses a late one itself; this deadline is for handlers that do not
                # read it.
                self._wait(transport, self._deadlines.body + self._deadlines.header)
            request.content.on_eof(on_whole_body)
            try:
                return await handler(request)
            finally:
                is_answered = True
                if request.protocol.transport is None:  # the connection is lost, or is a WebSocket now
                    self.remove(transport)
                else:
                    self._wait(transport, self._deadlines.header + self._deadlines.keep_alive)

        return track

    # --- eviction and deadlines ---------------------------------------------------------------------------------------

    def evict_longest_waiting(self) -> None:
        """Closes the connection that has waited longest, to free its descriptor."""
        self._evict_first(self._waiting)

    def _wait(self, transport: asyncio.Transport, timeout: float) -> None:
        connection = self._all.get(transport)
        if connection is None:
            return
        self.mark_busy(transport)  # removes it from its place in the order of waiting
        connection.deadline = self._runtime.clock.monotonic() + timeout
        self._waiting[transport] = None
        if connection.address is not None:
            connection.address.waiting[transport] = None

    def _evict_for_new(self, address: _Address | None) -> bool:
        """Evicts a waiting connection for each cap that is reached; False if there is none to evict."""
        if address is not None and self.caps.is_address_full(address.count) and not self._evict_first(address.waiting):
            return False
        return not self.caps.is_full(len(self._all)) or self._evict_first(self._waiting)

    def _evict_first(self, waiting: dict[asyncio.Transport, None]) -> bool:
        first = next(iter(waiting), None)
        if first is None:
            return False
        self.remove(first)
        first.abort()
        return True

    def _check_deadlines(self) -> None:
        self._timer = self._runtime.clock.call_later(CHECK_INTERVAL, self._check_deadlines)
        now = self._runtime.clock.monotonic()
        for transport, connection in list(self._all.items()):
            is_transport_closing = transport.is_closing()
            if is_transport_closing and not transport.get_write_buffer_size():
                self.remove(transport)
                continue
            if is_transport_closing and not connection.is_closing:
                connection.is_closing = True
                connection.deadline = min(connection.deadline, now + self._close_grace)
            if now >= connection.deadline:
                if not connection.is_closing:
                    self._runtime.metrics.limits.limit_hits.labels(limit="header_deadline").inc()
                self.remove(transport)
                transport.abort()


HTTP_CONNECTIONS = web.AppKey("http_connections", HttpConnections)
