"""A rate that falls while the event loop is late and rises again: additive increase, multiplicative decrease. Pure."""

from __future__ import annotations

from service.core.limits import Rate

DECREASE_FACTOR = 0.5
"""The factor by which a decrease multiplies the rate."""
DECREASE_INTERVAL = 1.0
"""Seconds between two decreases. A decrease takes effect only when the earlier work is done."""
INCREASE_PER_SECOND = 0.1
"""Part of the ceiling that is added each second: from half to the whole ceiling in 5 s."""
MIN_RATIO = 0.05
"""Lowest rate, as part of the ceiling. Clients must be able to connect even if every node is slow."""


class AdaptiveRate:
    """Follows the lag of the event loop. `ceiling` is the rate while the lag stays within `max_lag` seconds.

    Burst and rate change together, because a full burst would accept many clients even on a slow node.
    """

    __slots__ = ("_ceiling", "_decreased_at", "_max_lag", "_observed_at", "_ratio", "rate")

    def __init__(self, ceiling: Rate, max_lag: float, now: float) -> None:
        self._ceiling = ceiling
        self._max_lag = max_lag
        self._ratio = 1.0
        """The current rate as part of the ceiling."""
        self._observed_at = now
        self._decreased_at = now - DECREASE_INTERVAL
        self.rate = ceiling
        """The current rate."""

    @property
    def is_reduced(self) -> bool:
        """True if the rate is below the ceiling."""
        return self._ratio < 1.0

    def observe(self, lag: float, now: float) -> None:
        """Adapts the rate to one measurement of the lag, in seconds."""
        elapsed, self._observed_at = now - self._observed_at, now
        if lag > self._max_lag:
            if now < self._decreased_at + DECREASE_INTERVAL:
                return
            self._decreased_at = now
            ratio = max(MIN_RATIO, self._ratio * DECREASE_FACTOR)
        else:
            # After a long gap between measurements, the loop was stalled or the process was stopped. So it counts as short.
            ratio = min(1.0, self._ratio + INCREASE_PER_SECOND * min(elapsed, DECREASE_INTERVAL))
        ratio = round(ratio, 6)  # else tenths would add up to slightly less than one
        if ratio != self._ratio:
            self._ratio = ratio
            ceiling = self._ceiling
            self.rate = Rate(ceiling.per_second * ratio, max(1, round(ceiling.burst * ratio)))
