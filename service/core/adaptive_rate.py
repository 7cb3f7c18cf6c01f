"""A rate that falls while the node is slow and rises again: additive increase, multiplicative decrease, as in TCP. Pure."""

from __future__ import annotations

from service.core.limits import Rate

DECREASE = 0.5
"""Of the present rate, what is left after a decrease."""
DECREASE_INTERVAL = 1.0
"""Seconds between two decreases: what a decrease changes shows only after what was accepted before it is done."""
INCREASE = 0.1
"""Of the ceiling, what is added each second: from a half back to all in 5 s."""
FLOOR = 0.05
"""Of the ceiling, the least: clients must get in somewhere, even if every node is slow."""


class AdaptiveRate:
    """Follows how late the event loop is. `ceiling` is the rate of a node that is never later than `max_lag` seconds.

    Burst and rate change together: a full bucket would let a crowd in however slow the node is.
    """

    __slots__ = ("_ceiling", "_decreased", "_max_lag", "_observed", "_share", "rate")

    def __init__(self, ceiling: Rate, max_lag: float, now: float) -> None:
        self._ceiling = ceiling
        self._max_lag = max_lag
        self._share = 1.0
        """Of the ceiling."""
        self._observed = now
        self._decreased = now - DECREASE_INTERVAL
        self.rate = ceiling
        """The present one."""

    @property
    def is_reduced(self) -> bool:
        """Whether it is below the ceiling."""
        return self._share < 1.0

    def observe(self, lag: float, now: float) -> None:
        """Takes a measurement of the lag, in seconds."""
        elapsed, self._observed = now - self._observed, now
        if lag > self._max_lag:
            if now < self._decreased + DECREASE_INTERVAL:
                return
            self._decreased = now
            share = max(FLOOR, self._share * DECREASE)
        else:
            # Of a long silence nothing is known: the loop stood still, or the process was stopped.
            share = min(1.0, self._share + INCREASE * min(elapsed, DECREASE_INTERVAL))
        share = round(share, 6)  # or tenths would add up to nearly one
        if share != self._share:
            self._share = share
            ceiling = self._ceiling
            self.rate = Rate(ceiling.per_second * share, max(1, round(ceiling.burst * share)))
