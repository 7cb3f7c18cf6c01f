"""The Clock port: the only source of time for the rooms below the edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Something that will happen once."""

    def cancel(self) -> None:
        """Makes sure that it does not happen; harmless after it has."""


class Clock(Protocol):
    """Time that tests can move."""

    def wall(self) -> float:
        """Seconds since the Unix epoch; may jump."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never jumps or goes back."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls back once, `delay` seconds from now, on the event loop's thread."""


def milliseconds(clock: Clock) -> int:
    """Now, in milliseconds since the Unix epoch."""
    return int(clock.wall() * 1000)
