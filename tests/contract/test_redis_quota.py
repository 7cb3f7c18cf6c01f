"""The QuotaStore at Redis and Valkey: the guarantee of the port, with Valkey's clock moved forward."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from service.adapters.redis.stores.quota import RedisQuota
from service.core.quota import CLAIM_TTL, QuotaClaim, SessionOrderUpdate
from tests.contract.quota_suite import ACME, ANN, Nodes, SharedQuotaSuite, TimedQuotaSuite
from tests.contract.redis_stage import client_of, new_prefix
from tests.stores import FLAVOURS, Flavour, RedisServer, shared_redis


@asynccontextmanager
async def two_nodes(server: RedisServer) -> AsyncIterator[Nodes]:
    prefix = new_prefix()
    async with client_of(server.url, prefix) as one, client_of(server.url, prefix) as two:
        yield Nodes(RedisQuota(one), RedisQuota(two))


@pytest.mark.parametrize("flavour", FLAVOURS)
class TestRedisQuota(SharedQuotaSuite):
    flavour: Flavour

    @pytest.fixture(autouse=True)
    def _flavour(self, flavour: Flavour) -> None:
        self.flavour = flavour

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Nodes]:
        async with two_nodes(await shared_redis(self.flavour)) as nodes:
            yield nodes


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def timed_server() -> AsyncIterator[RedisServer]:
    async with RedisServer("valkey", movable_clock=True) as running:
        yield running


class TestRedisQuotaInTime(TimedQuotaSuite):
    server: RedisServer

    @pytest.fixture(autouse=True)
    def _at(self, timed_server: RedisServer) -> None:
        self.server = timed_server

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Nodes]:
        async with two_nodes(self.server) as nodes:
            yield nodes

    async def advance(self, seconds: float) -> None:
        await self.server.advance(seconds)


async def test_redis_quota_keys_expire_without_renewal() -> None:
    server, prefix = await shared_redis(), new_prefix()
    async with client_of(server.url, prefix) as client:
        await RedisQuota(client).claim([QuotaClaim(ACME, 1), QuotaClaim(ANN, 1)])
        await RedisQuota(client).update_session_order([SessionOrderUpdate(ANN, 1, added=["c"])])
        keys = await server.keys(f"{prefix}:*")
        assert len(keys) == 4
        for key in keys:
            assert 0 < await server.command("PTTL", key) <= CLAIM_TTL * 1000
