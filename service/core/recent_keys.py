"""Counts different keys in a sliding window, with a maximum."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import islice, takewhile
from typing import Generic, TypeVar

from service.core.clock import Clock

Key = TypeVar("Key", bound=Hashable)

PRECISION = 0.125
"""Seconds to which the time of an addition is rounded down. Keys that are added together share one float object, which saves
memory."""
_SEARCHES = 64
"""Searches for the oldest keys in the time in which all keys are evicted. One search of a dictionary passes all free places."""


class RecentKeys(Generic[Key]):
    """Different keys that were added in the last `window` seconds. Adding a key again starts its window again."""

    def __init__(self, clock: Clock, window: float, max_keys: int) -> None:
        """`window`: seconds, with a precision of `PRECISION`. Above `max_keys` keys, the one that was added longest ago is
        evicted."""
        self._clock = clock
        self._window = window
        self._max_keys = max_keys
        self._now = 0.0
        self._added: dict[Key, float] = {}
        """The monotonic time at which each key was last added, the oldest first. Not an OrderedDict, which takes 45 bytes more a
        key."""
        self._oldest: list[tuple[Key, float]] = []
        """The result of the last search for the oldest keys, the oldest one last. A key may have been evicted or added since."""

    def add(self, key: Key) -> None:
        """Counts the key from now on."""
        now = self._clock.monotonic()
        if not 0.0 <= now - self._now < PRECISION:
            self._now = now // PRECISION * PRECISION
        added = self._added
        added.pop(key, None)
        added[key] = self._now
        if len(added) > self._max_keys:
            self._evict_oldest()

    def __iter__(self) -> Iterator[Key]:
        self._evict_old()
        return iter(self._added)

    def __len__(self) -> int:
        self._evict_old()
        return len(self._added)

    def _evict_old(self) -> None:
        since = self._clock.monotonic() - self._window
        old = sum(1 for _ in takewhile(lambda added: added < since, self._added.values()))
        for key in list(islice(self._added, old)):
            del self._added[key]

    def _evict_oldest(self) -> None:
        while True:
            if not self._oldest:
                self._oldest = list(islice(self._added.items(), 1 + self._max_keys // _SEARCHES))[::-1]
            key, added = self._oldest.pop()
            if self._added.get(key) == added:
                del self._added[key]
                return
