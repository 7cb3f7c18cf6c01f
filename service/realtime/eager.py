"""Coroutines that are begun at once, and become a task only if they have to wait: most commands never do."""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any


def begin(work: Coroutine[Any, Any, None]) -> Coroutine[Any, Any, None] | None:
    """Runs the work up to where it first waits. None if it is done; else the rest, which must be awaited in a task.

    Until then there is no current task, so what needs one (asyncio.timeout) must not come before `in_a_task`.
    Python 3.12 has this as eager tasks; 3.11 has not.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return _rest(work, awaited)


@types.coroutine
def in_a_task() -> Generator[None, None, None]:
    """Waits until the work goes on in a task."""
    yield


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], awaited: Any) -> Generator[Any, Any, None]:
    # What the work waits for is passed to the task, and what the task says to that to the work.
    try:
        while True:
            try:
                said = yield awaited
            except BaseException as error:  # cancellation, too, is the work's to handle
                awaited = work.throw(error)
            else:
                awaited = work.send(said)
    except StopIteration:
        return
