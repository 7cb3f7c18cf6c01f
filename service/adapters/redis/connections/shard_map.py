"""The shards of this node: one, or those of a Cluster. Each key and each subscription belongs to one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from functools import partial

import structlog

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.connector import Connector
from service.adapters.redis.connections.errors import Endpoint, NoServerError
from service.adapters.redis.connections.servers import Servers
from service.adapters.redis.connections.shard import Shard, ShardContext
from service.adapters.redis.connections.subscriber import SubscriberCallbacks
from service.adapters.store.config import ServerTimeObserver
from service.adapters.store.errors import unavailable
from service.adapters.store.retry import retry
from service.aio.tasks import TaskSupervisor
from service.core.backoff import Backoff
from service.telemetry.metrics import Metrics
from service.telemetry.outage import OutageLog

CHECK_INTERVAL = 3.0
"""Seconds between two checks of the servers' addresses and identities. A lost connection starts a check sooner."""
FAILOVER_CHECK_INTERVAL = 0.5
"""The same while a server of a Cluster is lost: another one will replace it soon."""
REFRESH_DELAY = 0.1
"""Seconds before a Cluster that is failing over or resharding is asked again for its slots."""
CONNECT_POLL_INTERVAL = 0.02

_log = structlog.get_logger("redis")


class ShardMap:
    """Opens shards as they are needed, and finds the shard of a key."""

    def __init__(
        self,
        config: RedisConfig,
        metrics: Metrics,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_interrupted: Callable[[Collection[bytes]], None],
        on_server_time: ServerTimeObserver | None = None,
    ) -> None:
        """`on_message` gets a name and a payload; `on_interrupted` names that are subscribed again after an interruption."""
        self._config = config
        self._metrics = metrics
        self._on_message = on_message
        self._on_interrupted = on_interrupted
        self._connector = Connector(config, on_server_time)
        self._servers = Servers(config, self._connector)
        self.is_cluster = self._servers.is_cluster
        """Whether channels live on different servers."""
        self._tasks = TaskSupervisor(metrics.process.count_task_death)
        self._context = ShardContext(config, self._connector, self._servers, self._tasks)
        self._is_new = True
        self._closed_reason: str | None = "the broker is not started yet"
        """Why calls fail; None while it is open."""
        self._shards: dict[Endpoint | None, Shard] = {}
        self._mover = _SubscriptionMover(self._servers, self._shards, self.shard_at, self._tasks)
        self._servers_outage = OutageLog(_log, "redis_servers_unknown", "redis_servers_known")

    def __iter__(self) -> Iterator[Shard]:
        return iter(list(self._shards.values()))

    # --- start and end ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Allows calls. Called once, before anything else. Raises ServiceError."""
        if not self._is_new:
            raise unavailable("the broker has been started before")
        try:
            self._connector.load_certificates()
        except OSError as error:
            raise unavailable(
                f"broker.ca, broker.certificate or broker.private_key cannot be used: {error.strerror or error}"
            ) from error
        self._is_new = False
        self._closed_reason = None

    async def connect(self) -> None:
        """Returns when every connection is open.

        Raises ServiceError when a server refuses, or cannot be reached within `config.start_timeout`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.start_timeout
        if self.is_cluster:
            await self._load_slots(deadline)
            self.require_open()
        shards = [self.shard_at(endpoint) for endpoint in self._servers.cluster.masters or (None,)]
        connections = [connection for shard in shards for connection in shard.connections]
        while waiting := [connection.outage for connection in connections if connection.outage is not None]:
            if waiting[0].is_permanent or loop.time() > deadline:
                raise unavailable(f"Redis: {waiting[0].reason}")
            await asyncio.sleep(CONNECT_POLL_INTERVAL)
        self._tasks.spawn("redis server check", self._check_forever())

    async def _load_slots(self, deadline: float) -> None:
        def give_up(error: NoServerError) -> None:
            if error.is_permanent or asyncio.get_running_loop().time() > deadline:
                raise unavailable(f"Redis: {error}") from error

        await retry(self._servers.cluster.refresh, Backoff(REFRESH_DELAY, REFRESH_DELAY), NoServerError, give_up)

    async def close(self) -> None:
        """Closes all connections. Calls that wait for a subscription get a ServiceError."""
        self._is_new = False
        self._closed_reason = "the broker is closed"
        ended = self._tasks.cancel()
        for shard in self:
            shard.subscriber.close(unavailable(self._closed_reason))
            shard.retire()
        await ended
        await self._servers.close()
        self._shards.clear()

    def require_open(self) -> None:
        """Raises ServiceError before `open` and after `close`."""
        if self._closed_reason is not None:
            raise unavailable(self._closed_reason)

    def check(self) -> None:
        """Raises ServiceError unless every connection is open. Sends nothing: the links send pings all the time."""
        self.require_open()
        if self._tasks.died is not None:
            raise unavailable(f"the task {self._tasks.died!r} has died")
        for shard in self:
            for connection in shard.connections:
                if connection.link is None:
                    raise unavailable(f"Redis: {connection.reason}")

    # --- the shard of a key -------------------------------------------------------------------------------------------

    def shard_for(self, key: str) -> Shard:
        """Returns the shard of a key, as last known. Raises ServiceError, also when it is not open."""
        if self._closed_reason is not None:
            raise unavailable(self._closed_reason)
        if (only := self._shards.get(None)) is not None:
            return only
        try:
            return self.shard_at(self._servers.cluster.master_of(key))
        except NoServerError as error:
            raise unavailable(f"Redis: {error}") from error

    def shard_at(self, endpoint: Endpoint | None) -> Shard:
        """Returns the shard of a master, which is opened if it is new. None is the only master."""
        if (known := self._shards.get(endpoint)) is not None:
            return known
        shard = self._shards[endpoint] = Shard(
            endpoint,
            self._context,
            SubscriberCallbacks(
                on_message=self._on_message,
                on_interrupted=self._on_interrupted,
                on_revoked=partial(self._on_revoked, endpoint),
                on_pong=self._metrics.broker.broker_lag_seconds.observe,
                on_lost=partial(self._on_lost, "messages"),
            ),
            on_commands_lost=partial(self._on_lost, "commands"),
        )
        return shard

    def redirect(self, redirection: str, shard: Shard) -> None:
        """Stores the redirection that a shard has replied to a call: `MOVED slot host:port`."""
        self._servers.cluster.redirect(redirection, shard.endpoint)
        self._mover.start()

    def _on_lost(self, connection: str) -> None:
        self._metrics.broker.broker_reconnects.labels(line=connection).inc()
        if self.is_cluster:
            self._mover.start()

    # --- subscriptions ------------------------------------------------------------------------------------------------

    async def subscribe(self, name: bytes) -> None:
        """Returns when the server has confirmed. Raises ServiceError, after which the name is not subscribed for this
        caller."""
        try:
            await self.shard_for(name.decode()).subscriber.subscribe(name)
        except TimeoutError as error:
            raise unavailable("Redis did not confirm the subscription in time") from error
        finally:
            for shard in self:
                shard.subscriber.release(name)

    def unsubscribe(self, name: bytes) -> None:
        """Stops delivering messages of the name. Harmless if it is not subscribed."""
        for shard in self:
            shard.subscriber.unsubscribe(name)

    def is_subscribed(self, name: bytes) -> bool:
        """Whether a `subscribe` of the name has returned or still waits."""
        return any(name in shard.subscriber for shard in self)

    def _on_revoked(self, endpoint: Endpoint | None, name: bytes, redirection: str | None) -> None:
        """Moves a subscription whose slot has moved."""
        if self.is_cluster:
            if redirection is not None:
                self._servers.cluster.redirect(redirection, endpoint)
            self._mover.add(name)

    # --- checks -------------------------------------------------------------------------------------------------------

    async def _check_forever(self) -> None:
        """Detects servers that have changed roles without closing a connection."""
        while True:
            is_lost = self.is_cluster and any(
                connection.link is None for shard in self for connection in shard.connections
            )
            await asyncio.sleep(FAILOVER_CHECK_INTERVAL if is_lost else CHECK_INTERVAL)
            try:
                if self.is_cluster:
                    await self._servers.cluster.refresh()
                    self._mover.move()
                else:
                    self._shards[None].move_to(await self._servers.master())
                self._servers_outage.recovered()
            except NoServerError as error:
                self._servers_outage.failed(reason=str(error))
            await asyncio.gather(*(shard.check_identity() for shard in self))


class _SubscriptionMover:
    """Moves subscriptions to the masters that own their slots."""

    def __init__(
        self,
        servers: Servers,
        shards: dict[Endpoint | None, Shard],
        shard_at: Callable[[Endpoint], Shard],
        tasks: TaskSupervisor,
    ) -> None:
        self._servers = servers
        self._shards = shards
        self._shard_at = shard_at
        self._tasks = tasks
        self._revoked: dict[bytes, None] = {}
        """Names that their servers have revoked, until they are subscribed again."""
        self._run: asyncio.Task[None] | None = None
        self._is_requested = False
        self._outage = OutageLog(_log, "redis_slots_unknown", "redis_slots_known")
        self._moved_version = -1
        """The version of the slots at the last move of all names."""

    def add(self, name: bytes) -> None:
        """Subscribes a revoked name again, where its slot is now."""
        self._revoked[name] = None
        self.start()

    def start(self) -> None:
        """Asks for the slots and moves names, in a task."""
        self._is_requested = True
        if self._run is None or self._run.done():
            self._run = self._tasks.spawn("redis slot refresh", self._refresh_and_move())

    async def _refresh_and_move(self) -> None:
        """Repeats while servers redirect this node."""
        while self._is_requested:
            self._is_requested = False
            try:
                await self._servers.cluster.refresh()
                self._outage.recovered()
            except NoServerError as error:
                self._outage.failed(reason=str(error))
            self.move()
            await asyncio.sleep(REFRESH_DELAY)

    def move(self) -> None:
        """Moves names whose slot has another master now, and closes shards without slots."""
        version = self._servers.cluster.version
        if version == self._moved_version and not self._revoked:
            return
        self._moved_version = version
        for shard in list(self._shards.values()):
            moving: dict[Shard, list[bytes]] = {}
            for name in shard.subscriber.names:
                owner = self._owner(name)
                if owner is not None and owner is not shard:
                    moving.setdefault(owner, []).append(name)
            for owner, names in moving.items():
                owner.subscriber.adopt(shard.subscriber.give_up(names))
        for name in list(self._revoked):
            if (owner := self._owner(name)) is not None:
                # Its slot has returned, or has moved unnoticed.
                del self._revoked[name]
                owner.subscriber.resubscribe(name)
        for endpoint, shard in list(self._shards.items()):
            if endpoint not in self._servers.cluster.masters and not len(shard.subscriber):
                del self._shards[endpoint]
                shard.close()

    def _owner(self, name: bytes) -> Shard | None:
        try:
            return self._shard_at(self._servers.cluster.master_of(name.decode()))
        except NoServerError:
            return None
