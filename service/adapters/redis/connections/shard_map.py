"""The servers that this node talks to, by the channels that live on them; a subscription is kept where its channel lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator

import structlog

from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.shard import Shard
from service.adapters.redis.connections.topology import NoServer, Place, Servers
from service.adapters.store.config import ServerTime
from service.aio.tasks import TaskSupervisor
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics
from service.telemetry.outage import OutageLog

WATCH_SECONDS = 3.0
"""Between two looks at where the servers are, and whether they are who they were; a change is noticed sooner when a
connection breaks over it."""
HURRY_SECONDS = 0.5
"""The same while a server of a Cluster is lost: somebody takes its place soon."""
SETTLE_SECONDS = 0.1
"""Before a Cluster that is failing over or resharding is asked again who owns what."""

_log = structlog.get_logger("redis")


def unavailable(message: str) -> ServiceError:
    """What the broker on Redis fails with."""
    return ServiceError(ErrorCode.BROKER_UNAVAILABLE, message)


class Shards:
    """The only one, or those of a Cluster.

    `on_message(name, message)`; `on_interrupted(names)` when they are subscribed again after a time in which they were not;
    `on_time`: what the servers' clocks show.
    """

    def __init__(
        self,
        config: RedisConfig,
        metrics: Metrics,
        *,
        on_message: Callable[[bytes, bytes], None],
        on_interrupted: Callable[[Collection[bytes]], None],
        on_time: ServerTime | None = None,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._on_message = on_message
        self._on_interrupted = on_interrupted
        self._where = Servers(config, on_time)
        self.is_cluster = self._where.is_cluster
        """Whether channels live on different servers."""
        self._fresh = True
        self._shut: str | None = "the broker is not started yet"
        """Why nothing can be asked of it; None while it is open."""
        self._shards: dict[Place | None, Shard] = {}
        self._tasks = TaskSupervisor(metrics.process.count_task_death)
        self._homeless: dict[bytes, None] = {}
        """Names whose server does not want them any more, until they are subscribed elsewhere."""
        self._rehoming: asyncio.Task[None] | None = None
        self._unsettled = False
        self._slots = OutageLog(_log, "slots unknown", "slots known again")
        self._places = OutageLog(_log, "servers unknown", "servers known again")
        self._homed = -1
        """The version of the slots by which all names are where they belong."""

    def __iter__(self) -> Iterator[Shard]:
        return iter(list(self._shards.values()))

    # --- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Once, before anything else. Raises ServiceError."""
        if not self._fresh:
            raise unavailable("the broker has been started before")
        try:
            self._where.read_certificates()
        except OSError as error:
            raise unavailable(
                f"broker.ca, broker.certificate or broker.private_key cannot be used: {error.strerror or error}"
            ) from error
        self._fresh = False
        self._shut = None

    async def reach(self) -> None:
        """Returns when every line is open. Raises ServiceError when a server refuses, or cannot be reached within
        `config.start` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.start
        if self.is_cluster:
            await self._first_slots(deadline)
            self.require_open()
        shards = [self._shard(place) for place in self._where.places or (None,)]
        lines = [line for shard in shards for line in shard.lines]
        while any(line.link is None for line in lines):
            line = next(line for line in lines if line.link is None)
            if line.refused or loop.time() > deadline:
                raise unavailable(f"Redis: {line.reason}")
            await asyncio.sleep(0.02)
        self._tasks.spawn("redis watch", self._watch())

    async def _first_slots(self, deadline: float) -> None:
        while not self._where.places:
            try:
                await self._where.refresh()
            except NoServer as error:
                if error.refused or asyncio.get_running_loop().time() > deadline:
                    raise unavailable(f"Redis: {error}") from error
                await asyncio.sleep(SETTLE_SECONDS)

    async def close(self) -> None:
        """Ends all lines and tasks; whoever waits for a subscription gets a ServiceError."""
        self._fresh = False
        self._shut = "the broker is closed"
        ended = self._tasks.cancel()
        for shard in self:
            shard.subscriber.end(unavailable(self._shut))
            shard.retire()
        await ended
        await self._where.close()
        self._shards.clear()

    def require_open(self) -> None:
        """Raises ServiceError before `open` and after `close`."""
        if self._shut is not None:
            raise unavailable(self._shut)

    def check(self) -> None:
        """Raises ServiceError unless all is well. Costs no call: every link asks by itself all the time."""
        self.require_open()
        if self._tasks.died is not None:
            raise unavailable(f"the task {self._tasks.died!r} has died")
        for shard in self:
            for line in shard.lines:
                if line.link is None:
                    raise unavailable(f"Redis: {line.reason}")

    # --- which one ----------------------------------------------------------------------------------------------------

    def of(self, key: str) -> Shard:
        """Where a key lives, as last heard of. Raises ServiceError, as `require_open` too."""
        if self._shut is not None:
            raise unavailable(self._shut)
        if (only := self._shards.get(None)) is not None:
            return only
        try:
            return self._shard(self._where.owner(key))
        except NoServer as error:
            raise unavailable(f"Redis: {error}") from error

    def redirected(self, redirection: str, shard: Shard) -> None:
        """Takes in that a shard sent a call elsewhere: `MOVED slot host:port`."""
        self._where.redirected(redirection, shard.place)
        self._rehome_soon()

    def _shard(self, place: Place | None) -> Shard:
        """The shard at a place, with its lines kept open; `None` stands for the only one."""
        if (known := self._shards.get(place)) is not None:
            return known
        shard = self._shards[place] = Shard(
            place,
            self._where,
            self._config,
            self._tasks,
            on_message=self._on_message,
            on_interrupted=self._on_interrupted,
            on_dismissed=lambda name, redirection: self._dismissed(place, name, redirection),
            on_pong=self._metrics.broker.broker_lag_seconds.observe,
            on_lost=self._lost,
        )
        return shard

    def _lost(self, line: str) -> None:
        self._metrics.broker.broker_reconnects.labels(line=line).inc()
        if self.is_cluster:
            self._rehome_soon()

    # --- subscriptions ------------------------------------------------------------------------------------------------

    async def subscribe(self, name: bytes) -> None:
        """Returns when its server has confirmed. Raises ServiceError; then it is not subscribed, unless for somebody else."""
        try:
            await self.of(name.decode()).subscriber.subscribe(name)
        except TimeoutError as error:
            raise unavailable("Redis did not confirm the subscription in time") from error
        finally:
            for shard in self:
                shard.subscriber.let_go(name)

    def unsubscribe(self, name: bytes) -> None:
        """From here on nothing of the name is delivered; harmless if it is not subscribed."""
        for shard in self:
            shard.subscriber.unsubscribe(name)

    def wants(self, name: bytes) -> bool:
        """Whether somebody's `subscribe` has returned, or will."""
        return any(name in shard.subscriber for shard in self)

    def _dismissed(self, place: Place | None, name: bytes, redirection: str | None) -> None:
        """The server gave a subscription up, or never took it: its slot has moved."""
        if self.is_cluster:
            if redirection is not None:
                self._where.redirected(redirection, place)
            self._homeless[name] = None
            self._rehome_soon()

    def _rehome_soon(self) -> None:
        self._unsettled = True
        if self._rehoming is None or self._rehoming.done():
            self._rehoming = self._tasks.spawn("redis slots", self._find_homes())

    async def _find_homes(self) -> None:
        """Asks the Cluster who owns what, and again for as long as it sends us elsewhere."""
        while self._unsettled:
            self._unsettled = False
            try:
                await self._where.refresh()
                self._slots.recovered()
            except NoServer as error:
                self._slots.failed(reason=str(error))
            self._rehome()
            await asyncio.sleep(SETTLE_SECONDS)

    def _rehome(self) -> None:
        """Channels whose owner is another one now are subscribed there."""
        if self._where.version == self._homed and not self._homeless:
            return
        self._homed = self._where.version
        for shard in self:
            moving: dict[Shard, list[bytes]] = {}
            for name in shard.subscriber.names:
                owner = self._owner(name)
                if owner is not None and owner is not shard:
                    moving.setdefault(owner, []).append(name)
            for owner, names in moving.items():
                owner.subscriber.adopt(shard.subscriber.release(names))
        for name in list(self._homeless):
            if (owner := self._owner(name)) is not None:
                # Its slot has come back, or has moved without our noticing.
                del self._homeless[name]
                owner.subscriber.ask_again(name)
        for shard in self:
            if shard.place not in self._where.places and not len(shard.subscriber):
                self._shards.pop(shard.place)
                shard.drop()

    def _owner(self, name: bytes) -> Shard | None:
        try:
            return self._shard(self._where.owner(name.decode()))
        except NoServer:
            return None

    # --- watch --------------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Notices servers that have changed their parts without a connection breaking over it."""
        while True:
            lost = self.is_cluster and any(line.link is None for shard in self for line in shard.lines)
            await asyncio.sleep(HURRY_SECONDS if lost else WATCH_SECONDS)
            try:
                if self.is_cluster:
                    await self._where.refresh()
                    self._rehome()
                else:
                    self._shards[None].follow(await self._where.place())
                self._places.recovered()
            except NoServer as error:
                self._places.failed(reason=str(error))
            await asyncio.gather(*(shard.look() for shard in self))
