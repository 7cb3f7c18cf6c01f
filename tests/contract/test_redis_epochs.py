"""The Broker on a Redis or Valkey that returns as another server, or with older data: a new epoch starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from service.adapters.redis.broker import RedisBroker
from service.adapters.redis.connections.generation_tracker import GenerationTracker
from service.adapters.redis.connections.link import Link
from service.core import epoch as epochs_of_streams
from service.core.broker import DeliveredHead, PublishResult
from service.core.channel import ChannelKey
from service.core.position import Position
from service.errors import ServiceError
from tests.contract.broker_suite import MANY, MUCH, OTHER_ROOM, ROOM
from tests.contract.test_redis_broker import new_prefix, only
from tests.contract.test_redis_faults import FAST, Sink, durable, insist, latest, running, well
from tests.stores import FLAVOURS, Flavour, RedisServer, shared_redis
from tests.stores.process import until
from tests.support.proxy import Proxy

AWAY = ChannelKey("acme", "room:away")
"""A channel without subscribers and publishes."""


class Address:
    """An address that leads to a master M, or to a replica R that a test has promoted."""

    def __init__(self, master: RedisServer, replica: RedisServer, proxy: Proxy, port: int) -> None:
        self.master = master
        self.replica = replica
        self.proxy = proxy
        self.url = f"redis://127.0.0.1:{port}"

    async def lead_to(self, server: RedisServer, *brokers: RedisBroker) -> None:
        """Moves the address to a server; returns when the brokers have reconnected."""
        self.proxy.cut()
        self.proxy.lead_to(server.port)
        self.proxy.heal()
        run_id = (await server.info("server"))["run_id"]

        async def there() -> bool:
            links = [line.link for broker in brokers for line in only(broker).connections]
            return all(link is not None and link.generation.startswith(run_id[:20]) for link in links)

        await until(there, "the brokers follow the address", within=10)

    async def promote(self) -> None:
        """Promotes R, with all data of M."""

        async def synced() -> bool:
            role = await self.replica.command("ROLE")
            return bool(role[3] == "connected" and role[4] >= (await self.master.command("ROLE"))[1])

        await until(synced, "R has what M has")
        await self.replica.command("REPLICAOF", "NO", "ONE")


@asynccontextmanager
async def an_address(flavour: Flavour = "redis") -> AsyncIterator[Address]:
    async with RedisServer(flavour) as master:
        replica = RedisServer(flavour)
        replica.follow(master)
        async with replica:
            proxy = Proxy(master.port)
            port = await proxy.start()
            try:
                yield Address(master, replica, proxy, port)
            finally:
                await proxy.close()


def position(result: PublishResult) -> Position:
    return Position(result.epoch, result.offset or 0, result.id)


async def recovered(broker: RedisBroker, since: Position, channel: ChannelKey = ROOM) -> bool | None:
    return (await broker.snapshot(channel, since, MANY, MUCH)).recovered


# --- another server ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_redis_returning_master_starts_new_epochs(flavour: Flavour) -> None:
    async with an_address(flavour) as address, running(address.url, **FAST) as (broker, sink):
        await broker.subscribe(ROOM)
        before = [await broker.publish(durable(f"m-{n}", channel)) for n in range(3) for channel in (ROOM, AWAY)]
        await broker.publish(latest("v-1", "k", OTHER_ROOM))
        [old_state] = await broker.stream_heads([OTHER_ROOM])
        await address.promote()
        await address.lead_to(address.replica, broker)
        between = await insist(broker, durable("lost", AWAY))
        assert between.epoch != before[-1].epoch
        await address.lead_to(address.master, broker)
        await sink.was_interrupted()
        assert await recovered(broker, position(before[-2]), ROOM) is False
        assert await recovered(broker, position(before[-1]), AWAY) is False
        assert await recovered(broker, position(between), AWAY) is False
        [new_state] = await broker.stream_heads([OTHER_ROOM])
        assert old_state is not None
        assert new_state is not None
        assert (new_state.epoch != old_state.epoch, new_state.state_version) == (True, 1)
        epochs = {(await broker.publish(durable(f"n-{n}", AWAY))).epoch for n in range(3)}
        assert len(epochs) == 1
        assert not epochs & {before[-1].epoch, between.epoch}


@pytest.mark.parametrize("turns", [1, 3])
async def test_redis_returning_replica_starts_new_epochs(turns: int) -> None:
    """M, R, M, R …: neither stops, and each accepts events that the other does not have."""
    async with an_address() as address, running(address.url, **FAST) as (broker, _):
        await broker.publish(durable("m-0", AWAY))
        await address.promote()
        positions: list[Position] = []
        for turn in range(turns):
            for server in (address.replica, address.master):
                await address.lead_to(server, broker)
                for since in positions:
                    assert await recovered(broker, since, AWAY) is False
                positions.append(position(await insist(broker, durable(f"m-{turn}-{server.port}", AWAY))))
        assert len({since.epoch for since in positions}) == 2 * turns


async def test_redis_node_that_was_away_adopts_term_of_other_node() -> None:
    prefix = new_prefix()
    async with an_address() as address, running(address.url, prefix, **FAST) as (seer, _):
        direct = address.master.url
        async with running(direct, prefix, **FAST) as (stayer, sink):  # its connection never breaks
            await stayer.subscribe(ROOM)
            first, away = [await stayer.publish(durable("m-1", channel)) for channel in (ROOM, AWAY)]
            await address.promote()
            await address.lead_to(address.replica, seer)
            await insist(seer, durable("lost", AWAY))
            await address.lead_to(address.master, seer)
            await sink.was_interrupted(within=10)
            [mark] = await stayer.stream_heads([ROOM], [DeliveredHead(position(first), 0)])
            assert mark is not None
            assert mark.epoch != first.epoch
        async with running(direct, prefix) as (newcomer, _):
            assert await recovered(newcomer, position(away), AWAY) is False


async def test_redis_nodes_returning_together_start_one_epoch() -> None:
    prefix = new_prefix()
    async with (
        an_address() as address,
        running(address.url, prefix, **FAST) as (one, _),
        running(address.url, prefix, **FAST) as (two, _),
        running(address.url, prefix, **FAST) as (three, _),
    ):
        nodes = (one, two, three)
        await one.publish(durable("m-1"))
        await address.promote()
        await address.lead_to(address.replica, *nodes)
        await insist(one, durable("lost"))
        await address.lead_to(address.master, *nodes)
        calls = [insist(node, durable(f"n-{n}-{at}")) for n in range(50) for at, node in enumerate(nodes)]
        results = await asyncio.gather(*calls)
        generations = {link.generation for node in nodes if (link := only(node).commands.link) is not None}
        assert len({result.epoch for result in results}) == 1
        assert len(generations) == 1


async def test_redis_busy_node_that_returns_later_adopts_term_of_other_node() -> None:
    """A command that waits for the event loop does not make the node's use of the old server look later than it was."""
    key, loop = f"{new_prefix()}:reign", asyncio.get_running_loop()
    address = ("127.0.0.1", (await shared_redis()).port)
    links = [Link(ping_interval=60.0, silence_timeout=60.0, call_timeout=60.0) for _ in range(4)]
    for link in links:
        await loop.create_connection(partial(_itself, link), *address)
    first, busy = GenerationTracker(), GenerationTracker()
    for tracker, link in zip((busy, first), links, strict=False):
        await tracker.identify(link, "old", key)
    await asyncio.sleep(0.3)  # the outage: the new server's term begins so long after the last use of the old one
    await first.identify(links[2], "new", key)
    identifying = asyncio.ensure_future(busy.identify(links[3], "new", key))
    loop.call_soon(time.sleep, 0.6)  # runs before the next iteration, in which links write
    await identifying
    assert links[2].generation.startswith("new:")
    assert links[3].generation == links[2].generation
    for link in links:
        link.abort()
        await link.lost.wait()


