"""The Clock of a running service: the operating system's time and the event loop's timers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from service.core.clock import Timer


class SystemClock:
    """Real time. Timers need a running event loop."""

    __slots__ = ()

    # The functions themselves: they are asked for several times a message.
    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """As the port says. Without a delay: in the loop's next turn, and cheaper than a timer."""
        loop = asyncio.get_running_loop()
        return loop.call_later(delay, callback) if delay > 0 else loop.call_soon(callback)
