"""A result that comes later, without a coroutine, a task and a future: its callbacks run at once when it comes.

An asyncio future calls back in the next iteration of the event loop, and a coroutine that waits for one needs a task. Together
they cost more than the work itself where each message of a client waits for one reply.

pending = broker.start_publish(publication)
pending.add_done_callback(lambda done: print(done.error or done.result()))
await pending                                     # or so
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import structlog

T = TypeVar("T")

_log = structlog.get_logger("pending")


class Pending(Generic[T]):
    """A result or an error, which its owner sets once with `resolve` or `fail`. Nobody may need it: see `abandon`."""

    __slots__ = ("_callbacks", "_result", "error", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        """True once there is a result or an error, or nobody needs one."""
        self.error: Exception | None = None
        self._result: T | None = None
        self._callbacks: list[Callable[[Any], None]] = []

    def result(self) -> T:
        """Returns the result, or raises the error. Call it when `is_done`."""
        if self.error is not None:
            raise self.error
        return self._result  # type: ignore[return-value]  # None only if T is, or if nobody needs the result

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Calls back with this object when it is done: at once if it is. Callbacks run in the order in which they were added."""
        if self.is_done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def resolve(self, result: T) -> None:
        """Sets the result, and calls back."""
        if not self.is_done:
            self._result = result
            self._finish()

    def fail(self, error: Exception) -> None:
        """Sets the error, and calls back."""
        if not self.is_done:
            self.error = error
            self._finish()

    def abandon(self) -> None:
        """Ends the wait, because whoever awaits this was cancelled. Nothing is called back."""
        self._callbacks.clear()
        self.is_done = True

    def _finish(self) -> None:
        self.is_done = True
        for callback in self._callbacks:
            try:
                callback(self)
            except Exception:  # must neither keep others from their callbacks nor reach the owner
                _log.exception("callback_failed")

    def __await__(self) -> Generator[Any, None, T]:
        if not self.is_done:
            done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._callbacks.append(lambda _: None if done.done() else done.set_result(None))
            try:
                yield from done
            except BaseException:
                self.abandon()
                raise
        return self.result()
