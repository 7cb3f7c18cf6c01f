"""The Broker on Redis or Valkey: one server, Sentinel or Cluster.

Each operation on a channel is one Lua script, so it happens as of one moment. A life of the server (a process in a role) is
a *generation*: what it writes for the first time in a new one begins a new epoch, because the life before may have
accepted what this one does not know (see channel.lua).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import structlog

from service.adapters.redis import wire
from service.adapters.redis.config import Keys, RedisConfig
from service.adapters.redis.line import Line
from service.adapters.redis.link import Argument, Link, LinkLost, ReplyError
from service.adapters.redis.scripts import HISTORY, LISTED, MARK, PUBLISH, SNAPSHOT, Script
from service.adapters.redis.subscriber import Subscriber
from service.adapters.redis.topology import NoServer, Place, Servers, learn_generation, said
from service.core.broker import ChannelInfo, EventSink, Mark, Page, Receipt, Snapshot
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication
from service.core.position import Position, missed
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics

WATCH_SECONDS = 3.0
"""Between two looks at where the servers are, and whether they are who they were; a change is noticed sooner when a
connection breaks over it."""
HURRY_SECONDS = 0.5
"""The same while a server of a Cluster is lost: somebody takes its place soon."""
WAIT_SECONDS = 0.1
"""Before a server that is loading, failing over or resharding is asked again."""
LIST_CHUNK = 200
MEASURED = 8
"""One call in so many is timed: the histogram costs a tenth of a publish."""

_log = structlog.get_logger("redis")


class Names(NamedTuple):
    """A channel's names at Redis."""

    tag: str
    """Any key of it, for finding its slot."""
    keys: tuple[str, str, str, str]
    receipt: str
    """What a receipt's key begins with."""
    events: bytes
    """Where it is published."""


class Server:
    """One server as this node sees it: a line for calls, and one for messages."""

    def __init__(self, place: Place | None, commands: Line, subscriber: Subscriber) -> None:
        self.place = place
        """In a Cluster: which."""
        self.commands = commands
        self.subscriber = subscriber
        self.loading: dict[str, asyncio.Future[None]] = {}
        """Scripts that are being loaded, by their SHA."""
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def lines(self) -> tuple[Line, Line]:
        """Both."""
        return self.commands, self.subscriber.line


