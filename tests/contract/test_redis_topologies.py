"""The Broker on Redis with Sentinels, as a Cluster, and behind TLS with an ACL user: the port's contract, and what each does
when a server goes."""

from __future__ import annotations

import asyncio
import atexit
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import hiredis
import pytest
from redis.crc import key_slot

from service.adapters.redis.broker import RedisBroker
from service.core.broker import Broker, PublishResult
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from tests.contract.broker_suite import MANY, MUCH, OTHER_ROOM, ROOM, RecordingSink
from tests.contract.redis_stage import client_of
from tests.contract.test_redis_broker import new_prefix, only, redis_broker, settled
from tests.contract.values_suite import ValuesSuite
from tests.stores import Certificates, Cluster, ClusterNode, RedisServer, Sentinels
from tests.support.clock import FakeClock

pytestmark = pytest.mark.slow

G = TypeVar("G", Cluster, Sentinels, RedisServer)

USER, PASSWORD = "tidewire", "secret"
RULES = (
    "~suite-*:* &suite-*:* -@all +ping +info +select +client|setname +script|load +evalsha"
    " +subscribe +unsubscribe +publish +pubsub|numsub"
    " +time +get +mget +set +del +pexpire +hget +hset +hdel +hgetall +hlen"
    " +xadd +xdel +xlen +xrange +xtrim +zadd +zcard +zpopmin +zrange +zrangebylex +zrem"
)
"""The rights in docs/guarantees.md, there with `~tidewire:* &tidewire:*`."""
CLUSTER_RULES = "+cluster|slots +ssubscribe +sunsubscribe +spublish +pubsub|shardnumsub"

USERS = {"default": "off", USER: f"on >{PASSWORD} {RULES}"}

_lasting: dict[str, Cluster | Sentinels | RedisServer] = {}


async def lasting(name: str, made: G) -> G:
    """A server for all tests of this module."""
    if name not in _lasting:
        atexit.register(made.end)
        await made.start()
        _lasting[name] = made
    found = _lasting[name]
    assert isinstance(found, type(made))
    return found


class RemoteSuite(ValuesSuite):
    async def advance(self, clock: FakeClock, seconds: float) -> None:
        pytest.skip("the clock of Debian's Redis cannot be moved; the same scripts run on a Valkey whose can")

    async def settled(self, broker: Broker) -> None:
        assert isinstance(broker, RedisBroker)
        await settled(broker)


async def the_cluster() -> Cluster:
    new = "cluster" not in _lasting
    cluster = await lasting("cluster", Cluster())
    for node in cluster.nodes if new else ():
        await node.command("ACL", "SETUSER", USER, *f"on >{PASSWORD} {RULES} {CLUSTER_RULES}".split())
    return cluster


async def the_sentinels() -> Sentinels:
    return await lasting("sentinels", Sentinels(sentinel_password="sentinels-own", password="servers-own"))


class TestCluster(RemoteSuite):
    async def open(self, clock: FakeClock) -> Broker:
        cluster = await the_cluster()
        return redis_broker(cluster.url, new_prefix(), user=USER, password=PASSWORD)


class TestSentinel(RemoteSuite):
    async def open(self, clock: FakeClock) -> Broker:
        url = (await the_sentinels()).url
        return redis_broker(url, new_prefix(), password="servers-own", sentinel_password="sentinels-own")


_certificates: list[Certificates] = []


def certificates() -> Certificates:
    if not _certificates:
        folder = TemporaryDirectory()
        atexit.register(folder.cleanup)
        _certificates.append(Certificates(Path(folder.name)))
    return _certificates[0]


class TestTlsWithFewestRights(RemoteSuite):
    """Client certificates, no default user, and a user with only the documented rights."""

    async def open(self, clock: FakeClock) -> Broker:
        files = certificates()
        server = await lasting("tls", RedisServer(tls=files, client_certificates=True, users=USERS))
        return redis_broker(
            server.url,
            new_prefix(),
            user=USER,
            password=PASSWORD,
            ca=files.ca,
            certificate=files.client_certificate,
            private_key=files.client_key,
        )


# --- failures ---------------------------------------------------------------------------------------------------------

BOUNDS = {"call_timeout": 2.0, "ping_interval": 0.3, "silence_timeout": 1.0}


