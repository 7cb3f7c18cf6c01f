"""Tasks that are watched: the death of one is logged, counted, and known to whoever asks whether all is well."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

from service.telemetry.metrics import Metrics

_log = structlog.get_logger("redis")


class Tasks:
    """Owns the tasks of an adapter, so that none is lost and none outlives it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self.dead: str | None = None
        """The name of one that has died."""

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs the work."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._metrics.process.supervised_task_deaths.labels(task=task.get_name()).inc()
            _log.error("task died", task=task.get_name(), exc_info=error)
            self.dead = task.get_name()

    def cancel(self) -> asyncio.Future[Any]:
        """Cancels whatever still runs; the future is done when all of it has ended."""
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        return asyncio.gather(*tasks, return_exceptions=True)
