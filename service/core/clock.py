"""The Clock port: the only source of time for core and realtime code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancels the call. Does nothing after the call was made."""


class Clock(Protocol):
    """Time that tests can control."""

    def wall(self) -> float:
        """Returns seconds since the Unix epoch. May jump forward or back."""

    def monotonic(self) -> float:
        """Returns seconds since a fixed time. Never goes back."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls `callback` once on the event loop's thread, after `delay` seconds."""


def milliseconds(clock: Clock) -> int:
    """Returns the current time in milliseconds since the Unix epoch."""
    return int(clock.wall() * 1000)
