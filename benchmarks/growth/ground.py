"""What the parts share: cores and folder, sizes of a full and of a quick run, progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TypeVar

from benchmarks.processes import Cores
from benchmarks.progress import Progress

ROUNDS = 5
"""Measured rounds of each size; the table has their median."""
DATA = '{"p":"' + "x" * 120 + '"}'
"""128 bytes of data, as in the other benchmarks."""
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, slots=True)
class Ground:
    """The place of a run, and its extent."""

    cores: Cores
    folder: Path
    progress: Progress
    is_quick: bool = False

    def sizes(self, full: Sequence[int], quick: Sequence[int]) -> Sequence[int]:
        """Returns the sizes to measure."""
        return quick if self.is_quick else full

    def at_most(self, full: _Number, quick: _Number) -> _Number:
        """Returns the first number, or the second one in a quick run."""
        return quick if self.is_quick else full

    def ids(self) -> Iterator[str]:
        """Returns new ids of messages."""
        return map("e-{}".format, count())

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Reports a step while it runs."""
        self.progress.begins(what)
        yield
        self.progress.ends()
