"""How many HTTP connections one listener keeps: the configured caps, lowered to the descriptors of the process."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from service.telemetry.metrics import Metrics


class ConnectionCaps:
    """The cap of all connections and the cap of one address.

    `name` is the setting `limits.<name>` that holds the cap, and the label of its metric. `cap_per_address` is None
    behind a proxy, whose address every client shares.
    """

    def __init__(self, name: str, cap: int, cap_per_address: int | None, metrics: Metrics) -> None:
        self._name = name
        self._configured = cap
        self._per_address = cap_per_address
        self.counts_addresses = cap_per_address is not None
        """Whether each address has a cap."""
        self._metrics = metrics
        self._has_hit_lowered_cap = False
        self.lower(cap)

    @property
    def max_connections(self) -> int:
        """The cap of all connections that is in force now."""
        if self._lowered >= self._configured:
            return self._configured
        return min(self._configured, max(self._lowered, self._spare() if self._spare is not None else 0))

    def lower(self, cap: int, spare: Callable[[], int] | None = None) -> None:
        """Lowers the cap to `cap`, or to the result of `spare` while that is larger. The configured cap stays the upper
        limit."""
        self._lowered, self._spare = cap, spare
        self._certain = min(cap, self._configured)
        self._certain_per_address = (
            inf if self._per_address is None else min(self._per_address, max(1, self._certain // 2))
        )

    def may_be_full(self, total: int, of_address: int) -> bool:
        """A cheap check before `is_address_full` and `is_full`: False if neither can be true."""
        return total >= self._certain or of_address >= self._certain_per_address

    def is_address_full(self, count: int) -> bool:
        """Whether an address with `count` connections is at its cap; counts a hit in the metrics."""
        if self._per_address is None or not count:
            return False
        cap = self._per_address
        if self.max_connections < self._configured:
            cap = min(cap, max(1, self.max_connections // 2))  # under a lowered cap, one address leaves half to others
        if count < cap:
            return False
        self._count_hit(f"{self._name}_per_ip", is_lowered=cap < self._per_address)
        return True

    def is_full(self, total: int) -> bool:
        """Whether the listener with `total` connections is at its cap; counts a hit in the metrics."""
        cap = self.max_connections
        if total < cap:
            return False
        self._count_hit(self._name, is_lowered=cap < self._configured)
        return True

    def pop_lowered_cap_hit(self) -> bool:
        """Whether a cap below the configured one was hit since the last call."""
        has_hit, self._has_hit_lowered_cap = self._has_hit_lowered_cap, False
        return has_hit

    def _count_hit(self, label: str, *, is_lowered: bool) -> None:
        self._has_hit_lowered_cap |= is_lowered
        self._metrics.limits.limit_hits.labels(limit=label).inc()
