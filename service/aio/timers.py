"""Waiting and repeating by a clock that tests can move."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from service.aio.tasks import TaskSupervisor


class Timer(Protocol):
    """A call that is scheduled."""

    def cancel(self) -> None:
        """Cancels the call. Harmless when it has been made."""


class Clock(Protocol):
    """What can schedule a call."""

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer:
        """Calls back after `delay` seconds."""


async def sleep(clock: Clock, seconds: float) -> None:
    """Returns after `seconds` of the clock."""
    over = asyncio.Event()
    timer = clock.call_later(seconds, over.set)
    try:
        await over.wait()
    finally:
        timer.cancel()


class DelayedTask:
    """Runs work once, some time after it was requested; requests until then share the run.

    Use it to gather changes into one call of a store. There is no task while nothing is requested.
    """

    __slots__ = ("_clock", "_is_closed", "_name", "_tasks", "_timer", "_work")

    def __init__(self, clock: Clock, tasks: TaskSupervisor, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._clock = clock
        self._tasks = tasks
        self._name = name
        self._work = work
        self._timer: Timer | None = None
        self._is_closed = False

    @property
    def is_scheduled(self) -> bool:
        """True from a request to the start of the run."""
        return self._timer is not None

    def schedule(self, delay: float) -> None:
        """Requests a run after `delay` seconds. Harmless when one is scheduled."""
        if self._timer is None and not self._is_closed:
            self._timer = self._clock.call_later(delay, self._start)

    def reschedule(self, delay: float) -> None:
        """Replaces the scheduled run, if there is one, by a run after `delay` seconds."""
        self.cancel()
        self.schedule(delay)

    def cancel(self) -> None:
        """Cancels the scheduled run. A run that has started continues."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """Cancels the scheduled run; later requests do nothing."""
        self._is_closed = True
        self.cancel()

    def _start(self) -> None:
        self._timer = None
        self._tasks.spawn(self._name, self._run())

    async def _run(self) -> None:
        await self._work()


class PeriodicTask:
    """Runs work again and again: each run starts `interval` seconds after the last one has ended.

    The work may return another number of seconds for the next interval, for example a shorter one after a failure.
    Between two runs there is a timer and no task. A run that raises is counted as a death, and the next one is
    scheduled as usual.
    """

    __slots__ = ("_delayed", "_interval", "_is_running", "_work")

    def __init__(
        self,
        clock: Clock,
        tasks: TaskSupervisor,
        name: str,
        work: Callable[[], Awaitable[float | None]],
        *,
        interval: float,
    ) -> None:
        self._delayed = DelayedTask(clock, tasks, name, self._run)
        self._work = work
        self._interval = interval
        self._is_running = False

    @property
    def is_running(self) -> bool:
        """True while the work runs."""
        return self._is_running

    def start(self, delay: float | None = None) -> None:
        """Schedules the first run, after `delay` seconds instead of the interval if that is given."""
        self._delayed.schedule(self._interval if delay is None else delay)

    def run_within(self, delay: float) -> None:
        """Moves the next run to `delay` seconds from now. Without effect before `start`, and while the work runs."""
        if self._delayed.is_scheduled:
            self._delayed.reschedule(delay)

    def cancel(self) -> None:
        """Cancels the next run. `start` schedules runs again; so does the end of one that has started."""
        self._delayed.cancel()

    def close(self) -> None:
        """Schedules no more runs. A run that has started continues."""
        self._delayed.close()

    async def _run(self) -> None:
        delay: float | None = None
        self._is_running = True
        try:
            delay = await self._work()
        finally:
            self._is_running = False
            self._delayed.schedule(self._interval if delay is None else delay)
