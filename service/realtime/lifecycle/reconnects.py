"""Departures: connections that this node asks to come back, as a rule to another node, and how they go: evenly.

What spreads the clients' return are the even closes: whatever delays of their own clients add to evenly spread moments, no more
of them come at a time than were closed at a time. So a client is asked to stay away only so long that those of one tick come one
by one, and one that knows nothing of `reconnect` comes back as evenly. One timer walks through all (docs/adr/0021-rollout.md).
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import Literal

from service.core.backoff import GOLDEN_RATIO
from service.core.clock import Clock, Timer
from service.protocol.close import CloseCode
from service.protocol.messages import Reconnect
from service.realtime.connections.connection import Connection
from service.telemetry.metrics import Metrics

Reason = Literal["shutdown", "age", "rebalance"]
"""Why a client is asked: the node goes away; the connection is old; other nodes have fewer connections."""

NOTICE = 1.0
"""Seconds between telling a client and closing its connection, at most: what it has asked for meanwhile is still answered."""
SOONEST = 0.1
"""Seconds after its close that a client comes back at the soonest …"""
LATEST = 1.0
"""… and at the latest. As long as a loop may stand still; each second more is one without events."""
TICK = 0.02
"""Seconds between two steps of the walk, at least."""
assert TICK < LATEST  # noqa: S101  # or the closes of one tick would come back together
SLICE = 500
"""Connections that are told and closed in one step, at most."""
HASTE = 1.25
"""How much faster than planned a walk goes that is behind, because the loop stood still. The other nodes
count on less than MAX_PEAK."""
MAX_PEAK = 1.5
"""Times the planned rate at which clients reach the other nodes, at most (docs/adr/0021-rollout.md)."""
assert HASTE < MAX_PEAK  # noqa: S101  # the rest is chance
STILL = 0.1
"""Seconds between two steps that are made good for in one."""


class ReconnectScheduler:
    """Those who have been asked to go and have not gone yet. A connection is asked once at a time."""

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._asked: set[Connection] = set()
        self._rounds: list[_Batch] = []
        self._timer: Timer | None = None
        self._place = random.random()  # noqa: S311  # spreads load, guards nothing
        """Where between SOONEST and LATEST the next client comes back: from 0 to 1."""

    def ask(self, connections: Iterable[Connection], *, over: float, reason: Reason) -> int:
        """Asks connections to come back: each is told `reconnect`, with a delay of its own, and closed with 1012; the closes
        are spread evenly over `over` seconds, the last one at their end. Passes over those who depart already.

        Returns how many are asked. Who has gone before its turn is skipped.
        """
        fresh = [one for one in connections if one.closing is None and one not in self._asked]
        if fresh:
            self._asked.update(fresh)
            self._rounds.append(_Batch(fresh, reason, over, self._clock.monotonic()))
            self._walk()
        return len(fresh)

    def is_departing(self, connection: Connection) -> bool:
        """Whether it has been asked to go."""
        return connection in self._asked

    def __len__(self) -> int:
        """How many have been asked and are still here."""
        return len(self._asked)

    def withdraw(self) -> None:
        """Takes back what was asked of those who have not been told yet: they stay."""
        for one in self._rounds:
            self._asked.difference_update(one.waiting)
            one.waiting.clear()

    def hurry(self) -> None:
        """Closes all who have been asked as fast as the loop can."""
        for one in self._rounds:
            one.over = 0.0
        self._walk()

    def gone(self, connection: Connection) -> None:
        """A connection is over, whoever ended it. To be told of every one."""
        self._asked.discard(connection)

    def close(self) -> None:
        """Ends the walk."""
        if self._timer is not None:
            self._timer.cancel()
        self._rounds.clear()
        self._asked.clear()

    def _walk(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = self._clock.monotonic()
        for one in self._rounds:
            for connection in one.to_tell(now):
                self._tell(connection, one.reason)
            for connection in one.to_close(now):
                if connection in self._asked:
                    connection.close(CloseCode.RESTART, _WHY[one.reason])
        self._rounds = [one for one in self._rounds if not one.is_over]
        if self._rounds:
            due = min(one.next_due for one in self._rounds)
            self._timer = self._clock.call_later(max(TICK, due - now), self._walk)

    def _tell(self, connection: Connection, reason: Reason) -> None:
        if connection not in self._asked or connection.closing is not None:
            return
        self._place = (self._place + GOLDEN_RATIO) % 1.0
        after = SOONEST + (LATEST - SOONEST) * self._place
        connection.reply(Reconnect(after=round(after, 3), reason=reason))
        self._metrics.lifecycle.reconnects_asked.labels(reason).inc()


_WHY: dict[Reason, str] = {
    "shutdown": "the node restarts",
    "age": "the connection is old",
    "rebalance": "other nodes have fewer connections",
}


class _Batch:
    """Those who were asked together."""

    def __init__(self, connections: Iterable[Connection], reason: Reason, over: float, now: float) -> None:
        self.waiting = deque(connections)
        """Those who have not been told yet."""
        self.reason = reason
        self.over = over
        self._told: deque[Connection] = deque()
        """Those who have, and have not been closed yet."""
        self._size = len(self.waiting)
        self._start = self._last = now
        self._told_count = self._closed_count = 0
        self._credit = 1.0
        """Connections that may be closed in this step."""

    @property
    def is_over(self) -> bool:
        """Whether there is nobody left."""
        return not self.waiting and not self._told

    @property
    def next_due(self) -> float:
        """When somebody is to be told or closed."""
        each = self.over / self._size
        close = self._start + (self._closed_count + 1) * each
        tell = self._start + (self._told_count + 1) * each - NOTICE
        return min(close, tell) if self.waiting else close

    def to_tell(self, now: float) -> list[Connection]:
        """Whoever is to be told now."""
        count = min(self._due(now + NOTICE) - self._told_count, len(self.waiting), SLICE)
        some = [self.waiting.popleft() for _ in range(count)]
        self._told.extend(some)
        self._told_count += len(some)
        return some

    def to_close(self, now: float) -> list[Connection]:
        """Whoever is to be closed now; to be asked after `to_tell`."""
        count = min(self._due(now) - self._closed_count, len(self._told), SLICE)
        if self.over > 0:
            pace = HASTE * self._size / self.over
            self._credit = min(self._credit + pace * (now - self._last), max(1.0, pace * STILL))
            count = min(count, int(self._credit))
            self._credit -= count
        self._last = now
        self._closed_count += count
        return [self._told.popleft() for _ in range(count)]

    def _due(self, now: float) -> int:
        """How many closes are due until then. The bit more is for times that were added up."""
        if self.over <= 0:
            return self._size
        return min(self._size, int((now - self._start) / self.over * self._size + 1e-6))
