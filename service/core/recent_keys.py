"""Counts different keys in a sliding window, with a maximum."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from service.core.clock import Clock

Key = TypeVar("Key", bound=Hashable)


class RecentKeys(Generic[Key]):
    """Different keys that were added in the last `window` seconds. Adding a key again starts its window again."""

    def __init__(self, clock: Clock, window: float, max_keys: int) -> None:
        """`window`: seconds. Above `max_keys` keys, the one that was added longest ago is evicted."""
        self._clock = clock
        self._window = window
        self._max_keys = max_keys
        self._added: OrderedDict[Key, float] = OrderedDict()
        """The monotonic time at which each key was last added, the oldest first."""

    def add(self, key: Key) -> None:
        """Counts the key from now on."""
        self._added[key] = self._clock.monotonic()
        self._added.move_to_end(key)
        if len(self._added) > self._max_keys:
            self._added.popitem(last=False)

    def __iter__(self) -> Iterator[Key]:
        self._evict_old()
        return iter(self._added)

    def __len__(self) -> int:
        self._evict_old()
        return len(self._added)

    def _evict_old(self) -> None:
        since = self._clock.monotonic() - self._window
        while self._added and next(iter(self._added.values())) < since:
            self._added.popitem(last=False)
