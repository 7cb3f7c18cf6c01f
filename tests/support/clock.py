"""Clocks for tests: one that moves only when a test advances it, and one whose wall time is wrong."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

from service.adapters.clock import SystemClock

START = 1_795_374_000.0
"""Wall time at which every `FakeClock` begins."""


@dataclass(order=True)
class FakeTimer:
    """One scheduled callback. Timers that are due at the same time fire in the order in which they were set."""

    due: float
    order: int
    callback: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class FakeClock:
    """A Clock that `advance` moves. It fires the timers that become due, in order, each at its own time."""

    def __init__(self, wall: float = START) -> None:
        self._wall = wall
        self._monotonic = 1000.0
        self._timers: list[FakeTimer] = []
        self._set = 0

    def wall(self) -> float:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        self._set += 1
        timer = FakeTimer(self._monotonic + max(0.0, delay), self._set, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def advance(self, seconds: float) -> None:
        """Moves wall and monotonic time. Timers that a callback sets fire too, if they become due within the same
        move."""
        if seconds < 0:
            raise ValueError("time does not go back; see jump_wall")
        end = self._monotonic + seconds
        while self._timers and self._timers[0].due <= end:
            timer = heapq.heappop(self._timers)
            self._move_to(timer.due)
            if not timer.cancelled:
                timer.callback()
        self._move_to(end)

    def jump_wall(self, seconds: float) -> None:
        """Sets the wall clock forward or back, as an administrator or NTP does. No timer fires."""
        self._wall += seconds

    def stall(self, seconds: float) -> None:
        """Postpones all timers, as an event loop does that is blocked for so long."""
        for timer in self._timers:
            timer.due += seconds

    @property
    def next_due(self) -> float:
        """The monotonic time at which the next timer is due."""
        return min(timer.due for timer in self._timers if not timer.cancelled)

    @property
    def pending(self) -> int:
        """The number of timers that have neither fired nor been cancelled."""
        return sum(not timer.cancelled for timer in self._timers)

    def _move_to(self, monotonic: float) -> None:
        self._wall += monotonic - self._monotonic
        self._monotonic = monotonic


class WrongClock(SystemClock):
    """A node's clock whose wall time is `ahead` seconds ahead. Its timers are correct."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead = ahead

    def wall(self) -> float:
        return super().wall() + self.ahead
