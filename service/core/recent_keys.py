"""A bounded count of different keys in a sliding window."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from service.core.clock import Clock

Key = TypeVar("Key", bound=Hashable)


class RecentKeys(Generic[Key]):
    """Different keys added in the last `window` seconds. A key that is added again counts once, for a window from then on."""

    def __init__(self, clock: Clock, window: float, most: int) -> None:
        """`most`: keys that are kept at most; with more, the one added longest ago is forgotten."""
        self._clock = clock
        self._window = window
        self._most = most
        self._added: OrderedDict[Key, float] = OrderedDict()
        """When each was added last (monotonic), the oldest first."""

    def add(self, key: Key) -> None:
        """Counts the key from now on."""
        self._added[key] = self._clock.monotonic()
        self._added.move_to_end(key)
        if len(self._added) > self._most:
            self._added.popitem(last=False)

    def __iter__(self) -> Iterator[Key]:
        self._forget()
        return iter(self._added)

    def __len__(self) -> int:
        self._forget()
        return len(self._added)

    def _forget(self) -> None:
        since = self._clock.monotonic() - self._window
        while self._added and next(iter(self._added.values())) < since:
            self._added.popitem(last=False)
