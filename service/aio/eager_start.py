"""Coroutines that start at once, and become a task only if they have to wait. Most upgrades and commands never wait.

rest = start_eagerly(work())
if rest is not None:
    tasks.spawn("command", rest)
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any


def start_eagerly(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Runs the work up to its first wait. Returns None if it is done, else the rest, for a task to run.

    Raises what the work raises before its first wait. Before that there is no current task, so code that needs one
    (asyncio.timeout) must come after `continue_in_task`. Python 3.12 has eager tasks; 3.11 does not.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    rest = _rest(work, awaited)
    rest.send(None)  # into its body: an exception thrown into a coroutine that has not started never reaches the work
    return rest


@types.coroutine
def continue_in_task() -> Generator[None, None, None]:
    """Waits until the work runs in a task. Only for work that `start_eagerly` runs."""
    yield


async def ensure_task() -> None:
    """Continues in a task, whether or not the caller runs in one. Code that uses asyncio.timeout awaits this first."""
    if asyncio.current_task() is None:
        loop = asyncio.get_running_loop()
        # A future and not a bare yield: a coroutine between this one and the task may need something to await.
        started = loop.create_future()
        loop.call_soon(_resolve, started)
        await started


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _rest(work: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _pass_on(work, awaited)  # from Python 3.12 on, asyncio makes no task of a generator


@types.coroutine
def _pass_on(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    # Passes what the work awaits to the task, and the task's answer to the work.
    try:
        try:
            yield  # the end of start_eagerly
        except BaseException as error:  # cancelled before the task's first step
            awaited = work.throw(error)
        while True:
            try:
                answer = yield awaited
            except BaseException as error:  # the work handles cancellation, too
                awaited = work.throw(error)
            else:
                awaited = work.send(answer)
    except StopIteration:
        return
