"""Limits how many frames are read per loop iteration, and how long one message may take to arrive.

One read from the kernel can hold 40 000 empty frames. So a connection reads a few frames and then waits in a queue behind
the others. All queued reads of one loop iteration together take a few milliseconds. A waiting connection reads nothing
from the kernel, so further frames fill the kernel's buffers and then the peer's own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import structlog

from service.core.clock import Clock, Timer
from service.telemetry.metrics import Metrics

MAX_FRAMES_PER_READ = 16
"""Frames that a connection reads before it waits in the queue; one while others wait. A publish with its ack takes 80 µs."""
READ_BUDGET = 0.004
"""Seconds that the queued reads of one loop iteration take together."""
CHECK_INTERVAL = 0.5
"""Seconds between two checks for messages that take too long to arrive."""

_log = structlog.get_logger("web")


class FrameConnection(Protocol):
    """A connection that may have unread frames and unfinished messages."""

    def read_next_frames(self) -> None:
        """Reads the next frames; called once for each `schedule`."""

    def message_timed_out(self) -> None:
        """Called once if a message has not arrived in time."""


class ReadScheduler:
    """The queue of reads and the message timeouts, shared by all connections of a node."""

    def __init__(self, clock: Clock, metrics: Metrics, message_timeout: float) -> None:
        """`message_timeout`: seconds from the first byte of a message to its last."""
        self._clock = clock
        self._metrics = metrics
        self._message_timeout = message_timeout
        self._queue: deque[FrameConnection] = deque()
        self._is_scheduled = False
        self._unfinished: dict[FrameConnection, float] = {}
        """Connections with part of a message, and the monotonic time of its first byte; oldest first."""
        self._timer: Timer | None = None

    # --- queue of reads -----------------------------------------------------------------------------------------------

    @property
    def max_frames(self) -> int:
        """Frames that a connection may read now, outside of the queue."""
        return 1 if self._queue else MAX_FRAMES_PER_READ

    def schedule(self, connection: FrameConnection) -> None:
        """Calls `read_next_frames` once, in a later loop iteration. Not to be called again before that."""
        self._queue.append(connection)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        queue = self._queue
        budget_ends_at = self._clock.monotonic() + READ_BUDGET
        for _ in range(len(queue)):
            connection = queue.popleft()
            try:
                connection.read_next_frames()
            except Exception:
                _log.exception("frame_read_failed")
            if self._clock.monotonic() >= budget_ends_at:
                break
        self._is_scheduled = bool(queue)
        if queue:
            asyncio.get_running_loop().call_soon(self._run)

    # --- message timeouts ---------------------------------------------------------------------------------------------

    def start_message_timeout(self, connection: FrameConnection) -> None:
        """Starts the timeout of an unfinished message, unless it is running."""
        if connection not in self._unfinished:
            self._unfinished[connection] = self._clock.monotonic()
            if self._timer is None:
                self._timer = self._clock.call_later(CHECK_INTERVAL, self._check_timeouts)

    def stop_message_timeout(self, connection: FrameConnection) -> None:
        """Stops the timeout: the message is whole, or is no longer expected. Harmless if none is running."""
        self._unfinished.pop(connection, None)

    def _check_timeouts(self) -> None:
        self._timer = None
        started_before = self._clock.monotonic() - self._message_timeout
        late = []
        for connection, started_at in self._unfinished.items():
            if started_at > started_before:
                break
            late.append(connection)
        for connection in late:
            del self._unfinished[connection]
            self._metrics.limits.limit_hits.labels(limit="message_deadline").inc()
            connection.message_timed_out()
        if self._unfinished:
            self._timer = self._clock.call_later(CHECK_INTERVAL, self._check_timeouts)
