"""The backend of the demos: runs every simulation of `simulations/` in one process.

It uses only Tidewire's public interfaces, by the Python client: it publishes with an API key, and listens as the user
`support-bot`.

Environment: TIDEWIRE_URL, TIDEWIRE_API_KEY, TIDEWIRE_TOKEN; optional TIDEWIRE_DEMO_SEED (the same seed makes the same choices)
and TIDEWIRE_DEMO_SPEED (2 is twice as fast). It ends on SIGTERM, and when its parent process has ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

from simulations import answer, board, cursors, support, tracking
from simulations.api import Api
from tidewire import AsyncTidewire

SIMULATIONS: tuple[Callable[[Api], Awaitable[None]], ...] = (
    support.run,
    board.run,
    answer.run,
    cursors.run,
    tracking.run,
)


async def play(url: str, key: str, token: str, seed: str | None, speed: float) -> None:
    """Runs all simulations until cancelled. One that fails ends the others, so that the service reports it."""
    async with AsyncTidewire(url, api_key=key, token=token) as client, asyncio.TaskGroup() as tasks:
        for run in SIMULATIONS:
            api = Api(client, seed, speed)
            tasks.create_task(api.flush())
            tasks.create_task(run(api))


async def main() -> None:
    """Runs until SIGTERM, or until the parent process has ended."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    environment = os.environ
    playing = asyncio.create_task(
        play(
            environment["TIDEWIRE_URL"],
            environment["TIDEWIRE_API_KEY"],
            environment["TIDEWIRE_TOKEN"],
            environment.get("TIDEWIRE_DEMO_SEED"),
            float(environment.get("TIDEWIRE_DEMO_SPEED", "1")),
        )
    )
    orphaned = asyncio.create_task(_parent_gone(os.getppid()))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({playing, orphaned, stopped}, return_when=asyncio.FIRST_COMPLETED)
    failed = playing.done()
    for task in (playing, orphaned, stopped):
        task.cancel()
    outcome = (await asyncio.gather(playing, orphaned, stopped, return_exceptions=True))[0]
    if failed and isinstance(outcome, BaseException):
        raise outcome


async def _parent_gone(parent: int) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110  # no event reports that a parent has ended
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main())
