"""How long to wait before something is tried again."""

from __future__ import annotations

import random


class Backoff:
    """Seconds from `first` to `most`, doubled each time; of each, half is left to chance, so that many do not come at once."""

    __slots__ = ("_first", "_most", "_next")

    def __init__(self, first: float, most: float) -> None:
        self._first = first
        self._most = most
        self._next = first

    def next(self) -> float:
        """The next wait."""
        wait, self._next = self._next, min(2 * self._next, self._most)
        return wait * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing

    def reset(self) -> None:
        """After a success: begins anew."""
        self._next = self._first