def _itself(link: Link) -> Link:
    return link


async def test_redis_reconnect_to_same_server_keeps_epoch() -> None:
    """A connection breaks; the address leads to a replica for a while, which refuses."""
    async with an_address() as address, running(address.url, **FAST) as (broker, sink):
        await broker.subscribe(ROOM)
        before = await broker.publish(durable("m-1"))
        address.proxy.cut()
        address.proxy.heal()
        await sink.was_interrupted()
        assert await recovered(broker, position(before)) is True
        address.proxy.cut()
        address.proxy.lead_to(address.replica.port)
        address.proxy.heal()
        with pytest.raises(ServiceError, match="replica"):
            await broker.publish(durable("m-2"))
        await address.lead_to(address.master, broker)
        await well(broker)
        assert await recovered(broker, position(before)) is True
        assert await address.master.keys("*:reign*") == []


async def test_redis_connections_to_two_servers_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address moves without breaking a connection: if only one reconnects, the node gets no own publishes."""
    monkeypatch.setattr("service.adapters.redis.connections.shard_map.CHECK_INTERVAL", 0.05)
    async with an_address() as address, running(address.url, **FAST) as (broker, sink):
        await broker.subscribe(ROOM)
        await address.promote()
        address.proxy.lead_to(address.replica.port)
        link = only(broker).commands.link
        assert link is not None
        link.abort()
        await sink.was_interrupted()
        await well(broker)
        await insist(broker, durable("m-1"))
        await until(lambda: heard(sink, "m-1"), "what is published is heard")


async def heard(sink: Sink, id: str) -> bool:
    return id in sink.ids()


async def test_redis_lost_term_is_written_again() -> None:
    async with an_address() as address, running(address.url, **FAST) as (broker, _):
        await broker.publish(durable("m-0"))
        await address.promote()
        await address.lead_to(address.replica, broker)
        await address.lead_to(address.master, broker)
        epoch = (await insist(broker, durable("m-1"))).epoch
        [key] = await address.master.keys("*:reign*")
        await address.master.command("DEL", key)
        address.proxy.cut()
        address.proxy.heal()
        await well(broker)
        assert (await insist(broker, durable("m-2"))).epoch == epoch
        assert await address.master.keys("*:reign*") == [key]


async def test_redis_full_server_starts_new_term() -> None:
    """The server refuses to store the term: the node uses a number of its own, and stores it later."""
    async with an_address() as address, running(address.url, **FAST) as (broker, _):
        first = await broker.publish(durable("m-1"))
        await address.promote()
        await address.lead_to(address.replica, broker)
        await address.master.command("CONFIG", "SET", "maxmemory", 1)
        await address.lead_to(address.master, broker)
        assert await address.master.keys("*:reign*") == []
        await address.master.command("CONFIG", "SET", "maxmemory", 0)
        again = await insist(broker, durable("m-2"))
        assert again.epoch != first.epoch
        await only(broker).check_identity()
        assert len(await address.master.keys("*:reign*")) == 1
        assert (await broker.publish(durable("m-3"))).epoch == again.epoch


async def test_redis_master_that_loses_its_name_starts_new_term(monkeypatch: pytest.MonkeyPatch) -> None:
    """The master was a replica once. After an hour without replicas, it has the name of its first life again."""
    monkeypatch.setattr("service.adapters.redis.connections.shard_map.CHECK_INTERVAL", 0.05)
    prefix = new_prefix()
    async with (
        RedisServer() as server,
        running(server.url, prefix) as (broker, sink),
        running(server.url, prefix) as (other, _),
    ):
        await broker.subscribe(ROOM)
        first = await broker.publish(durable("m-1"))
        await server.command("REPLICAOF", "127.0.0.1", "1")
        await server.command("REPLICAOF", "NO", "ONE")
        await until(lambda: named(broker, 40), "the new name is known")
        replica = RedisServer()
        replica.follow(server)
        async with replica:
            await until(lambda: named(broker, 20), "the first name is back", within=20)
            await sink.was_interrupted()
            results = [await node.publish(durable(f"m-{n}")) for n, node in enumerate((broker, other, broker), 2)]
            assert len({result.epoch for result in results}) == 1
            assert results[0].epoch != first.epoch
            assert await recovered(broker, position(first)) is False


async def named(broker: RedisBroker, characters: int) -> bool:
    link = only(broker).commands.link
    return link is not None and len(link.generation.partition(":")[0]) == characters


# --- older ------------------------------------------------------------------------------------------------------------


RESTORE = """
for number, key in ipairs(KEYS) do
    redis.call('DEL', key)
    if ARGV[number] ~= '' then redis.call('RESTORE', key, 0, ARGV[number]) end
