"""What channels that were only named leave in NATS: nothing for longer than a minute."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from service.adapters.nats.broker import NatsBroker
from service.core.channel import ChannelKey
from service.core.position import Position
from tests.contract.broker_suite import MANY, MUCH, Publisher
from tests.contract.nats_stage import config, running
from tests.contract.test_nats_broker import subjects
from tests.stores import NatsServer
from tests.stores.process import until
from tests.support.clock import FakeClock

pytestmark = pytest.mark.slow

INVENTED = ChannelKey("acme", "room:invented")
SHORT = 2.0

DOORS: dict[str, Callable[[NatsBroker], Awaitable[Any]]] = {
    "subscribe": lambda broker: broker.subscribe(INVENTED),
    "snapshot": lambda broker: broker.snapshot(INVENTED, None, 0, 0),
    "resume": lambda broker: broker.snapshot(INVENTED, Position("nobody", 3, "x"), MANY, MUCH),
    "history": lambda broker: broker.history(INVENTED, None, None, 10),
    "stream_heads": lambda broker: broker.stream_heads([INVENTED]),
    "channels": lambda broker: broker.list_channels("acme", "", 10),
}


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    server = NatsServer()
    asyncio.run(server.start())
    yield server
    server.end()


@pytest.mark.parametrize("door", DOORS)
async def test_channel_that_is_only_named_goes_by_itself(server: NatsServer, door: str) -> None:
    where = config(server, empty_ttl=SHORT)
    async with running(where, FakeClock()) as (broker, _):
        await DOORS[door](broker)
        await broker.unsubscribe(INVENTED)

        async def is_gone() -> bool:
            return not await subjects(server, where.prefix)

        await until(is_gone, "nothing is left", within=SHORT + 10)


async def test_empty_channel_keeps_its_epoch_while_somebody_is_subscribed(server: NatsServer) -> None:
    clock, where = FakeClock(), config(server, empty_ttl=SHORT)
    async with running(where, clock) as (one, _), running(where, clock) as (other, _):
        for broker in (one, other):
            await broker.subscribe(INVENTED)
        told = (await one.snapshot(INVENTED, None, 0, 0)).position
        loop = asyncio.get_running_loop()
        end = loop.time() + 3 * (SHORT + 2)
        while loop.time() < end:
            for broker in (one, other):
                await broker.renew_empty_channels()
            await asyncio.sleep(SHORT / 4)
        receipt = await Publisher(other, clock).durable(INVENTED)
        assert receipt.epoch == told.epoch
        missed = await one.snapshot(INVENTED, told, MANY, MUCH)
        assert (missed.recovered, len(missed.missed)) == (True, 1)
        await one.renew_empty_channels()
        assert not one._empty


async def test_a_head_outlives_the_minute_once_something_was_published(server: NatsServer) -> None:
    clock, where = FakeClock(), config(server, empty_ttl=SHORT)
    async with running(where, clock) as (broker, _):
        await broker.subscribe(INVENTED)
        receipt = await Publisher(broker, clock).durable(INVENTED)
        await broker.unsubscribe(INVENTED)
        await asyncio.sleep(SHORT + 3)
        assert (await broker.snapshot(INVENTED, None, 0, 0)).position.epoch == receipt.epoch


async def test_nodes_that_keep_at_the_same_moment_lose_no_channel(server: NatsServer) -> None:
    clock, where = FakeClock(), config(server)
    async with running(where, clock) as (one, _), running(where, clock) as (other, _):
        shared = [ChannelKey("acme", f"room:shared-{number}") for number in range(3)]
        own = {one: ChannelKey("acme", "room:one"), other: ChannelKey("acme", "room:other")}
        for broker in (one, other):
            for channel in (*shared, own[broker]):
                await broker.subscribe(channel)
        told = {channel: (await one.snapshot(channel, None, 0, 0)).position for channel in (*shared, *own.values())}
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * (SHORT + 2)
        while loop.time() < end:
            await asyncio.gather(one.renew_empty_channels(), other.renew_empty_channels())
            await asyncio.sleep(SHORT / 4)
        for channel, top in told.items():
            assert (await one.snapshot(channel, None, 0, 0)).position == top
