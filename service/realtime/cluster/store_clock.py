"""The time of the store that all nodes share, for whatever nodes have to agree on.

A node's own clock may be wrong. What it alone decides (when a token has expired) goes by its own clock. What other nodes act on
(since when tokens are revoked, until when an entry in NATS holds, when an event was accepted) goes by the store's.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import structlog

from service.core.clock import Clock
from service.telemetry.metrics import Metrics

TOLERATED = 0.5
"""Seconds of difference up to which the node's own clock will do."""
WARNED = 2.0
"""Seconds of difference from which it is logged; what an alert tells of as well."""
STALE = 60.0
"""Seconds after which the reading of a server that says nothing more no longer counts."""
SLOW = 1.0
"""Seconds: an answer that took longer tells too little."""

_log = structlog.get_logger("clock")


class StoreClock:
    """A Clock whose `wall` is the store's time, as far as that differs from the node's by more than TOLERATED.

    Without any reading (in memory), and while the difference is small, it is the node's own clock, at no cost.
    """

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self.monotonic = clock.monotonic
        self.call_later = clock.call_later
        self.wall: Callable[[], float] = clock.wall
        """As the Clock port says, of the store."""
        self._readings: dict[str, tuple[float, float]] = {}
        """By server: what to add to the monotonic clock to have its time, and when it said so."""
        self._ahead = 0.0
        self._warned_at: float | None = None
        metrics.broker.broker_clock_skew_seconds.set_function(lambda: self.skew)

    @property
    def skew(self) -> float:
        """Seconds by which the node's clock is ahead of the store's (below 0: behind it)."""
        return self._clock.wall() - self._store_time() if self._readings else 0.0

    def read(self, server: str, time: float, took: float) -> None:
        """Takes in what a server's clock shows (seconds since the Unix epoch) in an answer that has just come, after so many
        seconds."""
        now = self.monotonic()
        if took > SLOW and self._readings:
            return
        self._readings[server] = (time - now + took / 2, now)
        if len(self._readings) > 1:
            self._readings = {name: one for name, one in self._readings.items() if now - one[1] <= STALE}
        # The servers of a Cluster have a clock each. One that is wrong alone does not decide.
        self._ahead = median(ahead for ahead, _ in self._readings.values())
        skew = self.skew
        self.wall = self._store_time if abs(skew) > TOLERATED else self._clock.wall
        self._tell(skew, now)

    def _store_time(self) -> float:
        return self._ahead + self.monotonic()

    def _tell(self, skew: float, now: float) -> None:
        if self._warned_at is None and abs(skew) > WARNED:
            self._warned_at = now
            _log.warning("clocks_differ", seconds=round(skew, 3))
        elif self._warned_at is not None and abs(skew) <= TOLERATED:
            _log.info("clocks_agree", seconds=round(now - self._warned_at, 1))
            self._warned_at = None
