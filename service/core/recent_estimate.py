"""Estimates how many different keys were added in a sliding window, in a fixed memory of a few bytes a key."""

from __future__ import annotations

from math import log

from service.core.clock import Clock

_STEPS = 200
"""Steps of a window, which are its precision."""
_STAMPS = 255
"""Different stamps of a place. 0 is a free place."""
_SWEEP_STEPS = _STAMPS - _STEPS - 5
"""Steps after which expired stamps are removed, before they could be taken for new ones."""
_PLACES = 4
"""Places for each expected key."""


class RecentEstimate:
    """Estimates the number of different keys of the last `window` seconds. Adding a key again starts its window again.

    A key marks one of many places by its hash, with the time as a stamp of one byte. Two keys may have the same place, so the
    number is estimated from the free places (linear counting). Up to `max_keys` keys, the standard error is below 0.5 %. A few
    keys are counted exactly, unless two of them have the same place.
    """

    def __init__(self, clock: Clock, window: float, max_keys: int) -> None:
        """`max_keys`: the expected maximum. Above it, the estimate becomes less exact."""
        self._clock = clock
        self._step = window / _STEPS
        size = 1 << (_PLACES * max_keys - 1).bit_length()
        self._mask = size - 1
        self._places = bytearray(size)
        self._swept_at = int(clock.monotonic() / self._step)
        """The step at which expired stamps were removed last."""

    def add(self, key: int) -> None:
        """Counts a key from now on. `key`: its hash, of which each bit must depend on the whole key."""
        step = int(self._clock.monotonic() / self._step)
        if step - self._swept_at >= _SWEEP_STEPS:
            self._sweep(step)
        self._places[key & self._mask] = 1 + step % _STAMPS

    def __len__(self) -> int:
        self._sweep(int(self._clock.monotonic() / self._step))
        size = self._mask + 1
        return round(size * log(size / max(1, self._places.count(0))))

    def _sweep(self, step: int) -> None:
        passed = step - self._swept_at
        self._swept_at = step
        if passed <= 0:
            return
        newest = max(0, passed - _SWEEP_STEPS + 1)  # the lowest possible age, in steps
        keep = bytearray(range(256))
        for stamp in range(1, _STAMPS + 1):
            age = newest + (step - (stamp - 1) - newest) % _STAMPS
            if age >= _STEPS:
                keep[stamp] = 0
        self._places = self._places.translate(keep)
