"""The Clock of a running service: the time of the operating system, and timers of the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.core.clock import Timer


class SystemClock:
    """Real time. `call_later` needs a running event loop."""

    __slots__ = ()

    # The functions themselves: a method around them would cost time, and they run several times for each message.
    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls back once. Without a delay: in the next iteration of the event loop, which is cheaper than a timer."""
        loop = asyncio.get_running_loop()
        return loop.call_later(delay, callback) if delay > 0 else loop.call_soon(callback)