end
"""


class Copy:
    """A copy of a channel's keys."""

    def __init__(self, server: RedisServer, broker: RedisBroker, channel: ChannelKey) -> None:
        self._server = server
        self._keys = broker.keys(channel).keys
        self._dumps: dict[str, str] = {}

    async def take(self) -> Copy:
        for key in self._keys:
            dump = await self._server.command("DUMP", key)
            if dump is not None:
                self._dumps[key] = dump
        return self

    async def put_back(self) -> None:
        """Restores the keys in one step, as a store does that reads a backup: no node sees a part of them."""
        dumps = [self._dumps.get(key, "").encode("utf-8", "surrogateescape") for key in self._keys]
        await self._server.command("EVAL", RESTORE, len(self._keys), *self._keys, *dumps)


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as alone:
        yield alone


async def publish(broker: RedisBroker, *ids: str, channel: ChannelKey = ROOM) -> list[PublishResult]:
    return [await broker.publish(durable(id, channel)) for id in ids]


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_redis_restored_channel_behind_node_starts_new_epoch(flavour: Flavour) -> None:
    async with RedisServer(flavour) as server, running(server.url) as (broker, _):
        await publish(broker, "m-1")
        copy = await Copy(server, broker, ROOM).take()
        last = (await publish(broker, "m-2", "m-3"))[-1]
        known = DeliveredHead(position(last), 0)
        [same] = await broker.stream_heads([ROOM], [known])
        assert same == (last.epoch, 3, 0)
        await copy.put_back()
        [head] = await broker.stream_heads([ROOM], [known])
        assert head is not None
        assert (head.epoch != last.epoch, head.offset) == (True, 1)
        assert list(await broker.stream_heads([ROOM], [known])) == [head], "once"
        assert await recovered(broker, position(last)) is False
        assert (await publish(broker, "m-4"))[0].epoch == head.epoch


