"""Writes at the end of each event loop iteration: first the batches of rooms, then replies.

So the messages that one iteration makes for a client need few writes. Rooms take turns, and a large room writes one slice a
turn. This keeps loop iterations short, and a small room does not wait for a large one.

Example:
    scheduler = WriteScheduler(clock)
    scheduler.schedule(room)
    scheduler.schedule_flush(connection)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from service.core.clock import Clock

MAX_SLICE_MEMBERS = 100
"""Members that a room writes to in one turn: about a millisecond of work."""
MAX_FAN_OUT_SECONDS = 0.004
"""Seconds of fan-out in one loop iteration. The rest follows in the next iteration."""


_log = structlog.get_logger("write_scheduler")


class FanOut(Protocol):
    """Something that writes to many connections."""

    def fan_out(self, max_members: int) -> bool:
        """Writes to at most `max_members` members. True if there is more to write now."""

    def fail(self) -> None:
        """Called after `fan_out` has raised. `fan_out` is not called again before the next `schedule`."""


class Flushable(Protocol):
    """Something with replies to write."""

    def flush(self) -> None:
        """Writes the replies."""

    def fail(self) -> None:
        """Called after `flush` has raised."""


class WriteScheduler:
    """Runs at most once per loop iteration, after the iteration's reads.

    An exception in one room or connection is logged and does not affect the others.
    """

    __slots__ = ("_call_soon", "_clock", "_fan_outs", "_flushes", "_is_scheduled")

    def __init__(self, clock: Clock, call_soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        self._clock = clock
        self._call_soon = call_soon or self._call_soon_first
        """Schedules a callback for the next loop iteration."""
        self._fan_outs: deque[FanOut] = deque()
        self._flushes: list[Flushable] = []
        self._is_scheduled = False

    def _call_soon_first(self, callback: Callable[[], None]) -> object:
        # get_running_loop() is a system call on Python 3.11, so it is called once.
        self._call_soon = asyncio.get_running_loop().call_soon
        return self._call_soon(callback)

    def schedule(self, fan_out: FanOut) -> None:
        """Calls `fan_out` from the end of this iteration on, until it returns False or raises. Do not schedule it twice."""
        self._fan_outs.append(fan_out)
        self._schedule_run()

    def schedule_flush(self, flushable: Flushable) -> None:
        """Calls `flush` at the end of this iteration."""
        self._flushes.append(flushable)
        if not self._is_scheduled:
            self._schedule_run()

    def _schedule_run(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._call_soon(self._run)

    def _run(self) -> None:
        fan_outs = self._fan_outs
        if fan_outs:
            end = self._clock.monotonic() + MAX_FAN_OUT_SECONDS
            while fan_outs:
                fan_out = fan_outs.popleft()
                try:
                    if fan_out.fan_out(MAX_SLICE_MEMBERS):
                        fan_outs.append(fan_out)
                except Exception:
                    _log.exception("fan_out_failed")
                    fan_out.fail()
                if self._clock.monotonic() >= end:
                    break
        flushes, self._flushes = self._flushes, []
        for flushable in flushes:
            try:
                flushable.flush()
            except Exception:
                _log.exception("flush_failed")
                flushable.fail()
        self._is_scheduled = False
        if fan_outs or self._flushes:
            self._schedule_run()
