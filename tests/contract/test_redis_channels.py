"""Channels in Redis: empty ones expire, and the index lists those that are used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from service.adapters.redis import channel_index
from service.adapters.redis.broker import RedisBroker
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.core.position import Position
from tests.contract.broker_suite import EVENT, MUCH, ROOM, Publisher, RecordingSink
from tests.contract.redis_stage import new_prefix
from tests.contract.test_redis_broker import EMPTY_SECONDS, movable_valkey, redis_broker, settled
from tests.stores import FLAVOURS, Cluster, Flavour, RedisServer, shared_redis
from tests.stores.process import until
from tests.support.clock import FakeClock

MANY = 100
INVENTED = ChannelKey("acme", "room:invented")

DOORS: dict[str, Callable[[RedisBroker], Awaitable[object]]] = {
    "subscribe": lambda broker: broker.subscribe(INVENTED),
    "snapshot": lambda broker: broker.snapshot(INVENTED, None, 0, 0),
    "resume": lambda broker: broker.snapshot(INVENTED, Position("nobody", 3, "x"), MANY, MUCH),
    "history": lambda broker: broker.history(INVENTED, None, None, 10),
    "stream_heads": lambda broker: broker.stream_heads([INVENTED]),
    "channels": lambda broker: broker.list_channels("acme", "", 10),
    "remove": lambda broker: broker.remove_events(INVENTED, [EVENT]),
    "purge": lambda broker: broker.purge(INVENTED),
    "ephemeral": lambda broker: broker.publish(event(INVENTED, "e", Delivery.EPHEMERAL)),
}


def event(channel: ChannelKey, id: str, delivery: Delivery = Delivery.DURABLE, *, ttl: float = 60.0) -> Publication:
    retention = None if delivery is Delivery.EPHEMERAL else Retention(10, ttl)
    return Publication(
        channel=channel, type="note", id=id, delivery=delivery, data=b"{}", sender=None, at=0, retention=retention
    )


@asynccontextmanager
async def running(url: str, prefix: str | None = None) -> AsyncIterator[RedisBroker]:
    broker = redis_broker(url, prefix or new_prefix())
    await broker.start(RecordingSink())
    try:
        yield broker
    finally:
        await broker.close()


async def names(broker: RedisBroker, tenant: str = "acme") -> list[str]:
    return [info.name for info in await broker.list_channels(tenant, "", 100)]


@pytest.fixture(params=FLAVOURS)
async def server(request: pytest.FixtureRequest) -> RedisServer:
    flavour: Flavour = request.param
    return await shared_redis(flavour)


@pytest.mark.parametrize("door", DOORS)
async def test_redis_named_channel_expires(server: RedisServer, door: str) -> None:
    prefix = new_prefix()
    async with running(server.url, prefix) as broker:
        await DOORS[door](broker)
        await broker.unsubscribe(INVENTED)
        index_keys = {f"{prefix}:channels:{{acme}}", f"{prefix}:channels-due:{{acme}}"}

        async def is_pruned() -> bool:
            return not index_keys & set(await server.keys(f"{prefix}:*"))

        await until(is_pruned, "the index is empty", within=10)
        for key in await server.keys(f"{prefix}:*"):
            assert 0 < await server.command("PTTL", key) <= EMPTY_SECONDS * 1000, key


async def test_redis_every_key_has_an_expiry(server: RedisServer) -> None:
    prefix = new_prefix()
    async with running(server.url, prefix) as broker:
        for number in range(3):
            await broker.subscribe(ChannelKey("acme", f"room:{number}"))
            await broker.publish(event(ChannelKey("acme", f"room:{number}"), "m"))
            await broker.publish(event(ChannelKey("acme", f"room:{number}"), "v", Delivery.LATEST))
        keys = await server.keys(f"{prefix}:*")
        assert len(keys) == 3 * 6 + 2
        for key in keys:
            assert await server.command("PTTL", key) > 0, key


async def test_redis_empty_channel_with_subscriber_keeps_epoch() -> None:
    server = await movable_valkey()
    prefix = new_prefix()
    async with running(server.url, prefix) as broker, running(server.url, prefix) as other:
        await broker.subscribe(INVENTED)
        position = (await broker.snapshot(INVENTED, None, 0, 0)).position
        for _ in range(10):
            await server.advance(EMPTY_SECONDS / 3)
            await broker.renew_empty_channels()
        assert (await other.publish(event(INVENTED, "m"))).epoch == position.epoch
        missed = await broker.snapshot(INVENTED, position, MANY, MUCH)
        assert (missed.recovered, [one.id for one in missed.missed]) == (True, ["m"])
        await broker.renew_empty_channels()  # it finds that the channel is empty no longer
        before = await _script_calls(server)
        await broker.renew_empty_channels()
        assert await _script_calls(server) == before


async def _script_calls(server: RedisServer) -> str:
    return (await server.info("commandstats")).get("cmdstat_evalsha", "")


async def test_redis_empty_channel_without_subscriber_starts_new_epoch() -> None:
    server = await movable_valkey()
    async with running(server.url) as broker:
        position = (await broker.snapshot(INVENTED, None, 0, 0)).position
        await server.advance(EMPTY_SECONDS + 1)
        later = await broker.snapshot(INVENTED, position, MANY, MUCH)
        assert later.recovered is False
        assert later.position.epoch != position.epoch


async def test_redis_empty_channel_read_renews_position() -> None:
    server = await movable_valkey()
    async with running(server.url) as broker:
        snapshot = await broker.snapshot(INVENTED, None, 0, 0)
        for _ in range(3):
            await server.advance(EMPTY_SECONDS * 0.75)
            assert (await broker.history(INVENTED, None, None, 1)).position == snapshot.position


async def test_redis_position_after_publish_outlives_empty_ttl() -> None:
    server = await movable_valkey()
    async with running(server.url) as broker:
        result = await broker.publish(event(INVENTED, "m", ttl=5.0))
        await server.advance(10 * EMPTY_SECONDS)
        top = (await broker.snapshot(INVENTED, None, 0, 0)).position
        assert (top.epoch, top.offset) == (result.epoch, 1)


async def test_redis_listing_reads_only_listed_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_index, "CHECK_INTERVAL", 0.05)
    server, prefix = await shared_redis(), new_prefix()
    async with running(server.url, prefix) as broker:
        await broker.publish(event(ChannelKey("acme", "zzz"), "m", ttl=600.0))
        dead = [f"room:{number}" for number in range(300)]
        pairs = [word for name in dead for word in (0, name)]
        await server.command("ZADD", f"{prefix}:channels:{{acme}}", *pairs)  # as an older version left them
        assert await names(broker) == ["zzz"]  # reads them all, once

        async def is_pruned() -> bool:
            return int(await server.command("ZCARD", f"{prefix}:channels:{{acme}}")) == 1

        await until(is_pruned, "what is not listed has gone", within=30)
        before = int((await server.info("commandstats"))["cmdstat_evalsha"].split(",")[0].removeprefix("calls="))
        assert [info.name for info in await broker.list_channels("acme", "", 10)] == ["zzz"]
        after = int((await server.info("commandstats"))["cmdstat_evalsha"].split(",")[0].removeprefix("calls="))
        assert after - before <= 20, "and whatever others ask meanwhile"


async def test_redis_index_removes_expired_channels_and_readds_used_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(channel_index, "CHECK_INTERVAL", 0.05)
    server, prefix = await movable_valkey(), new_prefix()
    key, room = f"{prefix}:channels:{{acme}}", ChannelKey("acme", "room:1")
    async with running(server.url, prefix) as broker:
        await broker.publish(event(room, "m-1", ttl=600.0))
        assert await names(broker) == ["room:1"]
        await server.advance(1_000)
        assert await names(broker) == []

        async def is_out() -> bool:
            return int(await server.command("ZCARD", key)) == 0

        await until(is_out, "its entry has gone", within=10)
        await broker.publish(event(room, "m-2", ttl=600.0))
        assert await names(broker) == ["room:1"]


async def test_redis_index_keeps_expired_entry_of_used_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_index, "CHECK_INTERVAL", 0.05)
    server, prefix = await movable_valkey(), new_prefix()
    room, key = ChannelKey("acme", "room:1"), f"{prefix}:channels-due:{{acme}}"
    async with running(server.url, prefix) as broker:
        await broker.publish(event(room, "m-1", ttl=100.0))
        before = float(await server.command("ZSCORE", key, "room:1"))
        for number in range(5):
            await server.advance(40)
            await broker.publish(event(room, f"n-{number}", ttl=100.0))
            # Any other entry of the tenant finds what is due.
            await broker.publish(event(ChannelKey("acme", f"other:{number}"), "m", ttl=1.0))

        async def is_put_off() -> bool:
            return float(await server.command("ZSCORE", key, "room:1") or 0) > before

        await until(is_put_off, "the entry has a new term", within=10)
        assert "room:1" in await names(broker)


async def test_redis_index_keeps_channel_with_subscriber_on_other_node(
    monkeypatch: pytest.MonkeyPatch, server: RedisServer
) -> None:
    monkeypatch.setattr(channel_index, "CHECK_INTERVAL", 0.05)
    prefix = new_prefix()
    async with running(server.url, prefix) as one, running(server.url, prefix) as other:
        await one.subscribe(INVENTED)
        await other.subscribe(INVENTED)
        await one.unsubscribe(INVENTED)
        await settled(one)
        await asyncio.gather(*(one._index.check() for _ in range(2)))
        assert await names(one) == [INVENTED.name]


async def test_redis_index_works_in_cluster() -> None:
    prefix = new_prefix()
    async with Cluster("redis") as cluster, running(cluster.url, prefix) as broker:
        rooms = [ChannelKey("acme", f"room:{number}") for number in range(20)]
        for room in rooms:
            await broker.subscribe(room)
        await broker.publish(event(rooms[0], "m"))
        assert len(await names(broker)) == 20
        for room in rooms:
            await broker.unsubscribe(room)

        async def is_pruned() -> bool:
            index = f"{prefix}:channels:{{acme}}"
            return list(await (await cluster.master_of(index)).command("ZRANGE", index, 0, -1)) == [rooms[0].name]

        await until(is_pruned, "what is left is what was published to", within=20)
        assert await names(broker) == [rooms[0].name]


async def test_redis_values_that_have_ended_leave_no_key_without_expiry() -> None:
    server = await movable_valkey()
    async with running(server.url) as broker:
        publish = Publisher(broker, FakeClock())
        keys = broker.keys(ROOM)
        names = (*keys.keys[2:], keys.expiries)
        for number in range(3):
            for other in range(100):
                await publish.latest(f"k-{other}", ttl=1.0, retention=Retention(1_000, 30.0))
            await publish.latest("last", ttl=1.0, retention=Retention(1_000, 30.0))
            assert len((await broker.snapshot(ROOM, None, MANY, MUCH)).state) == 101
            await server.advance(1.0)
            for _ in range(2):  # a snapshot deletes 64
                assert (await broker.snapshot(ROOM, None, MANY, MUCH)).state == []
            assert [await broker.executor.run_command(name, "EXISTS", name) for name in names] == [0, 0, 0], number
        await publish.latest("b", retention=Retention(1_000, 30.0))
        for name in keys.keys[2:]:
            assert 0 < await broker.executor.run_command(name, "PTTL", name) <= 40_000


async def test_tombstones_are_trimmed_with_the_stream_and_expire(server: RedisServer) -> None:
    async with running(server.url) as broker:
        removed, keep = broker.keys(ROOM).removed, Retention(10, 60.0)

        async def publish(first: int, last: int) -> None:
            for number in range(first, last + 1):
                one = event(ROOM, f"m-{number}")
                await broker.publish(replace(one, data=b'"a secret"', retention=keep))

        async def remove(*offsets: int) -> None:
            events = (await broker.history(ROOM, None, None, MANY)).events
            assert all(await broker.remove_events(ROOM, [one for one in events if one.offset in offsets]))

        await publish(1, 10)
        await remove(2, 3, 4, 9)
        assert await server.command("ZCARD", removed) == 4
        assert 60_000 < await server.command("PTTL", removed) <= 70_000
        entries = await server.command("XRANGE", broker.keys(ROOM).keys[1], "-", "+")
        assert str(entries).count("a secret") == len(entries) == 6
        await publish(11, 16)
        await remove(16)
        assert [one.offset for one in (await broker.history(ROOM, None, None, MANY)).events] == list(range(6, 17))
        assert await server.command("ZCARD", removed) == 2
        await broker.purge(ROOM)
        assert await server.command("EXISTS", removed) == 0
