"""Many clients, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from random import Random
from time import monotonic

import msgspec

from tests.faults.books import CrowdBooks, Diary, Key, Top
from tests.faults.clients.client import Client
from tests.faults.clients.follow import Follow

WAVE = 50
"""Connections that are opened at the same time, unless a cast says otherwise."""
LOOK = 1.0
"""Seconds between two looks for connections that have fallen silent."""


class Cast(msgspec.Struct):
    """Who the clients are: spread evenly over tenants and channels, and over nodes unless `homes` says otherwise."""

    seed: int
    clients: int
    tenants: list[str]
    channels: list[str]
    ports: list[int]
    """Of the nodes; may be changed while the clients run, where they are in this process."""
    each: int = 1
    """Channels that a client is in."""
    homes: list[int] = []
    """The nodes that clients begin at, in turn; empty for all."""
    wave: int = WAVE
    """Connections that are opened at the same time."""
    transports: tuple[str, ...] = ("websocket",)
    """What clients connect with, each as often as it is named; spread by chance over tenants, channels and nodes."""


class Crowd:
    """The clients of a cast."""

    def __init__(self, cast: Cast) -> None:
        tenants, channels = cast.tenants, cast.channels
        homes = cast.homes or range(len(cast.ports))
        self.books = CrowdBooks()
        self._wave = cast.wave
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        kinds = [cast.transports[number % len(cast.transports)] for number in range(cast.clients)]
        Random(f"{cast.seed} transports").shuffle(kinds)
        self.clients = [
            Client(
                number,
                tenants[number % len(tenants)],
                # Tenants, nodes and channels each step at their own pace, so that all meet all.
                [channels[(number // (len(tenants) * len(homes)) + step) % len(channels)] for step in range(cast.each)],
                cast.ports,
                homes[number // len(tenants) % len(homes)],
                self.books,
                Random(f"{cast.seed} {number}"),
                self._spawn,
                kinds[number],
            )
            for number in range(cast.clients)
        ]

    async def come(self, within: float) -> None:
        """Connects everyone and waits until everyone has joined."""
        self._sweep()
        async with asyncio.timeout(within):
            for start in range(0, len(self.clients), self._wave):
                await asyncio.gather(*(client.connect() for client in self.clients[start : start + self._wave]))
            while await self.joined() < len(self.clients):  # noqa: ASYNC110  # the sum of thousands of replies
                await asyncio.sleep(0.02)

    async def joined(self) -> int:
        """Clients that are in all their channels now."""
        return sum(client.is_joined for client in self.clients)

    async def joined_at(self, port: int, transport: str = "") -> int:
        """Of those, the ones on one node, of one transport or of all."""
        return sum(
            client.is_joined and client.port == port and transport in ("", client.transport.name)
            for client in self.clients
        )

    async def doom(self, port: int, count: int) -> list[str]:
        """So many of those on a node will not come back when it dies, and are no longer counted; their users."""
        doomed = self.on(port)[:count]
        for client in doomed:
            client.leaving = True
        self.clients = [client for client in self.clients if client not in doomed]
        return [client.user for client in doomed]

    async def polling(self) -> list[tuple[str, str]]:
        """Tenant and user of each one with polls, whose session a node holds after the last one."""
        return [(one.tenant, one.user) for one in self.clients if not one.transport.is_connection]

    async def behind(self, tops: dict[Key, Top]) -> int:
        """Clients and channels that have not come to exactly these places."""
        return sum(
            not follow.joined or (top is not None and (follow.epoch, follow.offset) != (top.epoch, top.offset))
            for follow in self._follows()
            for top in (tops.get(follow.diary.key),)
        )

    async def below(self, newest: dict[Key, Top]) -> int:
        """Clients and channels that lack something up to these places."""
        return sum(not follow.joined or follow.is_below(newest.get(follow.diary.key)) for follow in self._follows())

    async def diaries(self) -> list[Diary]:
        """What everyone has applied."""
        return [follow.diary for follow in self._follows()]

    async def seen(self) -> CrowdBooks:
        """What all of them together have seen."""
        return self.books

    def on(self, port: int) -> list[Client]:
        """Those who are connected there."""
        return [client for client in self.clients if client.transport.is_open and client.port == port]

    async def leave(self) -> None:
        """Everyone goes."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for client in self.clients:
            client.leave()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(200):
            if not any(client.transport.is_open for client in self.clients):
                break
            await asyncio.sleep(0.01)
        for client in self.clients:
            client.abort()
        await asyncio.sleep(0)

    def _follows(self) -> Iterator[Follow]:
        for client in self.clients:
            yield from client.follows.values()

    def _spawn(self, client: Client, pause: float) -> None:
        task = asyncio.get_running_loop().create_task(self._return(client, pause))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _return(self, client: Client, pause: float) -> None:
        await asyncio.sleep(pause)
        if not client.leaving:
            await client.connect()

    def _sweep(self) -> None:
        now = monotonic()
        for client in self.clients:
            client.look(now)
        self._sweeper = asyncio.get_running_loop().call_later(LOOK, self._sweep)
