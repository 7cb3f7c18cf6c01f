"""The support console's customers and colleagues: plays `World` on the service."""

from __future__ import annotations

import asyncio
from typing import Any

from tidewire import TidewireError

from .api import Api
from .world import BOT, TEAM, World

TICK = 0.25
"""Seconds between two steps of the simulation."""
IDLE_TICK = 1.0
"""The same while no agent is online."""


class Rooms:
    """Listens to rooms, each from its last event after a reconnect."""

    def __init__(self, api: Api, tasks: asyncio.TaskGroup) -> None:
        self._api = api
        self._tasks = tasks
        self._rooms: dict[str, asyncio.Task[None]] = {}
        self.world: World | None = None

    async def join(self, room: str) -> None:
        """Listens to a room from now on."""
        self._rooms[room] = self._tasks.create_task(self._follow(room))

    async def leave(self, room: str) -> None:
        """Stops listening to a room."""
        if task := self._rooms.pop(room, None):
            task.cancel()

    async def _follow(self, room: str) -> None:
        async with self._api.client.channel(room, on_missed=self._missed) as channel:
            async for event in channel:
                if event.offset is not None and self.world is not None:
                    heard = {"channel": room, "from": event.sender, "type": event.type, "data": event.data}
                    self.world.hear(heard, self._api.now())

    def _missed(self, _: object) -> None:
        """The service has lost events, and perhaps the state of the queue."""
        if self.world is not None:
            self.world.show_all()


async def run(api: Api) -> None:
    """Plays until cancelled."""
    async with asyncio.TaskGroup() as tasks:
        rooms = Rooms(api, tasks)
        world = rooms.world = World(api.random, api, rooms)
        world.retire(await _queue(api))
        tasks.create_task(_watch_team(api, world))
        await world.begin(api.now())
        while True:
            await world.tick(api.now())
            await asyncio.sleep((TICK if world.team else IDLE_TICK) / max(api.speed, 1.0))


async def _watch_team(api: Api, world: World) -> None:
    while True:
        try:
            present = await api.client.presence(f"team:{TEAM}")
            world.team = {member.user for member in present.members or []} - {BOT}
        except TidewireError:
            pass  # the next one tells
        await api.sleep(5.0)


async def _queue(api: Api) -> list[dict[str, Any]]:
    """The chats in the queue's state, which an earlier run may have left."""
    try:
        return [event.data for event in (await api.client.state(f"queue:{TEAM}")).state]
    except TidewireError:
        return []
