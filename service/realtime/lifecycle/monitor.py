"""Checks every connection at an interval: its heartbeat, its stalled writes, the expiry of its token, and its age.

One timer serves all connections, because a timer takes more memory than the rest of an idle connection.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import islice
from math import inf

import structlog

from service.core.clock import Clock, Timer
from service.core.limits import Deadlines, OutboxLimits, Rollout
from service.protocol.close import CloseCode
from service.realtime.connections.connection import Connection
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.telemetry.metrics import Metrics

CHECK_INTERVAL = 0.5
"""Seconds between two checks, which is the precision of every deadline here. `outbox.stall` and the heartbeat may shorten it."""
MAX_CHECK_DELAY = 1.0
"""Seconds by which a check may be late. If it is later, the event loop or the machine was stalled. Then pongs may be unread,
because uvloop runs timers before it reads."""
MAX_KEEPALIVE_INTERVAL = 20.0
"""Seconds between two pings to a client that does not answer them. Proxies cut a response without data after 30 s or more."""
MAX_AGE_SPREAD = 5.0
"""Seconds over which a check spreads the closes of connections that it finds too old."""
SLICE = 500
"""Connections checked in one loop iteration. All of them may need a ping."""

FIRST_PINGS = 64
"""Different times of the first ping among connections that open between two checks."""

_log = structlog.get_logger("monitor")


class ConnectionMonitor:
    """Pings, notifies and closes the connections of a registry at their deadlines."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        deadlines: Deadlines,
        outbox: OutboxLimits,
        clock: Clock,
        metrics: Metrics,
        on_check: Callable[[float], None],
        on_keepalive: Callable[[Connection, float], None],
        *,
        rollout: Rollout,
        reconnects: ReconnectScheduler,
    ) -> None:
        """`on_check` is called at every check, with the monotonic time. `on_keepalive` is called with each connection that gets a
        ping and does not answer it, and the seconds since its last one."""
        self._registry = registry
        self._reconnects = reconnects
        self._max_age = rollout.max_age
        self._too_old: list[Connection] = []
        """Connections that this check has found too old so far."""
        self._on_check = on_check
        self._on_keepalive = on_keepalive
        self._deadlines = deadlines
        self._pong_timeout = deadlines.heartbeat / 2
        """Seconds from a ping until its pong is due, and from a pong to the next ping."""
        self._keepalive_interval = min(deadlines.heartbeat, MAX_KEEPALIVE_INTERVAL)
        self._interval = min(CHECK_INTERVAL, deadlines.heartbeat / 8, outbox.stall / 2)
        self._stall_timeout = outbox.stall
        self._clock = clock
        self._metrics = metrics
        self._timer: Timer | None = None
        self._next_check_at = 0.0
        self._was_late = False
        """True if the event loop was stalled before this check."""
        self._connections_behind = 0
        """Connections with paused writes that this check has found so far."""
        self._first_pings: list[float] = []
        """The times of the first pings of connections that open now. Connections share the float objects, to save memory."""
        self._first_pings_from = -inf
        """Monotonic seconds at which `_first_pings` was made."""
        self._pong_deadline = 0.0
        """Monotonic seconds at which a ping that is sent now times out. All connections of a slice share it."""
        self._keepalive_deadline = 0.0
        """Monotonic seconds of the next ping to a client that gets one now and does not answer pings."""
        self._checked_at = clock.monotonic()
        """Monotonic seconds at the start of the last check. Connections that open before the next one share it to save memory."""

    def start(self) -> None:
        """Starts the checks."""
        self._checked_at = self._clock.monotonic()
        self._schedule()

    def close(self) -> None:
        """Ends the checks."""
        if self._timer is not None:
            self._timer.cancel()

    def track(self, connection: Connection) -> None:
        """Starts the heartbeat of a connection, before or after it is added to the registry.

        The first ping is sent after a random part of the heartbeat, so that clients that connect together get pings at different
        times.
        """
        now = self._clock.monotonic()
        if not 0.0 <= now - self._first_pings_from < self._interval:
            self._first_pings_from = now
            step = self._deadlines.heartbeat / 2 / FIRST_PINGS
            self._first_pings = [now + step * (FIRST_PINGS + number) for number in range(FIRST_PINGS)]
        first_ping_at = self._first_pings[int(random.random() * FIRST_PINGS)]  # noqa: S311  # spreads load, guards nothing
        if not connection.transport.answers_pings:
            first_ping_at = min(first_ping_at, now + self._keepalive_interval)
        connection.start_heartbeat(self._checked_at, first_ping_at)

    def token_ttl(self, connection: Connection) -> float | None:
        """Returns the seconds until the connection's token expires; None if it never does."""
        expires_at = connection.session.identity.expires_at
        return None if expires_at is None else expires_at - self._clock.wall()

    def _schedule(self) -> None:
        self._next_check_at = self._clock.monotonic() + self._interval
        self._timer = self._clock.call_later(self._interval, self._start_check)

    def _start_check(self) -> None:
        now = self._checked_at = self._clock.monotonic()
        self._connections_behind = 0
        # Never true twice in a row, because a loop that is always late must still close dead connections.
        self._was_late = not self._was_late and now > self._next_check_at + MAX_CHECK_DELAY
        self._on_check(now)
        self._check_slice(iter(self._registry))

    def _check_slice(self, connections: Iterator[Connection]) -> None:
        now, wall = self._clock.monotonic(), self._clock.wall()
        self._pong_deadline = now + self._pong_timeout
        self._keepalive_deadline = now + self._keepalive_interval
        checked = 0
        for connection in islice(connections, SLICE):
            checked += 1
            if connection.closing is None:
                self._check_safely(connection, now, wall)
        if checked == SLICE:
            self._timer = self._clock.call_later(0.0, lambda: self._check_slice(connections))
        else:
            self._metrics.outbox.connections_behind.set(self._connections_behind)
            too_old, self._too_old = self._too_old, []
            self._reconnects.schedule(too_old, over=MAX_AGE_SPREAD, reason="age")
            self._schedule()

    def _check_safely(self, connection: Connection, now: float, wall: float) -> None:
        """Closes a connection whose check fails, because an error here would end the checks of all connections."""
        try:
            self._check(connection, now, wall)
        except Exception:
            _log.exception("connection_check_failed", connection=connection.id)
            connection.close(CloseCode.INTERNAL, CloseCode.INTERNAL.meaning)

    def _check(self, connection: Connection, now: float, wall: float) -> None:
        since = connection.paused_since
        if since is not None:
            self._connections_behind += 1
            connection.transport.count_unsent()
            self._metrics.outbox.outbox_depth_messages.observe(connection.queued_messages)
            if since <= now - self._stall_timeout and not self._was_late:
                self._metrics.limits.limit_hits.labels(limit="stall").inc()
                connection.close(CloseCode.SLOW_CONSUMER, "no read for too long")
                return
        if now >= connection.next_ping_at:
            self._check_heartbeat(connection)
        if self._max_age and now - connection.opened_at >= self._max_age * _age_ratio(connection):
            self._too_old.append(connection)
        expires_at = connection.session.identity.expires_at
        if expires_at is not None and wall >= expires_at - self._deadlines.expiry_notice:
            self._check_expiry(connection, expires_at - wall)

    def _check_heartbeat(self, connection: Connection) -> None:
        transport = connection.transport
        if not transport.answers_pings:
            connection.send_keepalive(self._keepalive_deadline)
            self._on_keepalive(connection, self._keepalive_interval)
        elif not connection.awaits_pong:
            connection.send_ping(self._pong_deadline)
        elif transport.has_received:
            connection.confirm_pong(self._pong_deadline)
        elif (
            not transport.is_reading_paused and not self._was_late
        ):  # else the pong may be unread, so the next check decides
            self._metrics.limits.limit_hits.labels(limit="heartbeat").inc()
            # A live client gets the reason. A dead one keeps its file descriptor for `outbox.close_grace`.
            connection.close(CloseCode.DEADLINE, "no pong")

    def _check_expiry(self, connection: Connection, ttl: float) -> None:
        if ttl <= -self._deadlines.expiry_grace:
            connection.close(CloseCode.UNAUTHORIZED, "the token has expired")
        elif connection.session.identity.question is None:  # else the backend is asked (Renewals)
            connection.notify_expiring(max(0, round(ttl)))


def _age_ratio(connection: Connection) -> float:
    """Returns the part of `rollout.max_age` after which a connection is too old: 0.5 to 1, the same at every check.

    It is computed from the connection's random id, so it takes no memory. Python caches the hash of a string.
    """
    return 0.5 + (hash(connection.id) & 0xFFFF) / 0x20000
