"""How long this node's entries last in the store, and when the entries of other nodes can be trusted.

An entry expires `ttl` seconds after its last renewal. Each node renews its own entries at a third of that. After the store was
away, entries of live nodes may be missing until those nodes have added them again: until then nobody is reported as gone.
"""

from __future__ import annotations

from math import inf

from service.core.clock import Clock

RETRY_INTERVAL = 1.0
"""Seconds between two checks while the store is away, or after an interruption."""


class Lease:
    """The state of this node's relation to the store, by the monotonic clock."""

    def __init__(self, clock: Clock, ttl: float) -> None:
        self._clock = clock
        self.ttl = ttl
        """Seconds that an entry lasts after a renewal."""
        self.is_in_doubt = False
        """Whether the store may have lost entries, or be away."""
        self._renewed_at = -inf
        self._answered_at = -inf
        self._returned_at = -inf
        """When the store last came back, or turned out to have lost entries."""

    @property
    def renewal_interval(self) -> float:
        """Seconds between two renewals: two may fail before an entry expires."""
        return self.ttl / 3

    @property
    def check_interval(self) -> float:
        """Seconds between two checks of entries and channels: two between renewals."""
        return self.renewal_interval / 2

    @property
    def next_check_in(self) -> float:
        """Seconds until the next check, after one has ended."""
        return min(RETRY_INTERVAL, self.check_interval) if self.is_in_doubt else self.check_interval

    @property
    def soonest_check_in(self) -> float:
        """Seconds until a check is allowed again: interruptions cause one a RETRY_INTERVAL at most."""
        return max(0.0, self._renewed_at + RETRY_INTERVAL - self._clock.monotonic())

    @property
    def is_renewal_due(self) -> bool:
        """Whether the entries must be renewed now."""
        return self.is_in_doubt or self._clock.monotonic() - self._renewed_at >= self.renewal_interval

    @property
    def is_stable(self) -> bool:
        """Whether every live node has had the time to add again what the store lost: a renewal interval."""
        return self._stable_for() >= self.renewal_interval

    @property
    def has_expired_elsewhere(self) -> bool:
        """Whether the store has been there for a whole TTL, so that an expired entry means a node that is gone."""
        return self._stable_for() >= self.ttl

    def start(self) -> None:
        """Counts from now, as if everything had just been renewed."""
        self._renewed_at = self._answered_at = self._clock.monotonic()

    def doubt(self) -> None:
        """Records that the store may have lost entries, or be away."""
        self.is_in_doubt = True

    def begin_renewal(self) -> float:
        """Records that a renewal starts; returns its time."""
        self.is_in_doubt = False
        self._renewed_at = self._clock.monotonic()
        return self._renewed_at

    def end_renewal(self, started_at: float, *, has_lost_entries: bool) -> None:
        """Records the store's answer to a renewal that started then."""
        # If the last answer is older than half a TTL, entries of other nodes may have expired during the silence. A shorter
        # silence is harmless: what was renewed before it has a sixth of the TTL left at least.
        was_silent = self._clock.monotonic() - self._answered_at > self.ttl / 2
        if has_lost_entries or was_silent:
            self._returned_at = self._clock.monotonic()
        self._answered_at = started_at

    def record_answer(self) -> None:
        """Records that the store has answered another call now."""
        self._answered_at = self._clock.monotonic()

    def _stable_for(self) -> float:
        return self._clock.monotonic() - self._returned_at
