"""How much of what peers send is read in one iteration of the event loop, and how long a message may take to arrive.

A read from the kernel can hold 40 000 empty frames. Whoever sends so many must not make the others wait: a connection reads a few
frames, then waits for its next turn behind the others, and all turns of one iteration together take a few milliseconds. Nothing
more is read from a peer that waits, so that its frames fill the kernel's buffers and then its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import structlog

from service.core.clock import Clock, Timer
from service.telemetry.metrics import Metrics

FRAMES_PER_TURN = 16
"""Frames of one connection in one iteration; one while others wait for their turn already. A publish with its ack takes 80 µs."""
TURNS_BUDGET = 0.004
"""Seconds that the turns of one iteration may take together."""
CHECK_INTERVAL = 0.5
"""Seconds between two looks for messages that take too long to arrive."""

_log = structlog.get_logger("web")


class Reader(Protocol):
    """A connection that has frames which wait."""

    def read_on(self) -> None:
        """Reads the next frames; called once for each `schedule`."""

    def message_timed_out(self) -> None:
        """Called once if a message has not arrived in time."""


class ReadScheduler:
    """Shared by all connections of a node."""

    def __init__(self, clock: Clock, metrics: Metrics, message_timeout: float) -> None:
        self._clock = clock
        self._metrics = metrics
        self._message_timeout = message_timeout
        self._queue: deque[Reader] = deque()
        self._is_due = False
        self._partial: dict[Reader, float] = {}
        """Connections with part of a message, and since when; the oldest first."""
        self._timer: Timer | None = None

    # --- turns --------------------------------------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Frames that a connection may read now without a turn."""
        return 1 if self._queue else FRAMES_PER_TURN

    def schedule(self, reader: Reader) -> None:
        """Has the connection read on in one of the next iterations of the loop. It must not ask again before that."""
        self._queue.append(reader)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        queue = self._queue
        end = self._clock.monotonic() + TURNS_BUDGET
        for _ in range(len(queue)):
            reader = queue.popleft()
            try:
                reader.read_on()
            except Exception:
                _log.exception("reading failed")
            if self._clock.monotonic() >= end:
                break
        self._is_due = bool(queue)
        if queue:
            asyncio.get_running_loop().call_soon(self._run)

    # --- deadlines ----------------------------------------------------------------------------------------------------

    def begin_message(self, reader: Reader) -> None:
        """Part of a message has arrived, and its time begins, unless it has begun already."""
        if reader not in self._partial:
            self._partial[reader] = self._clock.monotonic()
            if self._timer is None:
                self._timer = self._clock.call_later(CHECK_INTERVAL, self._check)

    def end_message(self, reader: Reader) -> None:
        """The message is there, or nobody waits for the rest; harmless if none had begun."""
        self._partial.pop(reader, None)

    def _check(self) -> None:
        self._timer = None
        oldest = self._clock.monotonic() - self._message_timeout
        late = []
        for reader, since in self._partial.items():
            if since > oldest:
                break
            late.append(reader)
        for reader in late:
            del self._partial[reader]
            self._metrics.limits.limit_hits.labels(limit="message_deadline").inc()
            reader.message_timed_out()
        if self._partial:
            self._timer = self._clock.call_later(CHECK_INTERVAL, self._check)
