"""The connections to one server: one for commands, one for messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.connector import RUN_ID_LENGTH, Connector
from service.adapters.redis.connections.errors import Endpoint, NoServerError, error_code, explain_reply
from service.adapters.redis.connections.generation_tracker import GenerationTracker
from service.adapters.redis.connections.link import Link, LinkLost, ReplyError
from service.adapters.redis.connections.reconnecting_link import ReconnectingLink
from service.adapters.redis.connections.servers import Servers
from service.adapters.redis.connections.subscriber import Subscriber, SubscriberCallbacks
from service.adapters.redis.lua.scripts import CHANNEL_SCRIPTS, TERM, Script
from service.adapters.store.errors import unavailable
from service.aio.tasks import TaskSupervisor

_log = structlog.get_logger("redis")


@dataclass(frozen=True, slots=True)
class ShardContext:
    """Dependencies shared by all shards."""

    config: RedisConfig
    connector: Connector
    servers: Servers
    tasks: TaskSupervisor


class Shard:
    """Keeps both connections to one server open: to one master of a Cluster, or to the current master without a
    Cluster."""

    def __init__(
        self,
        endpoint: Endpoint | None,
        context: ShardContext,
        callbacks: SubscriberCallbacks,
        on_commands_lost: Callable[[], None],
    ) -> None:
        """`endpoint`: the master in a Cluster; None for the only master."""
        self.endpoint = endpoint
        """The master in a Cluster; None for the only master."""
        self._context = context
        self._on_interrupted = callbacks.on_interrupted
        self._generation = GenerationTracker()
        self._loading: dict[str, asyncio.Future[None]] = {}
        """Scripts that are being loaded, by their SHA."""
        self.commands = ReconnectingLink(
            "commands", context.config, connect=self._connect_commands, on_lost=on_commands_lost
        )
        self.subscriber = Subscriber(
            context.config,
            is_sharded=context.servers.is_cluster,
            connect=self._connect_messages,
            callbacks=callbacks,
        )
        self.connections = (self.commands, self.subscriber.connection)
        """Both connections."""
        self._runs = (
            context.tasks.spawn("redis commands", self.commands.run()),
            context.tasks.spawn("redis messages", self.subscriber.connection.run()),
        )

    async def _master(self) -> Endpoint:
        return await self._context.servers.master() if self.endpoint is None else self.endpoint

    async def _connect_messages(self, link: Link) -> Endpoint:
        endpoint = await self._master()
        link.generation = (await self._context.connector.open(endpoint, link)).name
        return endpoint

    async def _connect_commands(self, link: Link) -> Endpoint:
        endpoint = await self._master()
        identity = await self._context.connector.open(endpoint, link)
        for script in (*CHANNEL_SCRIPTS, TERM):
            await link.call("SCRIPT", "LOAD", script.text)
        await self._generation.identify(link, identity.name, self._context.servers.term_key(self.endpoint))
        return endpoint

    async def load(self, link: Link, script: Script) -> None:
        """Loads a script that the server does not have, once for all calls that need it. Raises ServiceError."""
        if (loading := self._loading.get(script.sha)) is not None:
            await asyncio.shield(loading)
            return
        loading = self._loading[script.sha] = asyncio.get_running_loop().create_future()
        try:
            await link.call("SCRIPT", "LOAD", script.text)
        except LinkLost:
            return
        except ReplyError as error:
            reason = explain_reply(error) or error_code(error)
            raise unavailable(f"Redis refuses to load a script: {reason}") from error
        finally:
            del self._loading[script.sha]
            loading.set_result(None)

    def move_to(self, master: Endpoint) -> None:
        """Reconnects to the master, if the connections lead to another server."""
        for connection in self.connections:
            if connection.link is not None and connection.endpoint != master:
                _log.info("redis_master_changed", line=connection.endpoint, master=master)
                connection.reconnect()

    async def check_identity(self) -> None:
        """Asks the server whether it is still the master it was. Reconnects if not; reports a new generation."""
        link, endpoint = self.commands.link, self.commands.endpoint
        if link is None or endpoint is None:
            return
        try:
            server = (await self._context.connector.identify(endpoint, link)).name
            if await self._generation.identify(link, server, self._context.servers.term_key(self.endpoint)):
                self._report_new_generation()
        except (LinkLost, NoServerError, ReplyError, TimeoutError):
            link.abort()
            return
        messages = self.subscriber.connection.link
        if messages is not None and messages.generation[:RUN_ID_LENGTH] != server[:RUN_ID_LENGTH]:
            # The address belongs to another server now, and only one of the two connections has been replaced.
            _log.warning("redis_connections_diverged", line=self.commands.endpoint)
            for connection in self.connections:
                connection.reconnect()

    def learn_generation(self, link: Link, generation: str) -> None:
        """Sets the generation from the reply of a script to a caller with an outdated one."""
        if self._generation.learn(link, generation):
            self._report_new_generation()

    def _report_new_generation(self) -> None:
        """Reports an interruption: the channels of a new generation begin new epochs, though no connection was lost."""
        if names := self.subscriber.names:
            self._on_interrupted(names)

    def retire(self) -> None:
        """Fails all calls that wait for the connections."""
        for connection in self.connections:
            connection.retire()

    def close(self) -> None:
        """Closes the connections for good."""
        self.retire()
        for run in self._runs:
            run.cancel()
