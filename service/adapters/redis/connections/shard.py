"""One server as this node sees it: a line for calls, and one for messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import structlog

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.generation import RUN, Seat
from service.adapters.redis.connections.link import Link, LinkLost, ReplyError
from service.adapters.redis.connections.reconnecting_link import ReconnectingLink
from service.adapters.redis.connections.subscriber import Subscriber
from service.adapters.redis.connections.topology import NoServer, Place, Servers, ask_server
from service.adapters.redis.lua.scripts import CHANNEL_SCRIPTS, REIGN
from service.aio.tasks import TaskSupervisor

_log = structlog.get_logger("redis")


class Shard:
    """The server at a place, or the only one, wherever that is, with its lines kept open.

    `on_message`, `on_interrupted`, `on_dismissed`, `on_pong`: see Subscriber; `on_lost(line)` when a line has lost its link.
    """

    def __init__(
        self,
        place: Place | None,
        servers: Servers,
        config: RedisConfig,
        tasks: TaskSupervisor,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_interrupted: Callable[[Collection[bytes]], None],
        on_dismissed: Callable[[bytes, str | None], None],
        on_pong: Callable[[float], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.place = place
        """In a Cluster: which."""
        self._servers = servers
        self._on_interrupted = on_interrupted
        self._seat = Seat()
        self.commands = ReconnectingLink(
            "commands",
            servers,
            config,
            locate=self._locate,
            on_up=self._prepare,
            on_lost=lambda: on_lost("commands"),
        )
        self.subscriber = Subscriber(
            servers,
            config,
            locate=self._locate,
            on_message=on_message,
            on_interrupted=on_interrupted,
            on_lost=lambda: on_lost("messages"),
            on_dismissed=on_dismissed,
            on_pong=on_pong,
        )
        self.lines = (self.commands, self.subscriber.line)
        """Both."""
        self.loading: dict[str, asyncio.Future[None]] = {}
        """Scripts that are being loaded, by their SHA."""
        self._tasks = (
            tasks.spawn("redis commands", self.commands.keep()),
            tasks.spawn("redis messages", self.subscriber.line.keep()),
        )

    async def _locate(self) -> Place:
        return await self._servers.place() if self.place is None else self.place

    def follow(self, master: Place) -> None:
        """Goes to the master, if that is another server than the one that the lines lead to."""
        for line in self.lines:
            if line.link is not None and line.place != master:
                _log.info("the master is another server now", line=line.place, master=master)
                line.hang_up()

    async def look(self) -> None:
        """Whether the server is still the master that it was, in the same life and reign: hangs up if it is none."""
        link = self.commands.link
        if link is None:
            return
        try:
            server = await ask_server(link, cluster=self._servers.is_cluster)
            if self.commands.place is not None:
                self._servers.note_time(self.commands.place, link)
            if await self._seat.take(link, server, self._servers.reign_key(self.place)):
                self._renamed()
        except (LinkLost, NoServer, ReplyError, TimeoutError):
            link.abort()
            return
        messages = self.subscriber.line.link
        if messages is not None and messages.generation[:RUN] != server[:RUN]:
            # The address leads elsewhere by now, and only one connection has been made anew since.
            _log.warning("calls and messages go to two servers", line=self.commands.place)
            for line in self.lines:
                line.hang_up()

    def told(self, link: Link, generation: str) -> None:
        """A script has said which generation the link's server is in, as what the caller knew was old."""
        if self._seat.learn(link, generation):
            self._renamed()

    def _renamed(self) -> None:
        """The same server in another life or reign: its channels begin new epochs, and no connection broke over it."""
        if names := self.subscriber.names:
            self._on_interrupted(names)

    async def _prepare(self, link: Link) -> None:
        for script in (*CHANNEL_SCRIPTS, REIGN):
            await link.call("SCRIPT", "LOAD", script.text)
        await self._seat.take(link, link.generation, self._servers.reign_key(self.place))

    def retire(self) -> None:
        """Nobody waits for its lines any more."""
        for line in self.lines:
            line.retire()

    def drop(self) -> None:
        """Ends its lines: the server is no longer one of ours."""
        self.retire()
        for task in self._tasks:
            task.cancel()
