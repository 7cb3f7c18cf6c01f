"""The Broker on a Redis or Valkey that comes back as somebody else, or older: a new epoch, for those who were away too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from service.adapters.redis.broker import RedisBroker
from service.core import epoch as epochs_of_streams
from service.core.broker import DeliveredHead, PublishResult
from service.core.channel import ChannelKey
from service.core.position import Position
from service.errors import ServiceError
from tests.contract.broker_suite import MANY, MUCH, OTHER_ROOM, ROOM
from tests.contract.test_redis_broker import new_prefix, only
from tests.contract.test_redis_faults import FAST, Sink, durable, insist, latest, running, well
from tests.stores import FLAVOURS, Flavour, RedisServer
from tests.stores.process import until
from tests.support.proxy import Proxy

AWAY = ChannelKey("acme", "room:away")
"""Nobody is subscribed to it, and nobody publishes in it while it matters."""


class Address:
    """One address that leads to a master M, or to the replica R that was made master by hand."""

    def __init__(self, master: RedisServer, replica: RedisServer, proxy: Proxy, port: int) -> None:
        self.master = master
        self.replica = replica
        self.proxy = proxy
        self.url = f"redis://127.0.0.1:{port}"

    async def lead_to(self, server: RedisServer, *brokers: RedisBroker) -> None:
        """Gives the address to a server; returns when the brokers have gone there."""
        self.proxy.cut()
        self.proxy.lead_to(server.port)
        self.proxy.heal()
        run_id = (await server.info("server"))["run_id"]

        async def there() -> bool:
            links = [line.link for broker in brokers for line in only(broker).connections]
            return all(link is not None and link.generation.startswith(run_id[:20]) for link in links)

        await until(there, "the brokers follow the address", within=10)

    async def promote(self) -> None:
        """Makes R a master, with all that M had."""

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


def position(receipt: PublishResult) -> Position:
    return Position(receipt.epoch, receipt.offset or 0, receipt.id)


async def recovered(broker: RedisBroker, since: Position, channel: ChannelKey = ROOM) -> bool | None:
    return (await broker.snapshot(channel, since, MANY, MUCH)).recovered


# --- somebody else ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_a_master_that_comes_back_begins_new_epochs_although_it_never_stopped(flavour: Flavour) -> None:
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
async def test_the_replica_that_comes_back_begins_new_epochs_too(turns: int) -> None:
    """M, R, M, R …: neither ever stops, and each turn acknowledges what the other does not know."""
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


async def test_a_node_that_was_away_goes_along_with_one_that_has_seen_another() -> None:
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


async def test_nodes_that_come_back_together_begin_one_epoch() -> None:
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
        receipts = await asyncio.gather(*calls)
        generations = {link.generation for node in nodes if (link := only(node).commands.link) is not None}
        assert len({receipt.epoch for receipt in receipts}) == 1
        assert len(generations) == 1


async def test_nothing_begins_where_nobody_else_was_seen() -> None:
    """A connection that breaks, and an address that leads to a replica for a while, which refuses."""
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


async def test_both_connections_lead_to_one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that moves without breaking anything: whoever reconnects alone would hear nothing of what it publishes."""
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


async def test_a_reign_that_was_lost_is_written_again() -> None:
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


async def test_a_full_server_is_in_a_new_reign_all_the_same() -> None:
    """It refuses to write the key: the node goes by a number of its own, and writes it when it can."""
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