class Sink(RecordingSink):
    """Collects events as the relay does: delivered ones, and those it reads after an interruption."""

    def __init__(self) -> None:
        super().__init__()
        self.has_news = asyncio.Event()

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        super().interrupted(channels)
        self.has_news.set()

    async def was_interrupted(self, within: float) -> None:
        async with asyncio.timeout(within):
            await self.has_news.wait()
        self.has_news.clear()


@asynccontextmanager
async def running(url: str, **settings: Any) -> AsyncIterator[tuple[RedisBroker, Sink]]:
    broker, sink = redis_broker(url, new_prefix(), **{**BOUNDS, **settings}), Sink()
    await broker.start(sink)
    try:
        yield broker, sink
    finally:
        await broker.close()


def message(id: str, channel: ChannelKey) -> Publication:
    return Publication(
        channel, "chat.message", id, Delivery.DURABLE, b"{}", "ann", 0, retention=Retention(10_000, 60.0)
    )


class Publishing:
    """Publishes in a channel until a test stops it, and repeats each event until it is accepted."""

    def __init__(self, broker: RedisBroker, channel: ChannelKey) -> None:
        self._broker = broker
        self._channel = channel
        self._ended = False
        self.accepted: list[PublishResult] = []
        self.longest = 0.0
        """Seconds until the slowest event was accepted."""
        self.task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while not self._ended:
            began = time.monotonic()
            while True:
                try:
                    self.accepted.append(await self._broker.publish(message(f"m-{len(self.accepted)}", self._channel)))
                    break
                except ServiceError as error:
                    if error.code is not ErrorCode.BROKER_UNAVAILABLE or not error.retryable:
                        raise
                    await asyncio.sleep(0.02)
            self.longest = max(self.longest, time.monotonic() - began)
            await asyncio.sleep(0.002)

    async def more(self, count: int = 5, within: float = 60.0) -> None:
        """Returns when so many more events were accepted."""
        goal = len(self.accepted) + count
        async with asyncio.timeout(within):
            while len(self.accepted) < goal:  # noqa: ASYNC110  # the task looks after itself
                await asyncio.sleep(0.01)

    async def end(self) -> list[str]:
        self._ended = True
        await self.task
        return [result.id for result in self.accepted]


async def events(broker: RedisBroker, channel: ChannelKey) -> list[str]:
    return [event.id for event in (await broker.history(channel, None, None, 20_000)).events]


async def delivers(broker: RedisBroker, sink: Sink, channel: ChannelKey, id: str) -> None:
    """Checks that an event published now is delivered."""
    await broker.publish(message(id, channel))
    async with asyncio.timeout(20):
        while id not in sink.ids(channel):  # noqa: ASYNC110  # the sink has no event for it
            await asyncio.sleep(0.01)


async def delivers_or_tells(broker: RedisBroker, sink: Sink, channel: ChannelKey, id: str) -> None:
    """Checks that events are delivered again. While a Cluster settles, a subscription may move twice and miss some."""
    async with asyncio.timeout(20):
        while id not in sink.ids(channel):
            id, interruptions = f"{id}+", len(sink.interruptions)
            await broker.publish(message(id, channel))
            while id not in sink.ids(channel) and len(sink.interruptions) == interruptions:  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)


# Sentinel


async def test_sentinel_planned_failover_loses_nothing() -> None:
    async with Sentinels() as sentinels, running(sentinels.url) as (broker, sink):
        await broker.subscribe(ROOM)
        publishing = Publishing(broker, ROOM)
        await publishing.more()
        epoch = publishing.accepted[-1].epoch
        old = await sentinels.master()
        new = await sentinels.failover()
        await sink.was_interrupted(15)
        await publishing.more()
        await publishing.end()
        assert publishing.longest < 30
        assert publishing.accepted[-1].epoch != epoch
        assert [line.endpoint for line in only(broker).connections] == [new.address] * 2
        assert new is not old
        await delivers(broker, sink, ROOM, "after")


async def test_sentinel_failover_and_back_starts_epoch_each() -> None:
    """Nodes that were away during both learn of both epochs."""
    async with Sentinels() as sentinels, running(sentinels.url) as (broker, _):
        positions = [await position_of(broker, "m-0")]
        for turn in (1, 2):
            await sentinels.failover()
            await sentinels.settled()
            positions.append(await position_of(broker, f"m-{turn}"))
        assert len({since.epoch for since in positions}) == 3
        for since in positions[:-1]:
            assert (await broker.snapshot(ROOM, since, MANY, MUCH)).recovered is False
        assert (await broker.snapshot(ROOM, positions[-1], MANY, MUCH)).recovered is True


