"""One server's subscriptions: joined anew after every reconnect, and whoever was interrupted is told."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.line import Line
from service.adapters.redis.link import Link, LinkLost
from service.adapters.redis.topology import Place, Servers

CHUNK = 500
"""Names in one SUBSCRIBE; a Cluster takes one, as each may be in a slot of its own."""


class Subscriber:
    """Gets every message of the names that are wanted from one server.

    `on_message(name, message)`; `on_interrupted(names)` when they are subscribed again after a time in which they were not.
    """

    def __init__(
        self,
        servers: Servers,
        config: RedisConfig,
        *,
        locate: Callable[[], Awaitable[Place]],
        on_message: Callable[[bytes, bytes], None],
        on_interrupted: Callable[[Collection[bytes]], None],
        on_lost: Callable[[], None],
        on_dismissed: Callable[[bytes], None],
    ) -> None:
        self._config = config
        self._on_message = on_message
        self._on_interrupted = on_interrupted
        self._on_dismissed = on_dismissed
        sharded = servers.is_cluster
        self._subscribe, self._unsubscribe = ("SSUBSCRIBE", "SUNSUBSCRIBE") if sharded else ("SUBSCRIBE", "UNSUBSCRIBE")
        self._chunk = 1 if sharded else CHUNK
        self._wanted: dict[bytes, bool] = {}
        """Name → whether the server has confirmed it on this link."""
        self._confirming: dict[bytes, deque[asyncio.Future[None]]] = {}
        self._all_there = asyncio.Event()
        self._link: Link | None = None
        """The newest link, from the moment at which names are subscribed on it."""
        self._been_up = False
        self.line = Line(
            "messages", servers, config, locate=locate, on_up=self._rejoin, on_lost=on_lost, on_push=self._pushed
        )

    def __len__(self) -> int:
        return len(self._wanted)

    @property
    def names(self) -> Sequence[bytes]:
        """What is wanted."""
        return list(self._wanted)

    async def subscribe(self, name: bytes) -> None:
        """Returns when the server has confirmed. Raises TimeoutError; then the name is not wanted."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.timeout
        confirmed = loop.create_future()
        self._want(name, confirmed)
        try:
            if self.line.link is None:
                await self.line.up(deadline)
            async with asyncio.timeout_at(deadline):
                await confirmed
        except BaseException:
            self._withdraw(name, confirmed)
            raise

    def _want(self, name: bytes, confirmed: asyncio.Future[None]) -> None:
        self._wanted[name] = False
        self._confirming.setdefault(name, deque()).append(confirmed)
        self._tell(self._subscribe, name)

    def _tell(self, command: str, *names: bytes) -> None:
        if self._link is not None:
            self._link.tell(command, *names)

    def _withdraw(self, name: bytes, confirmed: asyncio.Future[None]) -> None:
        confirmed.cancel()
        waiting = self._confirming.get(name)
        if waiting is not None and confirmed in waiting:
            waiting.remove(confirmed)
            if not waiting:
                del self._confirming[name]
                self.unsubscribe(name)

    def unsubscribe(self, name: bytes) -> None:
        """From here on nothing of the name is delivered; harmless if it is not wanted."""
        if self._wanted.pop(name, None) is not None:
            self._tell(self._unsubscribe, name)

    def release(self, names: Collection[bytes]) -> dict[bytes, deque[asyncio.Future[None]]]:
        """Lets names go that another server has now; gives those who still wait for a confirmation."""
        for name in names:
            self._wanted.pop(name, None)
        return {name: self._confirming.pop(name, deque()) for name in names}

    async def adopt(self, names: dict[bytes, deque[asyncio.Future[None]]]) -> None:
        """Takes names over from another server; what was missed meanwhile is an interruption."""
        for name, waiting in names.items():
            self._wanted[name] = False
            self._confirming.setdefault(name, deque()).extend(waiting)
            self._tell(self._subscribe, name)
        while any(self._wanted.get(name) is False for name in names):
            self._all_there.clear()
            await self._all_there.wait()
        self._on_interrupted(list(names))

    async def _rejoin(self, link: Link) -> None:
        """Before a fresh link is used: everything that is wanted is subscribed on it and confirmed."""
        for name in self._wanted:
            self._wanted[name] = False
        self._link = link
        told: set[bytes] = set()
        async with asyncio.timeout(self._config.timeout):
            while missing := [name for name, confirmed in self._wanted.items() if not confirmed]:
                untold = [name for name in missing if name not in told]
                told.update(untold)
                for start in range(0, len(untold), self._chunk):
                    link.tell(self._subscribe, *untold[start : start + self._chunk])
                if not link.is_open:
                    raise LinkLost(link.fault or "the connection was lost while subscribing")
                self._all_there.clear()
                lost = asyncio.ensure_future(link.lost.wait())
                there = asyncio.ensure_future(self._all_there.wait())
                try:
                    await asyncio.wait((lost, there), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    lost.cancel()
                    there.cancel()
        if self._been_up and self._wanted:
            self._on_interrupted(self.names)
        self._been_up = True

    def _pushed(self, push: list[Any]) -> None:
        kind, name = push[0], push[1]
        if kind in (b"message", b"smessage"):
            if name in self._wanted:
                self._on_message(name, push[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            self._confirmed(name)
        elif kind == b"sunsubscribe" and name in self._wanted:
            self._on_dismissed(name)

    def _confirmed(self, name: bytes) -> None:
        if name not in self._wanted:
            self._tell(self._unsubscribe, name)  # it was let go while it was being subscribed
            return
        self._wanted[name] = True
        for waiting in self._confirming.pop(name, ()):
            if not waiting.done():
                waiting.set_result(None)
        self._all_there.set()
