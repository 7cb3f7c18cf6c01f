"""A rate that falls while the event loop is late and rises again: additive increase, multiplicative decrease. Pure."""

from __future__ import annotations

from service.core.limits import Rate

DECREASE_FACTOR = 0.5
"""What a decrease multiplies the rate by."""
DECREASE_INTERVAL = 1.0
"""Seconds between two decreases. The effect of one shows only when the work accepted before it is done."""
INCREASE_PER_SECOND = 0.1
"""Part of the ceiling that is added each second. From half to all takes 5 s."""
MIN_RATIO = 0.05
"""Lowest rate, as part of the ceiling. Clients must get in somewhere, even if every node is slow."""


class AdaptiveRate:
    """Follows the lag of the event loop. `ceiling` is the rate while the lag stays within `max_lag` seconds.

    Burst and rate change together. A full burst would let a crowd in, however slow the node is.
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
        """Whether the rate is below the ceiling."""
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
            # A long gap between measurements proves nothing: the loop stood still, or the process was stopped.
            ratio = min(1.0, self._ratio + INCREASE_PER_SECOND * min(elapsed, DECREASE_INTERVAL))
        ratio = round(ratio, 6)  # or tenths would add up to nearly one
        if ratio != self._ratio:
            self._ratio = ratio
            ceiling = self._ceiling
            self.rate = Rate(ceiling.per_second * ratio, max(1, round(ceiling.burst * ratio)))