async def position_of(broker: RedisBroker, id: str) -> Position:
    """Returns the position of an event that is published as soon as the broker accepts it."""
    async with asyncio.timeout(40):
        while True:
            with suppress(ServiceError):
                result = await broker.publish(message(id, ROOM))
                return Position(result.epoch, result.offset or 0, result.id)
            await asyncio.sleep(0.02)


async def test_sentinel_killed_master_is_replaced() -> None:
    async with Sentinels() as sentinels, running(sentinels.url) as (broker, sink):
        await broker.subscribe(ROOM)
        publishing = Publishing(broker, ROOM)
        await publishing.more()
        before = await sentinels.master()
        top = publishing.accepted[-1]
        # One Sentinel that says nothing must not keep us from hearing the others.
        sentinels.sentinels[0].stop_()
        before.kill()
        await publishing.more()
        await sink.was_interrupted(5)
        await publishing.end()
        snapshot = await broker.snapshot(ROOM, Position(top.epoch, top.offset or 0, top.id), MANY, MUCH)
        assert snapshot.recovered is False
        assert publishing.longest < 40
        await delivers(broker, sink, ROOM, "after")
        sentinels.sentinels[0].cont()


async def test_sentinel_master_is_named_by_majority() -> None:
    """A Sentinel that was cut off may name an old master."""
    async with Sentinels() as sentinels:
        master = await sentinels.master()
        [replica] = await sentinels.replicas()
        astray = sentinels.sentinels[0]
        await astray.command("SENTINEL", "REMOVE", sentinels.name)
        await astray.command("SENTINEL", "MONITOR", sentinels.name, "127.0.0.1", replica.port, 2)
        async with running(sentinels.url, start_timeout=5.0) as (broker, _):
            assert only(broker).commands.endpoint == master.address
            await broker.check()


@pytest.mark.alone
@pytest.mark.parametrize("silent", [1, 2])
async def test_sentinel_silent_ones_do_not_use_up_call_timeout(silent: int) -> None:
    """Silent Sentinels accept connections and never answer: the first of the list, and most of them."""
    settings = {"call_timeout": 3.0, "silence_timeout": 9.0, "ping_interval": 3.0}
    async with (
        Sentinels() as sentinels,
        running(sentinels.url, **settings) as (broker, _),
        client_of(sentinels.url, new_prefix(), call_timeout=3.0) as client,
    ):
        master = await sentinels.master()
        for sentinel in sentinels.sentinels[:silent]:
            sentinel.stop_()
        try:
            for n in range(3):
                await master.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await asyncio.gather(broker.publish(message(f"m-{n}", ROOM)), client.command("PING"))
            began = time.monotonic()
            await master.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await broker.publish(message("m-3", ROOM))
            assert time.monotonic() - began < 0.75, "those that say nothing are known by now"
        finally:
            for sentinel in sentinels.sentinels[:silent]:
                sentinel.cont()


# Cluster


async def test_cluster_silent_servers_do_not_delay_slots() -> None:
    node = (await the_cluster()).nodes[0]
    ended = asyncio.Event()

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await ended.wait()
        writer.close()

    servers = [await asyncio.start_server(silent, "127.0.0.1", 0) for _ in range(4)]
    places = [server.sockets[0].getsockname()[1] for server in servers]
    hosts = ",".join(f"127.0.0.1:{port}" for port in (*places, node.port))
    began = time.monotonic()
    async with running(f"redis+cluster://{hosts}", call_timeout=5.0, start_timeout=10.0) as (broker, _):
        assert time.monotonic() - began < 2.5, "each was asked beside those before it"
        await broker.publish(message("m-1", ROOM))
    ended.set()
    for server in servers:
        server.close()
        await server.wait_closed()


async def test_cluster_is_found_by_one_address() -> None:
    cluster = await the_cluster()
    host, port = cluster.nodes[4].address
    async with running(f"redis+cluster://{host}:{port}") as (broker, sink):
        for n in range(20):  # on all three masters
            channel = ChannelKey("acme", f"room:{n}")
            await broker.subscribe(channel)
            await delivers(broker, sink, channel, "m")
        assert len([*broker.shards]) == 3
        assert len(await broker.list_channels("acme", "", 100)) == 20


