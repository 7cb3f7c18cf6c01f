"""Supervised tasks: none is lost, none outlives its owner, and each death is logged and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from service.aio.eager_start import start_eagerly

_log = structlog.get_logger("tasks")


class TaskSupervisor:
    """Owns tasks from `spawn` to `close`."""

    def __init__(self, on_death: Callable[[str], None]) -> None:
        """`on_death` is called with the name of each task that dies."""
        self._on_death = on_death
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._critical: set[asyncio.Task[Any]] = set()
        self.died: str | None = None
        """The name of the task that died last."""
        self.failed: str | None = None
        """The name of the critical task that died last."""

    @property
    def running(self) -> frozenset[asyncio.Task[Any]]:
        """The tasks that have not ended."""
        return frozenset(self._tasks)

    def spawn(self, name: str, work: Coroutine[Any, Any, Any], *, critical: bool = False) -> asyncio.Task[Any]:
        """Starts a task.

        A task dies when it raises. A critical one, which its owner cannot do without, dies also when it returns.
        """
        if self._loop is None:  # asked for once: on Python 3.11 it is a system call
            self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        if critical:
            self._critical.add(task)
        task.add_done_callback(self._on_done)
        return task

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs the work at once, and in a task from its first wait on. The work dies when it raises, as a task does."""
        try:
            rest = start_eagerly(work)
        except Exception as error:
            self._record_death(name, error, is_critical=False)
            return
        if rest is not None:
            self.spawn(name, rest)

    def call(self, name: str, begin: Callable[[], Coroutine[Any, Any, None] | None]) -> None:
        """Calls `begin`, and does the same as `start` for the work that it returns. `begin` itself is part of the work."""
        try:
            work = begin()
        except Exception as error:
            self._record_death(name, error, is_critical=False)
            return
        if work is not None:
            self.start(name, work)

    def _on_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        is_critical = task in self._critical
        self._critical.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None and not is_critical:
            return
        self._record_death(task.get_name(), error, is_critical=is_critical)

    def _record_death(self, name: str, error: BaseException | None, *, is_critical: bool) -> None:
        self.died = name
        self._on_death(name)
        _log.error("task_died", task=name, critical=is_critical, exc_info=error)
        if is_critical:
            self.failed = name

    def cancel(self) -> asyncio.Future[list[Any]]:
        """Cancels all tasks that run now. The future is done when they have ended."""
        tasks = self.running
        for task in tasks:
            task.cancel()
        return asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Cancels all tasks that run now, and waits until they have ended."""
        await self.cancel()
