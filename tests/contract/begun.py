"""Calls that start outside of any task, as those of upgrades and commands do (service/aio/eager_start.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Begun(Generic[T]):
    """A coroutine whose first step runs outside of any task, and the rest in one."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._began: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        assert asyncio.current_task() is None
        self._step = partial(self._coroutine.send, None)
        try:
            self._waits_for = self._step()
        except BaseException as ended:  # what the caller is to get
            self._step = partial(_again, ended)
            self._waits_for = None
        self._began.set_result(None)

    async def begun(self) -> None:
        """Returns when the first step has run."""
        await self._began

    def close(self) -> None:
        """Abandons it."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, None, T]:
        yield from self._began
        while True:
            try:
                yield self._waits_for
            except BaseException as error:  # the task is cancelled
                self._step = partial(self._coroutine.throw, error)
            try:
                self._waits_for = self._step()
            except StopIteration as end:
                result: T = end.value
                return result
            self._step = partial(self._coroutine.send, None)


async def finish(call: Begun[T]) -> T:
    """Runs the rest in a task."""
    return await call


def _again(ended: BaseException) -> Any:
    raise ended
