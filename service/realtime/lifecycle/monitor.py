"""What is looked after for every connection: its heartbeat, writes that stall, the end of its token, and its age.

One timer for all: a timer a connection would cost more memory than everything else that an idle connection has.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice

from service.core.clock import Clock, Timer
from service.core.limits import Deadlines, OutboxLimits, Rollout
from service.protocol.close import CloseCode
from service.realtime.connections.connection import Connection
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.telemetry.metrics import Metrics

INTERVAL = 0.5
"""Seconds between two looks: how late anything here may be. `outbox.stall` and the heartbeat may shorten it."""
LATE = 1.0
"""Seconds by which a look may be late before the loop, or the whole machine, must have stood still: then answers of peers may
have come that nobody has read yet (uvloop looks at its timers before it reads)."""
PARTING = 5.0
"""Seconds over which those whose age has come in one look are closed."""
SLICE = 500
"""Connections looked at in one turn of the loop: all of them may be due for a ping."""


class ConnectionMonitor:
    """Looks at every connection of the roster, again and again."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        deadlines: Deadlines,
        outbox: OutboxLimits,
        clock: Clock,
        metrics: Metrics,
        tidy: Callable[[float], None],
        *,
        rollout: Rollout,
        reconnects: ReconnectScheduler,
    ) -> None:
        """`tidy` is called with the monotonic time at every look."""
        self._registry = registry
        self._reconnects = reconnects
        self._max_age = rollout.max_age
        self._old: list[Connection] = []
        """Those whose age has come, of this look."""
        self._tidy = tidy
        self._deadlines = deadlines
        self._half = deadlines.heartbeat / 2
        """Seconds from a ping to its answer, and from that to the next ping."""
        self._interval = min(INTERVAL, deadlines.heartbeat / 8, outbox.stall / 2)
        self._stall = outbox.stall
        self._clock = clock
        self._metrics = metrics
        self._timer: Timer | None = None
        self._due = 0.0
        """When the next look should be."""
        self._was_late = False
        self._behind = 0
        """Connections that are behind, of those looked at in this look."""
        self._now = clock.monotonic()
        """Of the last look: one number that all connections that come after it share."""

    def start(self) -> None:
        """Begins."""
        self._now = self._clock.monotonic()
        self._wait()

    def _wait(self) -> None:
        self._due = self._clock.monotonic() + self._interval
        self._timer = self._clock.call_later(self._interval, self._begin)

    def close(self) -> None:
        """Ends."""
        if self._timer is not None:
            self._timer.cancel()

    def welcome(self, connection: Connection) -> None:
        """Notes when a connection began, and sets the time of its first ping: not the same for all who have come back
        together."""
        spread = random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing
        connection.start_heartbeat(self._now, self._clock.monotonic() + self._deadlines.heartbeat * spread)

    def seconds_left(self, connection: Connection) -> float | None:
        """Seconds until the session's token expires; None if it never does."""
        expires_at = connection.session.identity.expires_at
        return None if expires_at is None else expires_at - self._clock.wall()

    def _begin(self) -> None:
        # Not twice in a row: a loop that is always late must still cut the dead.
        now = self._now = self._clock.monotonic()
        self._behind = 0
        self._was_late = not self._was_late and now > self._due + LATE
        self._tidy(now)
        self._go_on(iter(self._registry))

    def _go_on(self, connections: Iterator[Connection]) -> None:
        now, wall = self._clock.monotonic(), self._clock.wall()
        looked = 0
        for connection in islice(connections, SLICE):
            looked += 1
            if connection.closing is None:
                self._look(connection, now, wall)
        if looked == SLICE:
            self._timer = self._clock.call_later(0.0, lambda: self._go_on(connections))
        else:
            self._metrics.outbox.connections_behind.set(self._behind)
            old, self._old = self._old, []
            self._reconnects.ask(old, over=PARTING, reason="age")
            self._wait()

    def _look(self, connection: Connection, now: float, wall: float) -> None:
        since = connection.paused_since
        if since is not None:
            self._behind += 1
            connection.transport.count_unsent()
            self._metrics.outbox.outbox_depth_messages.observe(connection.queued_messages)
            if since <= now - self._stall and not self._was_late:
                self._metrics.limits.limit_hits.labels(limit="stall").inc()
                connection.close(CloseCode.SLOW_CONSUMER, "no read for too long")
                return
        if now >= connection.next_ping_at:
            self._beat(connection, now)
        if self._max_age and now - connection.opened_at >= self._max_age * _share(connection):
            self._old.append(connection)
        expires_at = connection.session.identity.expires_at
        if expires_at is not None and wall >= expires_at - self._deadlines.expiry_notice:
            self._expire(connection, expires_at - wall)

    def _beat(self, connection: Connection, now: float) -> None:
        transport = connection.transport
        if connection.awaits_pong and not transport.has_received:
            if transport.is_reading_paused or self._was_late:
                return  # it may have answered long ago: the next look tells
            self._metrics.limits.limit_hits.labels(limit="heartbeat").inc()
            # A peer that only did not answer learns why; one that has gone keeps its descriptor for the grace of a close.
            connection.close(CloseCode.DEADLINE, "no pong")
            return
        if connection.awaits_pong:
            connection.confirm_pong(now + self._half)
        else:
            connection.send_ping(now + self._half)

    def _expire(self, connection: Connection, left: float) -> None:
        if left <= -self._deadlines.expiry_grace:
            connection.close(CloseCode.UNAUTHORIZED, "the token has expired")
        else:
            connection.notify_expiring(max(0, round(left)))


def _share(connection: Connection) -> float:
    """How much of the greatest age a connection lasts: from a half to all of it, and the same at every look. From its id, which
    is random, so that nothing has to be kept for it; Python keeps a string's hash."""
    return 0.5 + (hash(connection.id) & 0xFFFF) / 0x20000
