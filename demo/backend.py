"""The backend of the demo: simulates customers and colleagues of a support team.

It runs in its own process and uses only Tidewire's public interfaces. It publishes over the HTTP API with an API key. It
listens to the agents over a WebSocket as the user `support-bot`, and resumes by position.

Environment: TIDEWIRE_URL, TIDEWIRE_API_KEY, TIDEWIRE_TOKEN; optional TIDEWIRE_DEMO_SEED (the same seed makes the same choices)
and TIDEWIRE_DEMO_SPEED (2 is twice as fast). It ends on SIGTERM, and when its parent process has ended.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from contextlib import suppress
from typing import Any

import aiohttp
from wire import REQUEST_TIMEOUT, Listener, Publisher
from world import BOT, TEAM, World

TICK = 0.25
"""Seconds between two steps of the simulation."""


class Api:
    """The requests that the backend sends to the HTTP API."""

    def __init__(self, session: aiohttp.ClientSession, url: str, key: str) -> None:
        self._session = session
        self._url = f"{url}/api/v1/channels"
        self._headers = {"Authorization": f"Bearer {key}"}

    async def team(self) -> set[str] | None:
        """The agents who are online; None if the request fails."""
        found = await self._get(f"team:{TEAM}/presence")
        return None if found is None else {member["user"] for member in found["presence"].get("members") or []} - {BOT}

    async def queue(self) -> list[dict[str, Any]]:
        """The chats in the queue's state."""
        found = await self._get(f"queue:{TEAM}/state")
        return [] if found is None else [event["data"] for event in found["state"]]

    async def _get(self, path: str) -> Any:
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.get(
                f"{self._url}/{path}", headers=self._headers, timeout=REQUEST_TIMEOUT
            ) as response:
                return await response.json() if response.status == 200 else None
        return None


async def live(url: str, key: str, token: str, seed: str | None, speed: float) -> None:
    """Runs the simulation until cancelled."""
    began = time.monotonic()

    def now() -> float:
        return (time.monotonic() - began) * speed

    async def hear(listener: Listener, world: World, api: Api) -> None:
        async for event in listener.events():
            if event is None:
                world.show_all()
                world.retire(await api.queue())
            else:
                world.hear(event, now())

    async def turn(world: World) -> None:
        await world.begin(now())
        while True:
            await world.tick(now())
            await asyncio.sleep(TICK / max(speed, 1.0))

    async def watch(world: World, api: Api) -> None:
        while True:
            if (team := await api.team()) is not None:
                world.team = team
            await asyncio.sleep(5.0 / speed)

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        publisher, listener = Publisher(session, url, key), Listener(session, url, token)
        api = Api(session, url, key)
        world = World(random.Random(seed), publisher, listener)  # noqa: S311  # choices of a play, no secrets
        tasks.create_task(publisher.run())
        tasks.create_task(hear(listener, world, api))
        tasks.create_task(turn(world))
        tasks.create_task(watch(world, api))


async def main() -> None:
    """Runs until SIGTERM, or until the parent process has ended."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    environment = os.environ
    world = asyncio.create_task(
        live(
            environment["TIDEWIRE_URL"].rstrip("/"),
            environment["TIDEWIRE_API_KEY"],
            environment["TIDEWIRE_TOKEN"],
            environment.get("TIDEWIRE_DEMO_SEED"),
            float(environment.get("TIDEWIRE_DEMO_SPEED", "1")),
        )
    )
    orphaned = asyncio.create_task(_parent_gone(os.getppid()))
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({world, orphaned, stopped}, return_when=asyncio.FIRST_COMPLETED)
    failed = world.done()
    for task in (world, orphaned, stopped):
        task.cancel()
    outcome = (await asyncio.gather(world, orphaned, stopped, return_exceptions=True))[0]
    if failed and isinstance(outcome, BaseException):
        raise outcome


async def _parent_gone(parent: int) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110  # no event reports that a parent has ended
        await asyncio.sleep(1)


if __name__ == "__main__":
    asyncio.run(main())
