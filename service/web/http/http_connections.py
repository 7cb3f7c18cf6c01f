"""The connections of one HTTP listener that are not WebSockets: how many there may be, and how long each may wait for a request.

A connection *waits* while it has no whole request in hand: it has sent nothing, part of a head or part of a body, or it is kept
alive after an answer. Every wait has a deadline, which aiohttp lacks. At a cap the connection that has waited longest is closed
for the new one, as nginx does with reusable connections. A client sends its request as soon as it is connected, so this closes
those that never send one. A connection with a whole request in hand is never closed for a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from service.core.clock import Clock, Timer
from service.core.limits import Deadlines
from service.telemetry.metrics import Metrics

SWEEP_INTERVAL = 1.0
"""Seconds between two looks at the deadlines: how late a connection is closed at most."""


class _Address:
    """The connections of one address."""

    __slots__ = ("count", "name", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.waiting: dict[asyncio.Transport, None] = {}


@dataclass(slots=True)
class _Connection:
    address: _Address | None
    """Whom it counts for; None where addresses are not counted."""
    deadline: float
    """Monotonic time at which its wait ends; infinite while a request is in hand."""
    is_ending: bool = False
    """Whether it is only to write what it still has to."""


class HttpConnections:
    """Counts connections by their transport. Each is added once, when it is accepted, and forgotten when it has ended."""

    def __init__(
        self,
        name: str,
        cap: int,
        per_address: int | None,
        deadlines: Deadlines,
        close_grace: float,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """`name` is that of the setting `limits.…` that holds the cap, and the label of its metric. `per_address` is the cap of
        one address; None: addresses are not counted, as behind a proxy, whose address is everybody's."""
        self._per_address = per_address
        self._cap = cap
        self._spare: Callable[[], int] | None = None
        self.is_at_lowered_cap = False
        """Whether a cap was reached that is lower than was set, since somebody last set this to False."""
        self._name = name
        self._deadlines = deadlines
        self._close_grace = close_grace
        self._clock = clock
        self._metrics = metrics
        self._all: dict[asyncio.Transport, _Connection] = {}
        self._waiting: dict[asyncio.Transport, None] = {}
        """Those that wait, longest first."""
        self._addresses: dict[str, _Address] = {}
        self._timer: Timer | None = None
        self.lower(cap)

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[asyncio.Transport]:
        return iter(tuple(self._all))

    def start(self) -> None:
        """Begins to watch the deadlines."""
        self._timer = self._clock.call_later(SWEEP_INTERVAL, self._monitor)

    def stop(self) -> None:
        """Ends that."""
        if self._timer is not None:
            self._timer.cancel()

    # --- what happens to a connection ---------------------------------------------------------------------------------

    def add(self, transport: asyncio.Transport, address: str) -> bool:
        """Counts a new connection, which waits for its first request. False if there is no place for it: it is aborted."""
        counted = self._addresses.get(address)
        is_close_to_cap = len(self._all) >= self._surely or (
            counted is not None and counted.count >= self._surely_of_one
        )
        if is_close_to_cap and not self._make_room(counted):
            transport.abort()
            return False
        counted = None
        if self._per_address is not None:
            counted = self._addresses.get(address)
            if counted is None:
                counted = self._addresses[address] = _Address(address)
            counted.count += 1
            counted.waiting[transport] = None
        self._all[transport] = _Connection(counted, self._clock.monotonic() + self._deadlines.header)
        self._waiting[transport] = None
        return True

    def remove(self, transport: asyncio.Transport) -> None:
        """Forgets a connection that has ended, or is a WebSocket from here on; harmless the second time."""
        connection = self._all.pop(transport, None)
        if connection is None:
            return
        self._waiting.pop(transport, None)
        counted = connection.address
        if counted is not None:
            counted.waiting.pop(transport, None)
            counted.count -= 1
            if not counted.count:
                del self._addresses[counted.name]

    def waits(self, transport: asyncio.Transport) -> None:
        """Notes that the connection has its time for a request head from now on."""
        self._wait(transport, self._deadlines.header)

    def asked(self, transport: asyncio.Transport) -> None:
        """Notes that a whole request is in hand: the connection is safe until it is answered."""
        connection = self._all.get(transport)
        if connection is None:
            return
        connection.deadline = inf
        self._waiting.pop(transport, None)
        if connection.address is not None:
            connection.address.waiting.pop(transport, None)

    def ending(self, transport: asyncio.Transport) -> None:
        """Notes that the connection is about to end: it is aborted if that takes longer than `outbox.close_grace`."""
        self._wait(transport, self._close_grace)
        if (connection := self._all.get(transport)) is not None:
            connection.is_ending = True

    def middleware(self) -> Middleware:
        """Notes which connections have a whole request in hand, its body too."""

        @web.middleware
        async def track(request: web.Request, handler: Handler) -> web.StreamResponse:
            transport = request.transport
            if transport is None:
                return await handler(request)
            is_answered = False

            def body_is_there() -> None:
                if not is_answered:
                    self.asked(transport)

            if not request.content.is_eof():
                # The handler refuses a body that is late; this is for one that nobody reads.
                self._wait(transport, self._deadlines.body + self._deadlines.header)
            request.content.on_eof(body_is_there)
            try:
                return await handler(request)
            finally:
                is_answered = True
                if request.protocol.transport is None:  # it is lost, or a WebSocket now
                    self.remove(transport)
                else:
                    self._wait(transport, self._deadlines.header + self._deadlines.keep_alive)

        return track

    # --- places and deadlines -----------------------------------------------------------------------------------------

    def close_longest_waiting(self) -> None:
        """Makes room in the process for something else."""
        self._close_first(self._waiting)

    def lower(self, cap: int, spare: Callable[[], int] | None = None) -> None:
        """Sets the cap to what the process has descriptors for: `cap`, and more while `spare` says that more are left."""
        self._lowered, self._spare = cap, spare
        # Below these nothing has to be worked out.
        self._surely = min(cap, self._cap)
        self._surely_of_one = inf if self._per_address is None else min(self._per_address, max(1, self._surely // 2))

    @property
    def max_connections(self) -> int:
        """The cap that is in force."""
        if self._lowered >= self._cap:
            return self._cap
        return min(self._cap, max(self._lowered, self._spare() if self._spare is not None else 0))

    def _wait(self, transport: asyncio.Transport, timeout: float) -> None:
        connection = self._all.get(transport)
        if connection is None:
            return
        self.asked(transport)  # takes it out of its place in the order
        connection.deadline = self._clock.monotonic() + timeout
        self._waiting[transport] = None
        if connection.address is not None:
            connection.address.waiting[transport] = None

    def _make_room(self, counted: _Address | None) -> bool:
        cap = self.max_connections
        is_lowered = cap < self._cap
        if self._per_address is not None and counted is not None:
            # Where there is less than was set, one address leaves room for others.
            half = max(1, cap // 2) if is_lowered else self._per_address
            if counted.count >= min(self._per_address, half):
                self._hit(f"{self._name}_per_ip", is_lowered=half < self._per_address)
                if not self._close_first(counted.waiting):
                    return False
        if len(self._all) >= cap:
            self._hit(self._name, is_lowered=is_lowered)
            return self._close_first(self._waiting)
        return True

    def _hit(self, cap: str, *, is_lowered: bool) -> None:
        self.is_at_lowered_cap |= is_lowered
        self._metrics.limits.limit_hits.labels(limit=cap).inc()

    def _close_first(self, waiting: dict[asyncio.Transport, None]) -> bool:
        first = next(iter(waiting), None)
        if first is None:
            return False
        self.remove(first)
        first.abort()
        return True

    def _monitor(self) -> None:
        self._timer = self._clock.call_later(SWEEP_INTERVAL, self._monitor)
        now = self._clock.monotonic()
        for transport, connection in list(self._all.items()):
            is_closed = transport.is_closing()
            if is_closed and not transport.get_write_buffer_size():
                self.remove(transport)
                continue
            if is_closed and not connection.is_ending:
                connection.is_ending = True
                connection.deadline = min(connection.deadline, now + self._close_grace)
            if now >= connection.deadline:
                if not connection.is_ending:
                    self._metrics.limits.limit_hits.labels(limit="header_deadline").inc()
                self.remove(transport)
                transport.abort()


HTTP_CONNECTIONS = web.AppKey("http_connections", HttpConnections)
