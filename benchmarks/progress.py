"""Progress and remaining time on stderr; stdout has results only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO


class Progress:
    """One overwritten line on a terminal; elsewhere one line for each measurement."""

    def __init__(self, stream: TextIO, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._steps = steps
        self._clock = clock
        self._began = clock()
        self._done = 0
        self._live = stream.isatty()

    def begins(self, what: str) -> None:
        """Reports the start of a measurement."""
        line = f"[{self._done + 1}/{self._steps}] {what}{self._left()}"
        if self._live:
            self._stream.write(f"\r\x1b[K{line}")
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def ends(self, failure: str | None = None) -> None:
        """Reports the end of a measurement; a failure stays visible."""
        self._done += 1
        if failure is not None:
            self.says(f"failed: {failure}")

    def says(self, sentence: str) -> None:
        """Prints a line that stays."""
        self._stream.write(f"\r\x1b[K{sentence}\n" if self._live else f"{sentence}\n")
        self._stream.flush()

    def over(self) -> None:
        """Clears the progress line."""
        if self._live:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _left(self) -> str:
        if not self._done:
            return ""
        seconds = (self._clock() - self._began) / self._done * (self._steps - self._done)
        return f" · {seconds / 60:.0f} min left" if seconds >= 90 else f" · {seconds:.0f} s left"
