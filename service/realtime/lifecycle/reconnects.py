"""Asks clients to reconnect, usually to another node, and closes their connections evenly over time.

reconnects.schedule(registry, over=15.0, reason="shutdown")

Clients return evenly because they are closed evenly, also clients that ignore `reconnect`. So the delay in `reconnect` is short:
it only separates clients that are closed in one tick. One timer serves all connections (docs/adr/0021-rollout.md).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from service.core.backoff import GOLDEN_RATIO
from service.core.clock import Clock, Timer
from service.protocol.close import CloseCode
from service.protocol.messages import Reconnect
from service.realtime.connections.connection import Connection
from service.telemetry.metrics import Metrics

Reason = Literal["shutdown", "age", "rebalance"]
"""Why a client must reconnect: its node shuts down, its connection is old, or other nodes have fewer connections."""

NOTICE = 1.0
"""Maximum seconds from `reconnect` to the close. The client's commands are still answered meanwhile."""
MIN_DELAY = 0.1
MAX_DELAY = 1.0
"""Seconds from its close that a client is asked to wait. The maximum covers a stall of the event loop. It is short, because the
client gets no events meanwhile."""
TICK = 0.02
"""Minimum seconds between two steps."""
assert TICK < MAX_DELAY  # noqa: S101  # else the clients of one tick would return together
SLICE = 500
"""Maximum number of connections that one step notifies, and that it closes."""
CATCH_UP_RATE = 1.25
"""The factor of the planned rate at which a batch closes connections after the event loop was stalled."""
MAX_PEAK = 1.5
"""The maximum factor of the planned rate at which clients reach the other nodes (docs/adr/0021-rollout.md)."""
assert CATCH_UP_RATE < MAX_PEAK  # noqa: S101  # random delays add the rest
MAX_CATCH_UP = 0.1
"""Maximum seconds for which a late step catches up."""


class ReconnectScheduler:
    """Schedules reconnects: notifies each connection, then closes it."""

    def __init__(
        self, clock: Clock, metrics: Metrics, before_close: Callable[[Connection], None] = lambda connection: None
    ) -> None:
        """`before_close` is called for each connection that is closed."""
        self._before_close = before_close
        self._clock = clock
        self._metrics = metrics
        self._scheduled: set[Connection] = set()
        self._batches: list[_Batch] = []
        self._timer: Timer | None = None
        self._delay_ratio = random.random()  # noqa: S311  # spreads load, guards nothing
        """The delay of the next client: 0 is MIN_DELAY, 1 is MAX_DELAY."""

    def schedule(self, connections: Iterable[Connection], *, over: float, reason: Reason) -> int:
        """Schedules the reconnect of connections, except those that are already scheduled or closing.

        Each one gets `reconnect` with its own delay, and is then closed with 1012. The closes are spread evenly over `over`
        seconds. Returns the number of scheduled connections.
        """
        added = [one for one in connections if one.closing is None and one not in self._scheduled]
        if added:
            self._scheduled.update(added)
            self._batches.append(_Batch(added, reason, over, self._clock.monotonic()))
            self._step()
        return len(added)

    def is_scheduled(self, connection: Connection) -> bool:
        """Returns True if the connection is scheduled and not closed yet."""
        return connection in self._scheduled

    def __len__(self) -> int:
        return len(self._scheduled)

    def cancel_unnotified(self) -> None:
        """Cancels the reconnects of clients that have not been notified."""
        for batch in self._batches:
            self._scheduled.difference_update(batch.waiting)
            batch.waiting.clear()

    def skip_delays(self) -> None:
        """Closes all scheduled connections as fast as the loop can."""
        for batch in self._batches:
            batch.over = 0.0
        self._step()

    def remove(self, connection: Connection) -> None:
        """Removes a connection that has ended. Does nothing if it is not scheduled."""
        self._scheduled.discard(connection)

    def close(self) -> None:
        """Cancels all reconnects."""
        if self._timer is not None:
            self._timer.cancel()
        self._batches.clear()
        self._scheduled.clear()

    def _step(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock.monotonic()
        for batch in self._batches:
            for connection in batch.take_due_notices(now):
                self._notify(connection, batch.reason)
            for connection in batch.take_due_closes(now):
                if connection in self._scheduled:
                    self._before_close(connection)
                    connection.close(CloseCode.RESTART, _CLOSE_REASONS[batch.reason])
        self._batches = [batch for batch in self._batches if not batch.is_done]
        if self._batches:
            next_due = min(batch.next_due for batch in self._batches)
            self._timer = self._clock.call_later(max(TICK, next_due - now), self._step)

    def _notify(self, connection: Connection, reason: Reason) -> None:
        if connection not in self._scheduled or connection.closing is not None:
            return
        self._delay_ratio = (self._delay_ratio + GOLDEN_RATIO) % 1.0
        after = MIN_DELAY + (MAX_DELAY - MIN_DELAY) * self._delay_ratio
        connection.reply(Reconnect(after=round(after, 3), reason=reason))
        self._metrics.lifecycle.reconnects_asked.labels(reason).inc()


_CLOSE_REASONS: dict[Reason, str] = {
    "shutdown": "the node restarts",
    "age": "the connection is old",
    "rebalance": "other nodes have fewer connections",
}


class _Batch:
    """Connections that were scheduled together."""

    def __init__(self, connections: Iterable[Connection], reason: Reason, over: float, now: float) -> None:
        self.waiting = deque(connections)
        """Connections that have not been notified."""
        self.reason = reason
        self.over = over
        self._notified: deque[Connection] = deque()
        """Connections that have been notified and not closed."""
        self._size = len(self.waiting)
        self._started_at = self._stepped_at = now
        self._notified_count = self._closed_count = 0
        self._credit = 1.0
        """Connections that this step may close."""

    @property
    def is_done(self) -> bool:
        """True if no connection is left."""
        return not self.waiting and not self._notified

    @property
    def next_due(self) -> float:
        """Monotonic seconds at which the next connection must be notified or closed."""
        each = self.over / self._size
        close = self._started_at + (self._closed_count + 1) * each
        notice = self._started_at + (self._notified_count + 1) * each - NOTICE
        return min(close, notice) if self.waiting else close

    def take_due_notices(self, now: float) -> list[Connection]:
        """Removes and returns the connections to notify now."""
        count = min(self._due(now + NOTICE) - self._notified_count, len(self.waiting), SLICE)
        due = [self.waiting.popleft() for _ in range(count)]
        self._notified.extend(due)
        self._notified_count += len(due)
        return due

    def take_due_closes(self, now: float) -> list[Connection]:
        """Removes and returns the connections to close now. Call `take_due_notices` before."""
        count = min(self._due(now) - self._closed_count, len(self._notified), SLICE)
        if self.over > 0:
            rate = CATCH_UP_RATE * self._size / self.over
            self._credit = min(self._credit + rate * (now - self._stepped_at), max(1.0, rate * MAX_CATCH_UP))
            count = min(count, int(self._credit))
            self._credit -= count
        self._stepped_at = now
        self._closed_count += count
        return [self._notified.popleft() for _ in range(count)]

    def _due(self, now: float) -> int:
        """Returns how many closes are due until `now`. The small addend covers rounding errors of added times."""
        if self.over <= 0:
            return self._size
        return min(self._size, int((now - self._started_at) / self.over * self._size + 1e-6))
