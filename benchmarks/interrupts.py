"""Lets a signal end a run, and all that it has started."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Lets SIGTERM raise KeyboardInterrupt, as SIGINT does, so that the programs that a run has started end with it."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def cancelled_by(number: signal.Signals) -> Iterator[None]:
    """Lets a signal cancel this task, as asyncio does with SIGINT, and raises KeyboardInterrupt.

    An exception from a signal handler could be raised in any callback of the loop.
    """
    loop, task, before = asyncio.get_running_loop(), asyncio.current_task(), signal.getsignal(number)
    assert task is not None
    came = False

    def cancel() -> None:
        nonlocal came
        came = True
        task.cancel()

    loop.add_signal_handler(number, cancel)
    try:
        yield
    except asyncio.CancelledError:
        if came:
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(number)
        signal.signal(number, before)
