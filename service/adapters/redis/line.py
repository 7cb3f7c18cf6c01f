"""A line to a server: a link that is made anew whenever it is lost, for as long as it is wanted."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.link import Link, LinkLost, ReplyError
from service.adapters.redis.topology import NoServer, Place, Servers

FIRST_PAUSE = 0.05
MOST_PAUSE = 1.0
"""Seconds before the next try: from the first, doubled, up to the second, each with jitter; no longer, or a failover
that takes two seconds would be noticed after many more."""

_log = structlog.get_logger("redis")


class Line:
    """Keeps one link open. `locate` says where to, before each try; `on_up` prepares a fresh link before anybody uses it."""

    def __init__(
        self,
        name: str,
        servers: Servers,
        config: RedisConfig,
        *,
        locate: Callable[[], Awaitable[Place]],
        on_up: Callable[[Link], Awaitable[None]],
        on_lost: Callable[[], None],
        on_push: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._name = name
        self._servers = servers
        self._config = config
        self._locate = locate
        self._on_up = on_up
        self._on_lost = on_lost
        self._on_push = on_push
        self._up = asyncio.Event()
        self.link: Link | None = None
        """The link while it is open."""
        self.place: Place | None = None
        """Where it leads."""
        self.down_since: float | None = asyncio.get_running_loop().time()
        """Loop time at which it was lost; None while it is open."""
        self.reason = "not connected yet"
        """Why it is not open."""
        self.refused = False
        """Whether the last try ended in a refusal that trying again will not change."""

    async def keep(self) -> None:
        """Opens the link, again and again. Runs until it is cancelled."""
        pause = FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            link = Link(
                ping=self._config.ping,
                silence=self._config.silence,
                timeout=self._config.timeout,
                on_push=self._on_push,
            )
            try:
                place = await self._locate()
                await self._servers.open(place, link)
                await self._on_up(link)
            except (NoServer, LinkLost, ReplyError, TimeoutError) as error:
                link.abort()
                self._note(str(error) or "the server does not answer")
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # spreads load, guards nothing
                pause = min(2 * pause, MOST_PAUSE)
                continue
            except BaseException:
                link.abort()
                raise
            self.link, self.place, self.down_since, self.refused = link, place, None, False
            self._up.set()
            _log.info("connected", line=self._name, host=place[0], port=place[1])
            pause = FIRST_PAUSE
            try:
                await link.lost.wait()
            finally:
                link.abort()
                self.link, self.down_since = None, loop.time()
                self._up.clear()
            self._note(link.fault or "the connection was lost")
            self._on_lost()

    def _note(self, reason: str) -> None:
        if reason != self.reason:
            _log.warning("not connected", line=self._name, reason=reason)
        self.reason = reason
        self.refused = any(word in reason for word in ("WRONGPASS", "NOAUTH", "NOPERM", "invalid password"))

    async def up(self, deadline: float) -> Link:
        """The link, as soon as it is open. Raises TimeoutError at the deadline (loop time), or at once if it has been lost
        for longer than a call may take: whoever comes then should not wait in vain."""
        loop = asyncio.get_running_loop()
        while self.link is None:
            if self.down_since is not None and loop.time() - self.down_since > self._config.timeout:
                raise TimeoutError(self.reason)
            async with asyncio.timeout_at(deadline):
                await self._up.wait()
        return self.link

    def hang_up(self) -> None:
        """Drops the link, so that the next one leads to wherever `locate` says now."""
        if self.link is not None:
            self.link.abort()
