"""Coroutines that are begun at once, and become a task only if they have to wait: most arrivals and commands never do."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any


def start_eagerly(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Runs the work up to where it first waits. None if it is done; else the rest, of which a task must be made (it
    cannot be awaited). Raises what the work raises until then.

    Until then there is no current task, so what needs one (asyncio.timeout) must not come before `continue_in_task`.
    Python 3.12 has this as eager tasks; 3.11 has not.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    rest = _rest(work, awaited)
    rest.send(
        None
    )  # to where it can be told: what is thrown into a coroutine that has not begun never reaches its body
    return rest


@types.coroutine
def continue_in_task() -> Generator[None, None, None]:
    """Waits until the work goes on in a task."""
    yield


async def _rest(work: Coroutine[Any, Any, None], awaited: Any) -> None:
    await _pass_on(work, awaited)  # from Python 3.12 on, asyncio makes no task of a generator


@types.coroutine
def _pass_on(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    # What the work waits for is passed to the task, and what the task says to that to the work.
    try:
        try:
            yield  # begin
        except BaseException as error:  # cancelled before the task's first step
            awaited = work.throw(error)
        while True:
            try:
                said = yield awaited
            except BaseException as error:  # cancellation, too, is the work's to handle
                awaited = work.throw(error)
            else:
                awaited = work.send(said)
    except StopIteration:
        return
