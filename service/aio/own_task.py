"""What the adapters' calls need of asyncio."""

from __future__ import annotations

import asyncio


async def ensure_task() -> None:
    """Returns in a task. Calls may be begun outside of any (aio/eager_start.py); what uses asyncio.timeout asks for one first."""
    if asyncio.current_task() is None:
        loop = asyncio.get_running_loop()
        # A future and not a bare yield: what passes on that a coroutine waits for has something to pass on.
        turn = loop.create_future()
        loop.call_soon(_done, turn)
        await turn


def _done(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
