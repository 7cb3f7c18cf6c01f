"""A line to a server: a link that is made anew whenever it is lost, for as long as it is wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.link import Link, LinkLost, ReplyError
from service.adapters.redis.connections.topology import NoServer, Place, Servers, is_refusal, said
from service.core.backoff import Backoff
from service.telemetry.outage import OutageLog

FIRST_PAUSE = 0.05
MAX_PAUSE = 1.0
"""Seconds before the next try: from the first, doubled, up to the second, each with jitter; no longer, or a failover
that takes two seconds would be noticed after many more."""

_log = structlog.get_logger("redis")


class ReconnectingLink:
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
        on_pong: Callable[[float], None] | None = None,
    ) -> None:
        self._name = name
        self._servers = servers
        self._config = config
        self._locate = locate
        self._on_up = on_up
        self._on_lost = on_lost
        self._on_push = on_push
        self._on_pong = on_pong
        self._loop = asyncio.get_running_loop()
        # The broker's health logs the reminders.
        self._outage = OutageLog(_log, "not connected", "connected", self._loop.time, reminds=False)
        self._changed = asyncio.Event()
        self._retired = False
        self.link: Link | None = None
        """The link while it is open; None from the very moment at which it is lost."""
        self.place: Place | None = None
        """Where it leads."""
        self.down_since: float | None = self._loop.time()
        """Loop time at which it was lost; None while it is open."""
        self.reason = "not connected yet"
        """Why it is not open."""
        self.refused = False
        """Whether the last try ended in a refusal that trying again will not change."""

    async def keep(self) -> None:
        """Opens the link, again and again. Runs until it is cancelled."""
        backoff = Backoff(FIRST_PAUSE, MAX_PAUSE)
        while True:
            link = Link(
                ping=self._config.ping,
                silence=self._config.silence,
                timeout=self._config.timeout,
                on_push=self._on_push,
                on_pong=self._on_pong,
            )
            try:
                place = await self._locate()
                await self._servers.open(place, link)
                await self._on_up(link)
                if not link.is_open:
                    raise LinkLost(link.fault or "the connection was lost")
            except (NoServer, LinkLost, ReplyError, TimeoutError) as error:
                link.abort()
                self._note(error)
                await asyncio.sleep(backoff.next())
                continue
            except BaseException:
                link.abort()
                raise
            away = 0.0 if self.down_since is None else self._loop.time() - self.down_since
            is_elsewhere = place != self.place
            self.link, self.place, self.down_since, self.refused, self.reason = link, place, None, False, ""
            link.on_lost = self._dropped
            self._changed.set()
            fields = {"line": self._name, "host": place[0], "port": place[1]}
            if not self._outage.recovered(**fields) and is_elsewhere:
                _log.info("connected", seconds=round(away, 1), **fields)
            backoff.reset()
            try:
                await link.lost.wait()
            finally:
                link.abort()
                self._dropped()
            self._on_lost()

    def _dropped(self) -> None:
        if self.link is not None:
            lost = LinkLost(self.link.fault or "the connection was lost")
            self.link, self.down_since = None, self._loop.time()
            self._changed.clear()
            self._note(lost)

    def _note(self, error: Exception) -> None:
        reason = str(error) if isinstance(error, NoServer) else said(error)
        self._outage.failed(line=self._name, reason=reason)
        self.reason = reason
        self.refused = is_refusal(error)

    @property
    def is_hopeless(self) -> bool:
        """Whether it has been lost for longer than a call may take: whoever comes now should not wait in vain."""
        return self.down_since is not None and self._loop.time() - self.down_since > self._config.timeout

    async def up(self, deadline: float) -> Link:
        """The link, as soon as it is open. Raises TimeoutError at the deadline (loop time), or at once if it `is_hopeless`;
        LinkLost when it is not wanted any more."""
        while self.link is None:
            if self._retired:
                raise LinkLost("the server is no longer one of ours")
            if self.is_hopeless:
                raise TimeoutError(self.reason)
            async with asyncio.timeout_at(deadline):
                await self._changed.wait()
        return self.link

    def retire(self) -> None:
        """Nobody waits for it any more."""
        self._retired = True
        self._changed.set()

    def hang_up(self) -> None:
        """Drops the link, so that the next one leads to wherever `locate` says now."""
        if self.link is not None:
            self.link.abort()
