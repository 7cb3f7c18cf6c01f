"""A bounded count of different keys in a sliding window."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from service.core.clock import Clock


class RecentKeys:
    """Different keys added in the last `window` seconds. A key that is added again counts once, for a window from then on."""

    def __init__(self, clock: Clock, window: float, most: int) -> None:
        """`most`: keys that are kept at most; with more, the one added longest ago is forgotten."""
        self._clock = clock
        self._window = window
        self._most = most
        self._added: OrderedDict[Hashable, float] = OrderedDict()
        """When each was added last (monotonic), the oldest first."""

    def add(self, key: Hashable) -> None:
        """Counts the key from now on."""
        self._added[key] = self._clock.monotonic()
        self._added.move_to_end(key)
        if len(self._added) > self._most:
            self._added.popitem(last=False)

    def __len__(self) -> int:
        since = self._clock.monotonic() - self._window
        while self._added and next(iter(self._added.values())) < since:
            self._added.popitem(last=False)
        return len(self._added)
