"""The store clock: the store's time, for times that all nodes must agree on.

A node's own clock may be wrong. It is used for times that only this node needs, such as the expiry of a token. The store clock is
used for times that other nodes read: when tokens are revoked, when entries in NATS expire, when an event was accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import structlog

from service.core.clock import Clock
from service.telemetry.metrics import Metrics

MAX_TOLERATED_SKEW = 0.5
"""Seconds of skew up to which the node's own clock is used."""
WARN_SKEW = 2.0
"""Seconds of skew above which a warning is logged; the alert on clock skew has the same threshold."""
READING_TTL = 60.0
"""Seconds for which a reading of a server's time is used."""
MAX_RESPONSE_TIME = 1.0
"""Seconds. The time in a slower response is too imprecise, so it is ignored."""

_log = structlog.get_logger("clock")


class StoreClock:
    """A Clock whose `wall` is the store's time if that differs from the node's time by more than MAX_TOLERATED_SKEW.

    With a smaller skew, and without a reading (as with the broker in memory), it is the node's own clock.
    """

    def __init__(self, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self.monotonic = clock.monotonic
        self.call_later = clock.call_later
        self.wall: Callable[[], float] = clock.wall
        """Returns the store's time, in seconds since the Unix epoch."""
        self._readings: dict[str, tuple[float, float]] = {}
        """For each server, its time minus the monotonic clock, and the monotonic time of the reading."""
        self._offset = 0.0
        """The store's time minus the monotonic clock."""
        self._warned_at: float | None = None
        metrics.broker.broker_clock_skew_seconds.set_function(lambda: self.skew)

    @property
    def skew(self) -> float:
        """Seconds by which the node's clock is ahead of the store's; negative if it is behind."""
        return self._clock.wall() - self._store_time() if self._readings else 0.0

    def record(self, server: str, time: float, response_time: float) -> None:
        """Records a server's time from a response that has just arrived.

        Args:
            server: Any name of the server.
            time: Seconds since the Unix epoch.
            response_time: Seconds from the request to the response.
        """
        now = self.monotonic()
        if response_time > MAX_RESPONSE_TIME and self._readings:
            return
        self._readings[server] = (time - now + response_time / 2, now)
        if len(self._readings) > 1:
            self._readings = {name: one for name, one in self._readings.items() if now - one[1] <= READING_TTL}
        # Each server of a Cluster has its own clock. The median ignores a single wrong one.
        self._offset = median(offset for offset, _ in self._readings.values())
        skew = self.skew
        self.wall = self._store_time if abs(skew) > MAX_TOLERATED_SKEW else self._clock.wall
        self._log_skew(skew, now)

    def _store_time(self) -> float:
        return self._offset + self.monotonic()

    def _log_skew(self, skew: float, now: float) -> None:
        if self._warned_at is None and abs(skew) > WARN_SKEW:
            self._warned_at = now
            _log.warning("clocks_differ", seconds=round(skew, 3))
        elif self._warned_at is not None and abs(skew) <= MAX_TOLERATED_SKEW:
            _log.info("clocks_agree", seconds=round(now - self._warned_at, 1))
            self._warned_at = None
