"""The Broker on Redis 7 and Valkey 9: the guarantee of the port."""

from __future__ import annotations

import atexit
from collections.abc import Collection
from itertools import count
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from service.adapters.redis.address import parse_redis_url
from service.adapters.redis.broker import RedisBroker
from service.adapters.redis.config import RedisConfig
from service.adapters.redis.connections.shard import Shard
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.event import Retention
from service.telemetry.metrics import Metrics
from tests.contract import broker_machine
from tests.contract.broker_machine import MACHINE_SETTINGS, BrokerMachine
from tests.contract.broker_suite import ROOM, WINDOW, Publisher, RecordingSink
from tests.contract.values_suite import ValuesSuite
from tests.stores import FLAVOURS, Flavour, RedisServer, shared_redis
from tests.support.clock import FakeClock
from tests.support.examples import examples

EMPTY_SECONDS = 60.0
"""`broker.empty_ttl`, as it is without a setting."""

_prefixes = (f"suite-{number}" for number in count())


def new_prefix() -> str:
    """Returns a prefix that no other test uses."""
    return next(_prefixes)


def redis_broker(url: str, prefix: str, **settings: Any) -> RedisBroker:
    config = RedisConfig(parse_redis_url(url), prefix=prefix, **{"idempotency_window": WINDOW, **settings})
    return RedisBroker(config, Metrics())


def only(broker: RedisBroker) -> Shard:
    """Returns the only shard of a broker."""
    [shard] = broker.shards
    return shard


async def settled(broker: RedisBroker) -> None:
    """Asks the server of each subscription: its reply comes after all messages before it."""
    for shard in broker.shards:
        link = shard.subscriber.connection.link
        assert link is not None
        await link.call("PING")


_movable: list[RedisServer] = []


async def movable_valkey() -> RedisServer:
    """A server for all tests that move its clock, which they only move forward."""
    if not _movable:
        server = RedisServer("valkey", movable_clock=True)
        atexit.register(server.end)
        await server.start()
        _movable.append(server)
    return _movable[0]


class RedisSuite(ValuesSuite):
    flavour: ClassVar[Flavour]

    async def server(self) -> RedisServer:
        return await shared_redis(self.flavour)

    async def open(self, clock: FakeClock) -> Broker:
        return redis_broker((await self.server()).url, new_prefix())

    async def settled(self, broker: Broker) -> None:
        assert isinstance(broker, RedisBroker)
        await settled(broker)


class TestRedis(RedisSuite):
    flavour = "redis"

    async def advance(self, clock: FakeClock, seconds: float) -> None:
        pytest.skip("the clock of Debian's Redis cannot be moved; the same scripts run below on a Valkey whose can")


class TestValkey(RedisSuite):
    flavour = "valkey"

    async def server(self) -> RedisServer:
        return await movable_valkey()

    async def advance(self, clock: FakeClock, seconds: float) -> None:
        clock.advance(seconds)
        await (await self.server()).advance(seconds)


assert {"redis", "valkey"} == set(FLAVOURS)


class ValkeyMachine(BrokerMachine):
    """Compares a real server with the model, whose clock moves it."""

    may_forget_empty = True
    may_be_set_back = True

    async def open(self, clock: FakeClock) -> Broker:
        self.server = await movable_valkey()
        return redis_broker(self.server.url, new_prefix(), idempotency_window=broker_machine.WINDOW)

    @rule(seconds=st.sampled_from([1, 5, 29, 30, 31, 99, 100]))
    def let_time_pass(self, seconds: int) -> None:
        super().let_time_pass(seconds)
        assert isinstance(self.broker, RedisBroker)
        while seconds > 0:  # in steps, as what a node does now and then takes real time
            self.run(self.server.advance(min(seconds, EMPTY_SECONDS / 3)))
            self.run(self.broker.renew_empty_channels())
            seconds -= int(EMPTY_SECONDS / 3)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        raise AssertionError("nothing interrupts here")

    @invariant()
    def the_sink_got_what_it_should_in_order(self) -> None:
        assert isinstance(self.broker, RedisBroker)
        self.run(settled(self.broker))
        super().the_sink_got_what_it_should_in_order()


TestValkeyAsModelled = ValkeyMachine.TestCase
TestValkeyAsModelled.settings = settings(MACHINE_SETTINGS, max_examples=examples(10), stateful_step_count=40)


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_redis_history_page_of_megabytes_ends_early(flavour: Flavour) -> None:
    broker = redis_broker((await shared_redis(flavour)).url, next(_prefixes))
    await broker.start(RecordingSink())
    publish = Publisher(broker, FakeClock())
    for _ in range(200):
        await publish.durable(data=b'"' + b"x" * 60_000 + b'"', retention=Retention(entries=200, ttl=60.0))
    newest = await broker.history(ROOM, None, None, 200)
    offsets = [event.offset for event in newest.events]
    assert newest.has_more
    assert 50 <= len(offsets) < 200
    assert offsets == list(range(201 - len(offsets), 201))
    oldest = await broker.history(ROOM, 0, None, 200)
    assert oldest.has_more
    assert [event.offset for event in oldest.events] == list(range(1, len(oldest.events) + 1))
    rest = await broker.history(ROOM, oldest.events[-1].offset, None, 200)
    assert rest.events[0].offset == len(oldest.events) + 1
    await broker.close()
