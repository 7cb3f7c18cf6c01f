"""Tasks that are watched: the death of one is logged, counted and, for those the node cannot do without, turns readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from service.telemetry.metrics import Metrics
from service.telemetry.outage import Outages

_log = structlog.get_logger("supervisor")


class Supervisor:
    """Owns every task of the realtime core, so that none is lost and none outlives it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.outages = Outages()
        """What its tasks log while they fail."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._critical: set[asyncio.Task[Any]] = set()
        self.failed: str | None = None
        """The name of a vital task that has died; the node is not ready then."""

    def spawn(self, name: str, work: Coroutine[Any, Any, Any], *, critical: bool = False) -> asyncio.Task[Any]:
        """Runs the work. `critical`: it must not end before `close`."""
        if self._loop is None:  # asked for once: on Python 3.11 it is a system call
            self._loop = asyncio.get_running_loop()
        task = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        if critical:
            self._critical.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        critical = task in self._critical
        self._critical.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None and not critical:
            return
        self._metrics.process.supervised_task_deaths.labels(task=task.get_name()).inc()
        _log.error("task died", task=task.get_name(), critical=critical, exc_info=error)
        if critical:
            self.failed = task.get_name()

    async def close(self) -> None:
        """Cancels and awaits whatever still runs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
