"""How long this node's entries last in the store, and when the entries of other nodes can be trusted.

An entry expires `ttl` seconds after its last renewal. Each node renews its own entries every `ttl / 3` seconds. After an outage
of the store, entries of live nodes may be missing until these nodes add them again. Until then, no user is reported as gone.
"""

from __future__ import annotations

from math import inf

from service.core.clock import Clock

RETRY_INTERVAL = 1.0
"""Seconds between two checks while the store is away, or after an interruption."""


class Lease:
    """Tracks when entries were renewed and when the store answered, by the monotonic clock."""

    def __init__(self, clock: Clock, ttl: float) -> None:
        self._clock = clock
        self.ttl = ttl
        """Seconds that an entry lasts after a renewal."""
        self.is_in_doubt = False
        """True if the store may have lost entries, or may be away."""
        self._renewed_at = -inf
        self._answered_at = -inf
        self._returned_at = -inf
        """Monotonic seconds of the last answer after an outage, or of the last answer that entries were lost."""

    @property
    def renewal_interval(self) -> float:
        """Seconds between two renewals: two may fail before an entry expires."""
        return self.ttl / 3

    @property
    def check_interval(self) -> float:
        """Seconds between two checks of entries and channels: half a renewal interval."""
        return self.renewal_interval / 2

    @property
    def next_check_in(self) -> float:
        """Seconds from the end of a check to the next one."""
        return min(RETRY_INTERVAL, self.check_interval) if self.is_in_doubt else self.check_interval

    @property
    def soonest_check_in(self) -> float:
        """Seconds until an interruption may cause a check: at most one per RETRY_INTERVAL."""
        return max(0.0, self._renewed_at + RETRY_INTERVAL - self._clock.monotonic())

    @property
    def is_renewal_due(self) -> bool:
        """True if the entries must be renewed now."""
        return self.is_in_doubt or self._clock.monotonic() - self._renewed_at >= self.renewal_interval

    @property
    def is_stable(self) -> bool:
        """True if every live node has had time to add lost entries again: one renewal interval."""
        return self._stable_for() >= self.renewal_interval

    @property
    def has_expired_elsewhere(self) -> bool:
        """True if the store has had no outage for a whole TTL. Then an expired entry means that its node is gone."""
        return self._stable_for() >= self.ttl

    @property
    def is_silent(self) -> bool:
        """True if the last answer is older than half a TTL, so that entries of other nodes may have expired since.

        After a shorter time without answers, an entry that was renewed in time still lasts for a sixth of the TTL.
        """
        return self._clock.monotonic() - self._answered_at > self.ttl / 2

    def start(self) -> None:
        """Starts the times as if all entries had just been renewed."""
        self._renewed_at = self._answered_at = self._clock.monotonic()

    def doubt(self) -> None:
        """Records that the store may have lost entries, or may be away."""
        self.is_in_doubt = True

    def begin_renewal(self) -> float:
        """Records that a renewal starts, and returns the time."""
        self.is_in_doubt = False
        self._renewed_at = self._clock.monotonic()
        return self._renewed_at

    def end_renewal(self, started_at: float, *, has_lost_entries: bool) -> None:
        """Records the store's answer to the renewal that started at `started_at`."""
        if has_lost_entries or self.is_silent:
            self._returned_at = self._clock.monotonic()
        self._answered_at = started_at

    def record_answer(self) -> None:
        """Records that the store has now answered a call that is not a renewal."""
        self._answered_at = self._clock.monotonic()

    def _stable_for(self) -> float:
        return self._clock.monotonic() - self._returned_at
