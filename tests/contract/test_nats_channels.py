"""Empty channels in NATS expire after `broker.empty_ttl`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from service.adapters.nats.broker import NatsBroker
from service.core.channel import ChannelKey
from service.core.position import Position
from tests.contract.broker_suite import EVENT, MANY, MUCH, Publisher
from tests.contract.nats_stage import config, running
from tests.contract.test_nats_broker import subjects
from tests.stores import NatsServer
from tests.stores.process import until
from tests.support.clock import FakeClock

pytestmark = pytest.mark.slow

INVENTED = ChannelKey("acme", "room:invented")
SHORT = 1.0

DOORS: dict[str, Callable[[NatsBroker], Awaitable[Any]]] = {
    "subscribe": lambda broker: broker.subscribe(INVENTED),
    "snapshot": lambda broker: broker.snapshot(INVENTED, None, 0, 0),
    "resume": lambda broker: broker.snapshot(INVENTED, Position("nobody", 3, "x"), MANY, MUCH),
    "history": lambda broker: broker.history(INVENTED, None, None, 10),
    "stream_heads": lambda broker: broker.stream_heads([INVENTED]),
    "channels": lambda broker: broker.list_channels("acme", "", 10),
    "remove": lambda broker: broker.remove_events(INVENTED, [EVENT]),
    "purge": lambda broker: broker.purge(INVENTED),
}


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    server = NatsServer()
    asyncio.run(server.start())
    yield server
    server.end()


@pytest.mark.parametrize("door", DOORS)
async def test_nats_named_channel_expires(server: NatsServer, door: str) -> None:
    where = config(server, empty_ttl=SHORT)
    async with running(where, FakeClock()) as (broker, _):
        await DOORS[door](broker)
        await broker.unsubscribe(INVENTED)

        async def is_gone() -> bool:
            return not await subjects(server, where.prefix)

        await until(is_gone, "nothing is left", within=SHORT + 10)


async def test_nats_empty_channel_with_subscriber_keeps_epoch(server: NatsServer) -> None:
    clock, where = FakeClock(), config(server, empty_ttl=SHORT)
    async with running(where, clock) as (one, _), running(where, clock) as (other, _):
        for broker in (one, other):
            await broker.subscribe(INVENTED)
        position = (await one.snapshot(INVENTED, None, 0, 0)).position
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * (SHORT + 2)
        while loop.time() < end:
            for broker in (one, other):
                await broker.renew_empty_channels()
            await asyncio.sleep(SHORT / 4)
        result = await Publisher(other, clock).durable(INVENTED)
        assert result.epoch == position.epoch
        missed = await one.snapshot(INVENTED, position, MANY, MUCH)
        assert (missed.recovered, len(missed.missed)) == (True, 1)


async def test_nats_head_after_publish_outlives_empty_ttl(server: NatsServer) -> None:
    clock, where = FakeClock(), config(server, empty_ttl=SHORT)
    async with running(where, clock) as (broker, _):
        await broker.subscribe(INVENTED)
        result = await Publisher(broker, clock).durable(INVENTED)
        await broker.unsubscribe(INVENTED)
        await asyncio.sleep(SHORT + 3)
        assert (await broker.snapshot(INVENTED, None, 0, 0)).position.epoch == result.epoch


async def test_nats_concurrent_renewals_keep_all_channels(server: NatsServer) -> None:
    clock, where = FakeClock(), config(server)
    async with running(where, clock) as (one, _), running(where, clock) as (other, _):
        shared = [ChannelKey("acme", f"room:shared-{number}") for number in range(3)]
        own = {one: ChannelKey("acme", "room:one"), other: ChannelKey("acme", "room:other")}
        for broker in (one, other):
            for channel in (*shared, own[broker]):
                await broker.subscribe(channel)
        positions = {
            channel: (await one.snapshot(channel, None, 0, 0)).position for channel in (*shared, *own.values())
        }
        loop = asyncio.get_running_loop()
        end = loop.time() + 2 * (SHORT + 2)
        while loop.time() < end:
            await asyncio.gather(one.renew_empty_channels(), other.renew_empty_channels())
            await asyncio.sleep(SHORT / 4)
        for channel, position in positions.items():
            assert (await one.snapshot(channel, None, 0, 0)).position == position
