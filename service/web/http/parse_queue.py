"""Shares the time for parsing requests among the connections of a listener: a slice each in turn, and so much an iteration."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import Protocol

SLICE_BYTES = 4_096
"""Bytes that are parsed in one go: up to 2 ms where each byte is a chunk of its own, microseconds in a usual body."""
MAX_SECONDS = 0.002
"""Seconds of parsing in one iteration, after which the others wait for the next. One read from the kernel may hold 256 KiB:
parsing that from 900 connections, in chunks of one byte, held the loop for ten seconds."""


class Parsing(Protocol):
    """A connection that has read more than it has parsed."""

    def parse_on(self) -> None:
        """Parses a slice. To be queued again if that was not all."""


class ParseQueue:
    """Says whether there is time, and comes back to those for whom there was none."""

    def __init__(self) -> None:
        self._ends: float | None = None
        """When the time of this iteration is over; None before the first slice."""
        self._waiting: deque[Parsing] = deque()

    def has_time(self) -> bool:
        """Whether another slice may be parsed in this iteration."""
        now = perf_counter()
        if self._ends is None:
            self._ends = now + MAX_SECONDS
            asyncio.get_running_loop().call_soon(self._next_iteration)
        return now < self._ends

    def wait(self, connection: Parsing) -> None:
        """Has the connection parse on when it is its turn, in this iteration or a later one."""
        self._waiting.append(connection)
        self.has_time()  # so that there is a next iteration

    def _next_iteration(self) -> None:
        self._ends = None
        for _ in range(len(self._waiting)):
            if not self.has_time():
                return
            self._waiting.popleft().parse_on()