async def move(cluster: Cluster, slot: int, source: ClusterNode, target: ClusterNode) -> None:
    """Moves a slot as `redis-cli --cluster reshard` does."""
    source_id, target_id = await source.id(), await target.id()
    await target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    await source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    await asyncio.sleep(0.1)  # let publishing meet the slot between two owners
    while keys := await source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
        await source.command(
            "MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "AUTH2", "tests", "only-for-tests", "KEYS", *keys
        )
    for node in (target, source, *cluster.nodes):
        with suppress(hiredis.ReplyError):  # replicas learn it from their masters
            await node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)


async def test_cluster_moved_slot_moves_its_channels() -> None:
    cluster = await the_cluster()
    async with running(cluster.url) as (broker, sink), running(cluster.url) as (_, _):
        quiet = ChannelKey("acme", "room:quiet")
        channel = ChannelKey("acme", "room:moving")
        for one in (channel, quiet):
            await broker.subscribe(one)
        tag = broker.keys(channel).tag
        slot = key_slot(tag.encode())
        publishing = Publishing(broker, channel)
        await publishing.more(20)
        source = await cluster.master_of(tag)
        there = [node for node in cluster.nodes[:3] if node is not source]
        for n, target in enumerate((there[0], there[1], source)):
            owner = await cluster.master_of(tag)
            await move(cluster, slot, owner, target)
            await sink.was_interrupted(5)
            await publishing.more(20)
            await delivers_or_tells(broker, sink, channel, f"after-{n}")
            subscribed = [
                broker.keys(channel).events.decode() in await node.command("PUBSUB", "SHARDCHANNELS")
                for node in cluster.nodes[:3]
            ]
            assert subscribed == [node is target for node in cluster.nodes[:3]]
        ids = await publishing.end()
        assert publishing.longest < 15
        assert [id for id in await events(broker, channel) if id.startswith("m-")] == ids
        interrupted = {channel for some in sink.interruptions for channel in some or ()}
        assert interrupted == {channel}


async def test_cluster_subscribe_finds_slot_that_moved_unnoticed() -> None:
    cluster = await the_cluster()
    async with running(cluster.url) as (broker, sink):
        stays, moves = ChannelKey("acme", "room:stays"), ChannelKey("acme", "room:moves")
        await broker.subscribe(stays)
        tag = broker.keys(moves).tag
        source = await cluster.master_of(tag)
        target = next(node for node in cluster.nodes[:3] if node is not source)
        slot = key_slot(tag.encode())
        assert slot != key_slot(broker.keys(stays).tag.encode())
        await move(cluster, slot, source, target)
        await asyncio.gather(*(broker.subscribe(moves) for _ in range(3)))
        await delivers(broker, sink, moves, "m")
        assert not sink.interruptions
        await move(cluster, slot, target, source)


async def test_cluster_planned_failover_of_shard_loses_nothing() -> None:
    cluster = await the_cluster()
    async with running(cluster.url) as (broker, sink):
        await broker.subscribe(ROOM)
        tag = broker.keys(ROOM).tag
        publishing = Publishing(broker, ROOM)
        await publishing.more()
        new = await cluster.failover(tag)
        await sink.was_interrupted(10)
        await publishing.more()
        ids = await publishing.end()
        assert publishing.longest < 15
        assert await events(broker, ROOM) == ids
        assert broker.shards.shard_for(tag).endpoint == new.address
        await delivers_or_tells(broker, sink, ROOM, "after")
        await cluster.settled()
        await cluster.failover(tag)


async def test_cluster_failover_of_shard_and_back_starts_epoch_each() -> None:
    cluster = await the_cluster()
    await cluster.settled()
    async with running(cluster.url) as (broker, _):
        tag = broker.keys(ROOM).tag
        positions = [await position_of(broker, "m-0")]
        for turn in (1, 2):
            await cluster.failover(tag)
            positions.append(await position_of(broker, f"m-{turn}"))
            await cluster.settled()
        assert len({since.epoch for since in positions}) == 3
        for since in positions[:-1]:
            assert (await broker.snapshot(ROOM, since, MANY, MUCH)).recovered is False