class RedisBroker:
    """Keeps the port's guarantee over any number of nodes.

    A call that was sent when the connection broke is sent again: a receipt makes that harmless. Events that enter no stream
    have none, so they are not.
    """

    def __init__(self, config: RedisConfig, metrics: Metrics) -> None:
        self._config = config
        self._metrics = metrics
        self._names = lru_cache(maxsize=20_000)(_namer(config.prefix))
        self._index = Keys(config.prefix)
        self._random = random.Random()  # noqa: S311  # epochs must differ; nothing is guarded by them
        self._sink: EventSink | None = None
        self._closed = False
        self._dead: str | None = None
        self._pending = 0
        self._calls = 0
        self._loop: asyncio.AbstractEventLoop
        self._position_ttl = _ms(config.position_ttl)
        self._window = _ms(config.idempotency_window)
        self._channels: dict[bytes, ChannelKey] = {}
        self._servers: dict[Place | None, Server] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._homeless: dict[bytes, None] = {}
        """Names whose server does not want them any more, until they are subscribed elsewhere."""
        self._rehoming: asyncio.Task[None] | None = None
        self._unsettled = False
        self._homed = -1
        """The version of the slots by which all names are where they belong."""
        self._where: Servers | None = None
        self._publish = "PUBLISH"

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self, sink: EventSink) -> None:
        """As the port says; waits `config.start` seconds for servers that cannot be reached."""
        if self._closed or self._sink is not None:
            raise _unavailable("the broker has been started before")
        try:
            where = self._where = Servers(self._config)
        except OSError as error:
            raise _unavailable(
                f"broker.ca, broker.certificate or broker.private_key cannot be used: {error.strerror or error}"
            ) from error
        self._loop = asyncio.get_running_loop()
        self._publish = "SPUBLISH" if where.is_cluster else "PUBLISH"
        self._sink = sink
        self._metrics.broker_queue.set_function(lambda: self._pending)
        self._metrics.broker_subscriptions.set_function(lambda: len(self._channels))
        try:
            await self._first_contact(where)
        except BaseException:
            await self.close()
            raise
        self._spawn("redis watch", self._watch(where))

    async def _first_contact(self, where: Servers) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.start
        if where.is_cluster:
            await self._first_slots(where, deadline)
        servers = [self._server(where, place) for place in where.places or (None,)]
        lines = [line for server in servers for line in server.lines]
        while any(line.link is None for line in lines):
            line = next(line for line in lines if line.link is None)
            if line.refused or loop.time() > deadline:
                raise _unavailable(f"Redis: {line.reason}")
            await asyncio.sleep(0.02)

    async def _first_slots(self, where: Servers, deadline: float) -> None:
        while not where.places:
            try:
                await where.refresh()
            except NoServer as error:
                if error.refused or asyncio.get_running_loop().time() > deadline:
                    raise _unavailable(f"Redis: {error}") from error
                await asyncio.sleep(WAIT_SECONDS)

    async def close(self) -> None:
        """As the port says."""
        self._closed = True
        self._sink = None
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        for server in self._servers.values():
            server.subscriber.end(_unavailable("the broker is closed"))
            for line in server.lines:
                line.retire()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._where is not None:
            await self._where.close()
        self._servers.clear()
        self._channels.clear()

    async def check(self) -> None:
        """As the port says. Costs no call: every link asks by itself all the time."""
        self._started()
        if self._dead is not None:
            raise _unavailable(f"the task {self._dead!r} has died")
        for server in self._servers.values():
            for line in server.lines:
                if line.link is None:
                    raise _unavailable(f"Redis: {line.reason}")

    # --- the port -----------------------------------------------------------------------------------------------------

    async def publish(self, publication: Publication) -> Receipt:
        """As the port says. Raises ValueError for a durable or latest event without retention: a fault in the caller."""
        names = self._names(publication.channel)
        if publication.delivery is Delivery.EPHEMERAL:
            await self._pass_on(names, wire.ephemeral(publication))
            return Receipt(publication.id, epoch="")
        if publication.retention is None:
            raise ValueError(f"a {publication.delivery.value} publication needs a retention")
        durable = publication.delivery is Delivery.DURABLE
        receipt_key = f"{names.receipt}{publication.id}"
        if publication.sender is not None:  # an id holds no space
            receipt_key = f"{receipt_key} {publication.sender}"
        duplicate, epoch, place, fresh = await self._run(
            PUBLISH,
            names,
            (receipt_key,),
            "d" if durable else "l",
            publication.id,
            wire.encode(publication),
            publication.retention.entries,
            _ms(publication.retention.ttl),
            self._window,
            self._publish,
            names.events,
            "" if durable else f"{publication.type}\n{publication.key or ''}",
        )
        if fresh or place == 1:  # a repeat of the first, too: it may have been accepted and not entered
            await self._enter(publication.channel)
        return Receipt(
            publication.id,
            epoch.decode(),
            offset=place if durable else None,
            rev=None if durable else place,
            duplicate=bool(duplicate),
        )

    async def subscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        self._started()
        names = self._names(channel)
        await self._enter(channel)  # first, so that what fails leaves no subscription
        self._channels[names.events] = channel
        try:
            await self._server_of(names.tag).subscriber.subscribe(names.events)
        except TimeoutError as error:
            raise _unavailable("Redis did not confirm the subscription in time") from error
        finally:
            self._let_go(names.events)

    def _let_go(self, name: bytes) -> None:
        """Forgets a channel that nobody's `subscribe` has returned for or waits for."""
        for server in self._servers.values():
            server.subscriber.let_go(name)
        if not any(name in server.subscriber for server in self._servers.values()):
            self._channels.pop(name, None)

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        self._started()
        name = self._names(channel).events
        self._channels.pop(name, None)
        for server in self._servers.values():
            server.subscriber.unsubscribe(name)

    async def snapshot(self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int) -> Snapshot:
        """As the port says."""
        epoch, offset, id_, rev, state, kept, fresh = await self._run(
            SNAPSHOT,
            self._names(channel),
            (),
            since.epoch if since is not None else "",
            since.offset if since is not None else "",
            max_events,
            max_bytes,
        )
        if fresh:
            await self._enter(channel)
        with _readable():
            top = _position(epoch, offset, id_)
            values = _state(channel, state, top.epoch)
            entries = [_entry(channel, entry, top.epoch) for entry in kept or ()]
        if since is None:
            return Snapshot(top, values, (), None, rev)
        found = missed(since, top, entries) if kept is not None or since.offset == top.offset else None
        if found is None or sum(len(event.data) for event in found) > max_bytes:
            return Snapshot(top, values, (), recovered=False, rev=rev)
        return Snapshot(top, values, found, recovered=True, rev=rev)

    async def marks(self, channels: Sequence[ChannelKey]) -> Sequence[Mark]:
        """As the port says: one pipeline."""
        self._started()
        answers = await asyncio.gather(
            *(self._run(MARK, self._names(channel), ()) for channel in channels), return_exceptions=True
        )
        marks = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            epoch, offset, rev = answer
            marks.append(Mark(epoch.decode(), offset, rev))
        return marks

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> Page:
        """As the port says."""
        epoch, offset, id_, entries, more, fresh = await self._run(
            HISTORY,
            self._names(channel),
            (),
            "" if after is None else after,
            "" if before is None else before,
            limit,
        )
        if fresh:
            await self._enter(channel)
        with _readable():
            top = _position(epoch, offset, id_)
            return Page(top, [_entry(channel, entry, top.epoch) for entry in entries], bool(more))

    async def channels(self, tenant: str, prefix: str, limit: int) -> Sequence[ChannelInfo]:
        """As the port says. Reads the tenant's index, and drops from it what has expired."""
        found: list[ChannelInfo] = []
        low = f"[{prefix}" if prefix else "-"
        while len(found) < limit:
            names = await self._index_page(tenant, low)
            for name in names:
                if not name.startswith(prefix):
                    return found
                info = await self._listed(ChannelKey(tenant, name))
                if info is not None:
                    found.append(info)
                    if len(found) == limit:
                        return found
            if len(names) < LIST_CHUNK:
                return found
            low = f"({names[-1]}"
        return found

    # --- listing ------------------------------------------------------------------------------------------------------

    async def _enter(self, channel: ChannelKey) -> None:
        """Enters a channel into its tenant's index, which lives in a slot of its own and so not in the script."""
        if channel.tenant:
            key = self._index.tagged("channels", channel.tenant)
            await self._plain(key, "ZADD", key, 0, channel.name)

    async def _index_page(self, tenant: str, low: str) -> list[str]:
        key = self._index.tagged("channels", tenant)
        names = await self._plain(key, "ZRANGEBYLEX", key, low, "+", "LIMIT", 0, LIST_CHUNK)
        return [name.decode() for name in names]

    async def _listed(self, channel: ChannelKey) -> ChannelInfo | None:
        names = self._names(channel)
        counted = "SHARDNUMSUB" if self._publish == "SPUBLISH" else "NUMSUB"
        listed, known, epoch, offset, id_ = await self._run(LISTED, names, (), counted, names.events)
        if not known:
            key = self._index.tagged("channels", channel.tenant)
            await self._plain(key, "ZREM", key, channel.name)
        if not listed:
            return None
        if epoch:
            return ChannelInfo(channel.name, _position(epoch, offset, id_))
        return ChannelInfo(channel.name, (await self.snapshot(channel, None, 0, 0)).top)

    # --- calls --------------------------------------------------------------------------------------------------------

    async def _run(self, script: Script, names: Names, keys: tuple[str, ...], *arguments: Argument) -> Any:
        """Runs a script on a channel, again after whatever may pass, until `config.timeout` is over."""

        def command(link: Link) -> tuple[Argument, ...]:
            return (
                "EVALSHA",
                script.sha,
                4 + len(keys),
                *names.keys,
                *keys,
                link.generation,
                f"{self._random.getrandbits(64):016x}",
                self._position_ttl,
                *arguments,
            )

        return await self._call(names.tag, command, script)

    async def _plain(self, key: str, *command: Argument) -> Any:
        return await self._call(key, lambda _: command)

    async def _pass_on(self, names: Names, message: bytes) -> None:
        await self._call(names.tag, lambda _: (self._publish, names.events, message), repeats=False)

    async def _call(
        self,
        tag: str,
        command: Callable[[Link], tuple[Argument, ...]],
        script: Script | None = None,
        *,
        repeats: bool = True,
    ) -> Any:
        """`command` makes what is sent on a link. `repeats`: it may be sent again after it may have been carried out."""
        self._started()
        if self._pending >= self._config.queue:
            self._metrics.limit_hits.labels(limit="broker_queue").inc()
            raise _unavailable(f"{self._pending} calls wait for Redis already (broker.queue)")
        began = self._loop.time()
        self._pending += 1
        try:
            server = self._server_of(tag)
            link, error = server.commands.link, None
            if link is not None:
                # What goes well at once needs no deadline of its own: links look after theirs.
                try:
                    reply = await link.call(*command(link))
                except (LinkLost, ReplyError) as problem:
                    error = problem
                else:
                    self._calls += 1
                    if self._calls % MEASURED == 0:
                        self._metrics.broker_seconds.observe(self._loop.time() - began)
                    return reply
            trial = _Trial(tag, command, script, repeats, began + self._config.timeout)
            return await self._persist(trial, server, link, error)
        except TimeoutError as late:
            raise _unavailable("Redis did not reply in time") from late
        finally:
            self._pending -= 1

    async def _persist(self, trial: _Trial, server: Server, link: Link | None, error: Exception | None) -> Any:
        """Tries again after whatever may pass, until the deadline."""
        try:
            async with asyncio.timeout_at(trial.deadline):
                while True:
                    if isinstance(error, LinkLost) and not trial.repeats:
                        raise _unavailable("the connection to Redis was lost; the event may be lost too") from error
                    if link is not None and isinstance(error, ReplyError):
                        await self._mend(server, link, trial.script, error)
                    await asyncio.sleep(0)  # whatever goes wrong at once, others get their turn
                    self._started()
                    server = self._server_of(trial.tag)
                    try:
                        link = server.commands.link or await server.commands.up(trial.deadline)
                    except LinkLost:  # another server has its channels now
                        link = error = None
                        continue
                    try:
                        return await link.call(*trial.command(link))
                    except (LinkLost, ReplyError) as another:
                        error = another
        except TimeoutError as late:
            reason = server.commands.reason or (said(error) if error else "") or "it does not reply in time"
            raise _unavailable(f"Redis: {reason}") from late

    async def _mend(self, server: Server, link: Link, script: Script | None, error: ReplyError) -> None:
        """Does what an error asks for before the next try. Raises ServiceError for one that another try will not change."""
        word = _word(error)
        if word == "NOSCRIPT" and script is not None:
            await self._load(server, link, script)
        elif word == "STALE":
            link.generation = str(error).partition(" ")[2]
        elif word == "MOVED" and self._where is not None and self._where.is_cluster:
            self._where.redirected(str(error), server.place)
            self._rehome_soon()
        elif word == "READONLY":
            link.abort()  # it has become a replica; whoever is master now is asked for
            await asyncio.sleep(WAIT_SECONDS)
        elif word in ("LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "ASK", "BUSY"):
            await asyncio.sleep(WAIT_SECONDS)
        else:
            self._metrics.broker_errors.labels(reply=word if word in _EXPECTED else "other").inc()
            if word not in _EXPECTED:
                _log.error("Redis refused a call", reply=word)
            raise _unavailable(f"Redis refuses: {_EXPECTED.get(word, word)}") from error

    async def _load(self, server: Server, link: Link, script: Script) -> None:
        """Makes a script known that the server has forgotten, once for all who miss it."""
        if (loading := server.loading.get(script.sha)) is not None:
            await asyncio.shield(loading)
            return
        loading = server.loading[script.sha] = asyncio.get_running_loop().create_future()
        try:
            await link.call("SCRIPT", "LOAD", script.text)
        except LinkLost:
            return
        except ReplyError as error:
            raise _unavailable(
                f"Redis refuses to load a script: {_EXPECTED.get(_word(error), _word(error))}"
            ) from error
        finally:
            del server.loading[script.sha]
            loading.set_result(None)

    # --- servers ------------------------------------------------------------------------------------------------------

    def _server(self, where: Servers, place: Place | None) -> Server:
        """The server at a place, with its lines kept open; `None` stands for the only one."""
        if (known := self._servers.get(place)) is not None:
            return known

        async def locate() -> Place:
            if place is None:
                return await where.place()
            return place

        async def ready(link: Link) -> None:
            for script in (PUBLISH, SNAPSHOT, HISTORY, MARK, LISTED):
                await link.call("SCRIPT", "LOAD", script.text)

        commands = Line(
            "commands",
            where,
            self._config,
            locate=locate,
            on_up=ready,
            on_lost=lambda: self._lost("commands"),
        )
        subscriber = Subscriber(
            where,
            self._config,
            locate=locate,
            on_message=self._deliver,
            on_interrupted=self._interrupted,
            on_lost=lambda: self._lost("messages"),
            on_dismissed=lambda name, redirection: self._dismissed(place, name, redirection),
        )
        server = self._servers[place] = Server(place, commands, subscriber)
        server.tasks = [
            self._spawn("redis commands", commands.keep()),
            self._spawn("redis messages", subscriber.line.keep()),
        ]
        return server

    def _server_of(self, tag: str) -> Server:
        where = self._where
        if (server := self._servers.get(None)) is not None:
            return server
        if where is None:
            raise _unavailable("the broker is not started yet")
        try:
            return self._server(where, where.owner(tag))
        except NoServer as error:
            raise _unavailable(f"Redis: {error}") from error

    def _rehome_soon(self) -> None:
        self._unsettled = True
        if self._rehoming is None or self._rehoming.done():
            self._rehoming = self._spawn("redis slots", self._find_homes())

    async def _find_homes(self) -> None:
        """Asks the Cluster who owns what, and again for as long as it sends us elsewhere."""
        where = self._where
        while where is not None and self._unsettled:
            self._unsettled = False
            try:
                await where.refresh()
            except NoServer as error:
                _log.warning("slots unknown", reason=str(error))
            self._rehome(where)
            await asyncio.sleep(WAIT_SECONDS)

    def _rehome(self, where: Servers) -> None:
        """Channels whose owner is another one now are subscribed there."""
        if where.version == self._homed and not self._homeless:
            return
        self._homed = where.version
        for server in list(self._servers.values()):
            moving: dict[Server, list[bytes]] = {}
            for name in server.subscriber.names:
                try:
                    owner = self._server(where, where.owner(name.decode()))
                except NoServer:
                    continue
                if owner is not server:
                    moving.setdefault(owner, []).append(name)
            for owner, names in moving.items():
                owner.subscriber.adopt(server.subscriber.release(names))
        for name in list(self._homeless):
            self._settle(where, name)
        for server in list(self._servers.values()):
            if server.place not in where.places and not len(server.subscriber):
                self._servers.pop(server.place)
                for line in server.lines:
                    line.retire()
                for task in server.tasks:
                    task.cancel()

    def _settle(self, where: Servers, name: bytes) -> None:
        """Asks for a name again that was given up: when its slot has come back, or has moved without our noticing."""
        try:
            owner = self._server(where, where.owner(name.decode()))
        except NoServer:
            return
        del self._homeless[name]
        owner.subscriber.ask_again(name)

    async def _watch(self, where: Servers) -> None:
        """Notices servers that have changed their parts without a connection breaking over it."""
        while True:
            lost = where.is_cluster and any(line.link is None for one in self._servers.values() for line in one.lines)
            await asyncio.sleep(HURRY_SECONDS if lost else WATCH_SECONDS)
            try:
                if where.is_cluster:
                    await where.refresh()
                    self._rehome(where)
                else:
                    self._follow(await where.place())
            except NoServer as error:
                _log.warning("servers unknown", reason=str(error))
            await asyncio.gather(*(self._look(where, server) for server in self._servers.values()))

    def _follow(self, master: Place) -> None:
        for line in self._servers[None].lines:
            if line.link is not None and line.place != master:
                _log.info("the master is another server now", line=line.place, master=master)
                line.hang_up()

    async def _look(self, where: Servers, server: Server) -> None:
        """Whether a server is still the master that it was, in the same life."""
        link = server.commands.link
        if link is None:
            return
        try:
            await learn_generation(link, cluster=where.is_cluster)
        except (LinkLost, NoServer, ReplyError, TimeoutError):
            link.abort()

    # --- deliveries ---------------------------------------------------------------------------------------------------

    def _deliver(self, name: bytes, message: bytes) -> None:
        channel, sink = self._channels.get(name), self._sink
        if channel is None or sink is None:
            return
        try:
            event = wire.parse(channel, message)
        except ValueError as error:  # somebody else writes here, or a newer version does
            self._metrics.broker_errors.labels(reply="message").inc()
            _log.error("message not understood", kind=type(error).__name__)
            return
        sink.deliver(event)

    def _interrupted(self, names: Collection[bytes]) -> None:
        if self._sink is not None:
            channels = [self._channels[name] for name in names if name in self._channels]
            if channels:
                self._sink.interrupted(channels)

    def _dismissed(self, place: Place | None, name: bytes, redirection: str | None) -> None:
        """The server gave a subscription up, or never took it: its slot has moved."""
        if self._where is not None and self._where.is_cluster:
            if redirection is not None:
                self._where.redirected(redirection, place)
            self._homeless[name] = None
            self._rehome_soon()

    def _lost(self, line: str) -> None:
        self._metrics.broker_reconnects.labels(line=line).inc()
        if self._where is not None and self._where.is_cluster:
            self._rehome_soon()

    # --- tasks --------------------------------------------------------------------------------------------------------

    def _started(self) -> None:
        if self._sink is None:
            raise _unavailable("the broker is closed" if self._closed else "the broker is not started yet")

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._metrics.tasks_died.labels(task=task.get_name()).inc()
            _log.error("task died", task=task.get_name(), exc_info=error)
            self._dead = task.get_name()


_EXPECTED = {
    "OOM": "it is out of memory (maxmemory)",
    "NOREPLICAS": "too few replicas are there (min-replicas-to-write)",
    "MISCONF": "it cannot write its snapshot to disk (stop-writes-on-bgsave-error)",
    "NOPERM": "the user may not do that; docs/guarantees.md names the ACL rules",
    "NOAUTH": "it wants a password (broker.password)",
    "MOVED": "it belongs to a Redis Cluster; broker.url must begin with redis+cluster://",
}


class _Trial(NamedTuple):
    """A call that is tried again."""

    tag: str
    command: Callable[[Link], tuple[Argument, ...]]
    script: Script | None
    repeats: bool
    deadline: float


def _namer(prefix: str) -> Callable[[ChannelKey], Names]:
    keys = Keys(prefix)

    def names(channel: ChannelKey) -> Names:
        meta = keys.channel(channel, "meta")
        return Names(
            meta,
            (meta, keys.channel(channel, "stream"), keys.channel(channel, "state"), keys.channel(channel, "order")),
            keys.channel(channel, "id:"),
            keys.channel(channel, "events").encode(),
        )

    return names


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _word(error: BaseException) -> str:
    """The first word of what Redis said: the rest may quote what it was told."""
    if "user executing the script" in str(error) or "ACL failure in script" in str(error):
        return "NOPERM"  # as Redis and Valkey say it of what a script does
    return str(error).partition(" ")[0]


def _unavailable(message: str) -> ServiceError:
    return ServiceError(ErrorCode.BROKER_UNAVAILABLE, message)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError) as error:  # msgspec's errors are ValueErrors
        _log.error("stored events not understood", kind=type(error).__name__)
        raise _unavailable("what Redis holds of the channel was not written by this version") from error


def _position(epoch: bytes, offset: int, id_: bytes) -> Position:
    return Position(epoch.decode(), offset, id_.decode() if offset else None)


def _entry(channel: ChannelKey, entry: list[Any], epoch: str) -> Event:
    id_, fields = entry
    return wire.decode(channel, Delivery.DURABLE, fields[1], epoch, offset=int(id_.partition(b"-")[0]))


def _state(channel: ChannelKey, flat: list[bytes], epoch: str) -> list[Event]:
    events = []
    for value in flat[1::2]:
        head, _, body = value.partition(b"\n")
        events.append(wire.decode(channel, Delivery.LATEST, body, epoch, rev=int(head.partition(b" ")[0])))
    return sorted(events, key=lambda event: event.rev or 0)
