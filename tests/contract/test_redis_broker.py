"""The Broker on Redis 7 and Valkey 9: the port's contract."""

from __future__ import annotations

import atexit
from itertools import count
from typing import ClassVar

import pytest

from service.adapters.redis.address import parse
from service.adapters.redis.broker import RedisBroker
from service.adapters.redis.config import RedisConfig
from service.core.broker import Broker
from service.telemetry.metrics import Metrics
from tests.clock import FakeClock
from tests.contract.broker_suite import WINDOW, BrokerSuite
from tests.stores import FLAVOURS, Flavour, RedisServer, shared_redis

_prefixes = (f"suite-{number}" for number in count())


def redis_broker(url: str, prefix: str) -> RedisBroker:
    config = RedisConfig(parse(url), prefix=prefix, idempotency_window=WINDOW)
    return RedisBroker(config, Metrics())


async def settled(broker: RedisBroker) -> None:
    """Replies come after what was published before, so an answer from each subscription's server says that all is here."""
    for server in broker._servers.values():
        link = server.subscriber.line.link
        assert link is not None
        await link.call("PING")


_movable: list[RedisServer] = []


async def movable_valkey() -> RedisServer:
    """One server for all tests of this run that move a clock: they only ever move it on."""
    if not _movable:
        server = RedisServer("valkey", movable_clock=True)
        atexit.register(server.end)
        await server.start()
        _movable.append(server)
    return _movable[0]


class RedisSuite(BrokerSuite):
    flavour: ClassVar[Flavour]

    async def server(self) -> RedisServer:
        return await shared_redis(self.flavour)

    async def open(self, clock: FakeClock) -> Broker:
        return redis_broker((await self.server()).url, next(_prefixes))

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