async def test_cluster_killed_master_of_shard_is_replaced() -> None:
    async with Cluster() as cluster, running(cluster.url) as (broker, sink):
        tag = broker.keys(ROOM).tag
        owner = broker.shards.shard_for(tag)
        channels = [ChannelKey("acme", f"room:{n}") for n in range(100)]
        elsewhere = next(one for one in channels if broker.shards.shard_for(broker.keys(one).tag) is not owner)
        await broker.subscribe(ROOM)
        await broker.subscribe(elsewhere)
        publishing, untouched = Publishing(broker, ROOM), Publishing(broker, elsewhere)
        await publishing.more()
        (await cluster.master_of(tag)).kill()
        await publishing.more()
        await sink.was_interrupted(5)
        await publishing.end()
        await untouched.end()
        assert publishing.longest < 40
        # The rest of the Cluster refuses too, until the failover is over (cluster-require-full-coverage).
        assert await events(broker, elsewhere) == [result.id for result in untouched.accepted]
        await delivers(broker, sink, ROOM, "after")
        interrupted = {channel for some in sink.interruptions for channel in some or ()}
        assert interrupted == {ROOM}
        async with asyncio.timeout(20):
            while True:
                with suppress(ServiceError):
                    await broker.check()
                    break
                await asyncio.sleep(0.02)


# Rights


async def test_acl_every_documented_right_is_needed() -> None:
    """Without any one of them, some call is refused."""
    files = certificates()
    server = await lasting("tls", RedisServer(tls=files, client_certificates=True, users=USERS))
    shown = {"ca": files.ca, "certificate": files.client_certificate, "private_key": files.client_key}
    # Not tried: the first is missed with time only, the next is for a database, the last for CLIENT LIST.
    untried = {"+ping", "+select", "+client|setname"}
    for right in (right for right in RULES.split() if right.startswith("+") and right not in untried):
        await server.command("ACL", "SETUSER", "less", "reset", "on", f">{PASSWORD}", *RULES.split())
        await server.command("ACL", "SETUSER", "less", right.replace("+", "-"))
        broker = redis_broker(server.url, new_prefix(), user="less", password=PASSWORD, call_timeout=0.5, **shown)
        assert not await everything(broker, server), f"{right} is not needed"


async def everything(broker: RedisBroker, server: RedisServer) -> bool:
    """Uses everything once. Returns whether nothing was refused."""
    keep = Retention(1, 60.0)
    try:
        await broker.start(Sink())
        await broker.subscribe(ROOM)
        for n in range(32):
            await broker.publish(Publication(ROOM, "t", f"d-{n}", Delivery.DURABLE, b"1", None, 0, retention=keep))
            for key in "ab":
                await broker.publish(Publication(ROOM, "t", f"{key}-{n}", Delivery.LATEST, b"1", None, 0, key, keep))
        await broker.publish(Publication(ROOM, "t", "e", Delivery.EPHEMERAL, b"1", None, 0))
        await broker.snapshot(ROOM, None, MANY, MUCH)
        _, stream, state, order = broker.keys(OTHER_ROOM).keys
        await broker.publish(message("d-1", OTHER_ROOM))
        await broker.publish(Publication(OTHER_ROOM, "t", "l", Delivery.LATEST, b"1", None, 0, "k", keep))
        await server.command("HSET", state, "old", "0 1\nexpired long ago")
        await server.command("ZADD", order, 0, "old")
        await broker.snapshot(OTHER_ROOM, None, MANY, MUCH)
        await server.command("DEL", stream)
        await server.command("XADD", stream, "1-1", "b", "expired long ago")
        await broker.publish(message("d-2", OTHER_ROOM))
        await broker.history(OTHER_ROOM, None, None, 10)
        kept = (await broker.history(ROOM, None, None, 10)).events
        await broker.remove_events(ROOM, kept)
        for n in range(2):  # the second one trims what is kept of removals
            await broker.publish(
                Publication(ROOM, "t", f"r-{n}", Delivery.LATEST, b"", None, 0, "b", keep, removed=True)
            )
        await broker.removed_values(ROOM, 0)
        await broker.stream_heads([ROOM])
        await broker.list_channels("acme", "", 10)
        await broker.unsubscribe(ROOM)
        await settled(broker)
        await broker.publish(Publication(ROOM, "t", "e", Delivery.EPHEMERAL, b"1", None, 0))
    except (ServiceError, hiredis.ReplyError):
        return False
    finally:
        await broker.close()
    return True