async def test_a_master_that_loses_its_new_name_is_in_a_new_reign(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a replica once. With its first replica of its own, or an hour without any, its name is that of its first life."""
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
            receipts = [await node.publish(durable(f"m-{n}")) for n, node in enumerate((broker, other, broker), 2)]
            assert len({receipt.epoch for receipt in receipts}) == 1
            assert receipts[0].epoch != first.epoch
            assert await recovered(broker, position(first)) is False


async def named(broker: RedisBroker, characters: int) -> bool:
    link = only(broker).commands.link
    return link is not None and len(link.generation.partition(":")[0]) == characters


# --- older ------------------------------------------------------------------------------------------------------------


class Copy:
    """What a server holds of a channel, as it was."""

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
        for key in self._keys:
            if key in self._dumps:
                dump = self._dumps[key].encode("utf-8", "surrogateescape")
                await self._server.command("RESTORE", key, 0, dump, "REPLACE")
            else:
                await self._server.command("DEL", key)


@pytest.fixture
async def server() -> AsyncIterator[RedisServer]:
    async with RedisServer() as alone:
        yield alone


async def publish(broker: RedisBroker, *ids: str, channel: ChannelKey = ROOM) -> list[PublishResult]:
    return [await broker.publish(durable(id, channel)) for id in ids]


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_who_knows_more_than_a_restored_channel_begins_its_new_epoch(flavour: Flavour) -> None:
    async with RedisServer(flavour) as server, running(server.url) as (broker, _):
        await publish(broker, "m-1")
        copy = await Copy(server, broker, ROOM).take()
        last = (await publish(broker, "m-2", "m-3"))[-1]
        known = DeliveredHead(position(last), 0)
        [same] = await broker.stream_heads([ROOM], [known])
        assert same == (last.epoch, 3, 0)
        await copy.put_back()
        [told] = await broker.stream_heads([ROOM], [known])
        assert told is not None
        assert (told.epoch != last.epoch, told.offset) == (True, 1)
        assert list(await broker.stream_heads([ROOM], [known])) == [told], "once"
        assert await recovered(broker, position(last)) is False
        assert (await publish(broker, "m-4"))[0].epoch == told.epoch


@pytest.mark.parametrize("others", [2, 5], ids=["at the same offset", "beyond it"])
async def test_another_event_at_a_known_offset_begins_a_new_epoch(server: RedisServer, others: int) -> None:
    """Before anybody who knows asks, another node has published as many as were lost, and more."""
    prefix = new_prefix()
    async with running(server.url, prefix) as (broker, _):
        await publish(broker, "m-1")
        copy = await Copy(server, broker, ROOM).take()
        last = (await publish(broker, "m-2", "m-3"))[-1]
        await copy.put_back()
        async with running(server.url, prefix) as (other, _):
            receipts = await publish(other, *(f"n-{n}" for n in range(others)))
            assert receipts[0].offset == 2, "the store does not know what it has lost"
            [told] = await broker.stream_heads([ROOM], [DeliveredHead(position(last), 0, lowest_repeat=2)])
            assert told is not None
            assert told.epoch != last.epoch
            assert (await broker.snapshot(ROOM, None, MANY, MUCH)).epoch_start == 1, (
                "what has been published since belongs to it"
            )
            [after] = await publish(other, "n-after")
            assert (after.epoch, after.offset) == (told.epoch, others + 2)


async def test_an_epoch_that_comes_back_is_no_epoch(server: RedisServer) -> None:
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
            [receipt] = await publish(broker, f"n-{turn}")
            known = DeliveredHead(position(receipt), 0)
        assert len(set(epochs)) == 4


async def test_a_value_that_was_lost_begins_a_new_epoch(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        await broker.publish(latest("v-1", "k"))
        copy = await Copy(server, broker, ROOM).take()
        last = await broker.publish(latest("v-2", "k"))
        await copy.put_back()
        [told] = await broker.stream_heads([ROOM], [DeliveredHead(Position(last.epoch, 0), last.state_version or 0)])
        assert told is not None
        assert (told.epoch != last.epoch, told.state_version) == (True, 1)


@pytest.mark.parametrize("make", [durable, latest], ids=["durable", "latest"])
async def test_a_publisher_that_is_given_a_place_twice_begins_a_new_epoch(
    server: RedisServer, make: Callable[..., object]
) -> None:
    """Nobody is subscribed: who publishes is the only one who knows."""
    words = () if make is durable else ("k",)
    async with running(server.url) as (broker, _):
        first = await broker.publish(make("m-1", *words))  # type: ignore[arg-type]  # either makes a publication
        copy = await Copy(server, broker, ROOM).take()
        for n in range(2, 5):
            await broker.publish(make(f"m-{n}", *words))  # type: ignore[arg-type]  # the same
        await copy.put_back()
        given_again = await broker.publish(make("n-2", *words))  # type: ignore[arg-type]  # the same
        assert given_again.epoch == first.epoch, "found by its receipt"
        after = await broker.publish(make("n-3", *words))  # type: ignore[arg-type]  # the same
        assert after.epoch != first.epoch
        assert (after.offset or after.state_version) == 3


async def test_a_repeat_of_what_the_store_has_lost_is_accepted_anew(server: RedisServer) -> None:
    """Its receipt is there still, and its event is not."""
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


async def test_a_client_that_knows_more_begins_a_new_epoch(
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


async def test_a_page_beyond_the_top_is_empty(server: RedisServer) -> None:
    async with running(server.url) as (broker, _):
        await publish(broker, "m-1", "m-2")
        for after, before in ((70, None), (70, 90), (2, None)):
            page = await broker.history(ROOM, after, before, 10)
            assert (list(page.events), page.has_more, page.position.offset) == ([], False, 2)


@pytest.mark.parametrize("how", ["FLUSHALL", "SWAPDB"])
async def test_a_store_that_is_empty_all_at_once_makes_all_new(server: RedisServer, how: str) -> None:
    async with running(server.url) as (broker, _):
        last = (await publish(broker, "m-1", "m-2"))[-1]
        await server.command(*(("SWAPDB", 0, 1) if how == "SWAPDB" else ("FLUSHALL",)))
        await broker.stream_heads([ROOM], [DeliveredHead(position(last), 0)])
        assert await recovered(broker, position(last)) is False
        [receipt] = await publish(broker, "m-3")
        assert (receipt.offset, receipt.epoch != last.epoch) == (1, True)
        if how == "SWAPDB":
            await server.command("SWAPDB", 0, 1)
            [mark] = await broker.stream_heads([ROOM], [DeliveredHead(position(receipt), 0)])
            assert mark is not None
            assert mark.epoch not in (last.epoch, receipt.epoch)


async def test_a_reload_of_an_older_file_begins_a_new_epoch() -> None:
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
