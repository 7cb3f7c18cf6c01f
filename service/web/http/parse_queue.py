"""Shares the time for parsing requests among the connections of a listener: one slice each, a few ms per loop iteration."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import Protocol

SLICE_BYTES = 4_096
"""Bytes that are parsed at once: up to 2 ms if each byte is a chunk of its own, microseconds in a usual body."""
PARSE_BUDGET = 0.002
"""Seconds of parsing in one loop iteration; further slices wait for the next one.

One read from the kernel can hold 256 KiB. Without this budget, 900 such connections with one-byte chunks blocked the
loop for 10 s."""


class UnparsedConnection(Protocol):
    """A connection that has read more than it has parsed."""

    def parse_slice(self) -> None:
        """Parses up to SLICE_BYTES. Calls `ParseQueue.schedule` again if bytes are left."""


class ParseQueue:
    """Grants parsing time, and calls the connections that have to wait for it."""

    def __init__(self) -> None:
        self._budget_ends_at: float | None = None
        """None before the first slice of a loop iteration."""
        self._waiting: deque[UnparsedConnection] = deque()

    def has_budget(self) -> bool:
        """Whether another slice may be parsed in this loop iteration."""
        now = perf_counter()
        if self._budget_ends_at is None:
            self._budget_ends_at = now + PARSE_BUDGET
            asyncio.get_running_loop().call_soon(self._start_iteration)
        return now < self._budget_ends_at

    def schedule(self, connection: UnparsedConnection) -> None:
        """Calls `parse_slice` once there is budget, in this loop iteration or a later one."""
        self._waiting.append(connection)
        self.has_budget()  # schedules the next loop iteration

    def _start_iteration(self) -> None:
        self._budget_ends_at = None
        for _ in range(len(self._waiting)):
            if not self.has_budget():
                return
            self._waiting.popleft().parse_slice()
