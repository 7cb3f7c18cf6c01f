"""Waiting by the Clock, so that tests can move time."""

from __future__ import annotations

import asyncio

from service.core.clock import Clock


async def sleep(clock: Clock, seconds: float) -> None:
    """Returns after so many seconds."""
    over = asyncio.Event()
    timer = clock.call_later(seconds, over.set)
    try:
        await over.wait()
    finally:
        timer.cancel()