@pytest.mark.parametrize("others", [2, 5], ids=["at the same offset", "beyond it"])
async def test_redis_other_event_at_delivered_offset_starts_new_epoch(server: RedisServer, others: int) -> None:
    """Another node has published as many events as were lost, and more."""
    prefix = new_prefix()
    async with running(server.url, prefix) as (broker, _):
        await publish(broker, "m-1")
        copy = await Copy(server, broker, ROOM).take()
        last = (await publish(broker, "m-2", "m-3"))[-1]
        await copy.put_back()
        async with running(server.url, prefix) as (other, _):
            results = await publish(other, *(f"n-{n}" for n in range(others)))
            assert results[0].offset == 2, "the store does not know what it has lost"
            [head] = await broker.stream_heads([ROOM], [DeliveredHead(position(last), 0, lowest_repeat=2)])
            assert head is not None
            assert head.epoch != last.epoch
            assert (await broker.snapshot(ROOM, None, MANY, MUCH)).epoch_start == 1, (
                "what has been published since belongs to it"
            )
            [after] = await publish(other, "n-after")
            assert (after.epoch, after.offset) == (head.epoch, others + 2)


async def test_redis_returning_old_epoch_starts_new_epoch(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        await publish(broker, "m-1")
        copy = await Copy(server, broker, ROOM).take()
        first = (await publish(broker, "m-2"))[-1]
        epochs = [first.epoch]
        known = DeliveredHead(position(first), 0)
        for turn in range(3):
            await copy.put_back()
            [mark] = await broker.stream_heads([ROOM], [known])
            assert mark is not None
            epochs.append(mark.epoch)
            [result] = await publish(broker, f"n-{turn}")
            known = DeliveredHead(position(result), 0)
        assert len(set(epochs)) == 4


async def test_redis_lost_value_starts_new_epoch(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        await broker.publish(latest("v-1", "k"))
        copy = await Copy(server, broker, ROOM).take()
        last = await broker.publish(latest("v-2", "k"))
        await copy.put_back()
        [head] = await broker.stream_heads([ROOM], [DeliveredHead(Position(last.epoch, 0), last.state_version or 0)])
        assert head is not None
        assert (head.epoch != last.epoch, head.state_version) == (True, 1)


@pytest.mark.parametrize("make", [durable, latest], ids=["durable", "latest"])
async def test_redis_repeated_offset_starts_new_epoch(server: RedisServer, make: Callable[..., object]) -> None:
    """Without subscribers, only the publishing node notices it."""
    words = () if make is durable else ("k",)
    async with running(server.url) as (broker, _):
        first = await broker.publish(make("m-1", *words))  # type: ignore[arg-type]  # either makes a publication
        copy = await Copy(server, broker, ROOM).take()
        for n in range(2, 5):
            await broker.publish(make(f"m-{n}", *words))  # type: ignore[arg-type]  # the same
        await copy.put_back()
        given_again = await broker.publish(make("n-2", *words))  # type: ignore[arg-type]  # the same
        assert given_again.epoch == first.epoch, "found by its result"
        after = await broker.publish(make("n-3", *words))  # type: ignore[arg-type]  # the same
        assert after.epoch != first.epoch
        assert (after.offset or after.state_version) == 3


async def test_redis_repeated_id_of_lost_event_is_accepted_again(server: RedisServer) -> None:
    """The stored result still exists, but the event does not."""
    async with running(server.url) as (broker, _):
        await publish(broker, "m-1")
        copy = await Copy(server, broker, ROOM).take()
        lost = (await publish(broker, "m-2", "m-3"))[-1]
        await copy.put_back()
        [again] = await publish(broker, "m-3")
        assert (again.duplicate, again.offset, again.epoch != lost.epoch) == (False, 2, True)
        [once_more] = await publish(broker, "m-3")
        assert once_more.duplicate
        page = await broker.history(ROOM, None, None, 10)
        assert [event.id for event in page.events] == ["m-1", "m-3"]


async def test_redis_client_position_ahead_of_stream_starts_new_epoch(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All nodes have restarted: only who was away knows. An epoch that has just begun is left alone: no client may have a
    channel begin one after another."""
    prefix = new_prefix()
    monkeypatch.setattr(epochs_of_streams, "MIN_EPOCH_AGE", 0.0)
    async with running(server.url, prefix) as (broker, _):
        await publish(broker, "m-1")
        copy = await Copy(server, broker, ROOM).take()
        last = (await publish(broker, "m-2", "m-3"))[-1]
        await copy.put_back()
    async with running(server.url, prefix) as (broker, _):
        snapshot = await broker.snapshot(ROOM, position(last), MANY, MUCH)
        assert snapshot.recovered is False
        assert snapshot.position.epoch != last.epoch
        assert await recovered(broker, Position(last.epoch, 1, "m-1")) is False
        monkeypatch.setattr(epochs_of_streams, "MIN_EPOCH_AGE", 60.0)
        again = await broker.snapshot(ROOM, Position(snapshot.position.epoch, 70, "m-70"), MANY, MUCH)
        assert (again.recovered, again.position.epoch) == (False, snapshot.position.epoch)


async def test_redis_history_after_newest_offset_is_empty(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        await publish(broker, "m-1", "m-2")
        for after, before in ((70, None), (70, 90), (2, None)):
            page = await broker.history(ROOM, after, before, 10)
            assert (list(page.events), page.has_more, page.position.offset) == ([], False, 2)


@pytest.mark.parametrize("how", ["FLUSHALL", "SWAPDB"])
async def test_redis_emptied_store_starts_new_epochs(server: RedisServer, how: str) -> None:
    async with running(server.url) as (broker, _):
        last = (await publish(broker, "m-1", "m-2"))[-1]
        await server.command(*(("SWAPDB", 0, 1) if how == "SWAPDB" else ("FLUSHALL",)))
        await broker.stream_heads([ROOM], [DeliveredHead(position(last), 0)])
        assert await recovered(broker, position(last)) is False
        [result] = await publish(broker, "m-3")
        assert (result.offset, result.epoch != last.epoch) == (1, True)
        if how == "SWAPDB":
            await server.command("SWAPDB", 0, 1)
            [mark] = await broker.stream_heads([ROOM], [DeliveredHead(position(result), 0)])
            assert mark is not None
            assert mark.epoch not in (last.epoch, result.epoch)


async def test_redis_reload_of_older_file_starts_new_epoch() -> None:
    async with (
        RedisServer(config={"enable-debug-command": "yes"}) as server,
        running(server.url) as (broker, _),
    ):
        await publish(broker, "m-1")
        await server.command("SAVE")
        last = (await publish(broker, "m-2"))[-1]
        await server.command("DEBUG", "RELOAD", "NOSAVE")
        [mark] = await broker.stream_heads([ROOM], [DeliveredHead(position(last), 0)])
        assert mark is not None
        assert (mark.epoch != last.epoch, mark.offset) == (True, 1)
