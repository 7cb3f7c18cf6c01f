"""Limits the upgrades that a node accepts, and tells each refused client its own time to retry. Pure."""

from __future__ import annotations

from service.core.backoff import GOLDEN_RATIO, MAX_RETRY_AFTER
from service.core.limits import Rate
from service.core.token_bucket import TokenBucket


class AcceptThrottle:
    """A token bucket that tells refused clients different times to retry, so that they return at the rate.

    Retry slots are not reserved. Any client is accepted while there is a token.
    """

    __slots__ = ("_bucket", "_last_slot", "_overflow", "_rate")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._bucket = TokenBucket(rate, now)
        self._last_slot = now
        """The time of the last retry slot that was assigned."""
        self._overflow = 0.0
        """The place of the last client without a slot in the second half of the longest wait: 0 to 1."""

    def acquire(self, now: float, weight: float = 1.0) -> float:
        """Acquires a token and returns 0.0; without a token returns the seconds after which to retry.

        `weight` is the part of a slot to assign: less than one for a client that sends two requests for one upgrade.
        """
        return self._assign_slot(now, weight) if self._bucket.acquire(now) else 0.0

    def check(self, now: float, weight: float = 1.0) -> float:
        """Returns what `acquire` would return, without acquiring a token."""
        wait = self.acquire(now, weight)
        if not wait:
            self.refund()
        return wait

    def refund(self) -> None:
        """Returns an acquired token."""
        self._bucket.refund()

    def set_rate(self, rate: Rate, now: float) -> None:
        """Changes the rate."""
        self._rate = rate
        self._bucket.set_rate(rate, now)

    def _assign_slot(self, now: float, weight: float) -> float:
        self._last_slot = max(self._last_slot, now) + weight / self._rate.per_second
        if self._last_slot <= now + MAX_RETRY_AFTER:
            return self._last_slot - now
        # All slots within MAX_RETRY_AFTER are assigned. Further clients retry in its second half, evenly spread.
        self._last_slot = now + MAX_RETRY_AFTER
        self._overflow = (self._overflow + GOLDEN_RATIO) % 1.0
        return MAX_RETRY_AFTER * (1.0 + self._overflow) / 2
