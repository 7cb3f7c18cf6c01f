"""One call for all who need its result at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Shares one run of a coroutine among all callers that await it meanwhile. The run continues if a caller is
    cancelled."""

    __slots__ = ("_name", "_task", "_work")

    def __init__(self, name: str, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._name = name
        self._work = work
        self._task: asyncio.Task[T] | None = None

    @property
    def is_running(self) -> bool:
        """Whether a caller now would share a run."""
        return self._task is not None

    async def result(self) -> T:
        """Returns what the run returns, or raises what it raises."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(), name=self._name)
            self._task.add_done_callback(self._on_done)
        return await asyncio.shield(self._task)

    async def close(self) -> None:
        """Cancels the run, and waits until it has ended."""
        if (task := self._task) is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _on_done(self, task: asyncio.Task[T]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # marks it as retrieved: every caller may have been cancelled
