"""The TicketStore at Redis and Valkey: the guarantee of the port, also on several nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from service.adapters.redis.stores.client import RedisClient
from service.adapters.redis.stores.tickets import RedisTickets
from service.core.tickets import TicketStore
from tests.contract.redis_stage import client_of, new_prefix
from tests.contract.tickets_suite import TTL, TicketsSuite, TimedTicketsSuite
from tests.stores import RedisServer, shared_redis
from tests.support.clock import FakeClock


class TestTicketsAtRedis(TicketsSuite):
    client: RedisClient

    @pytest.fixture(autouse=True)
    async def _client(self) -> AsyncIterator[None]:
        async with client_of((await shared_redis()).url, new_prefix()) as self.client:
            yield

    async def open(self, clock: FakeClock) -> TicketStore:
        return RedisTickets(self.client)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def timed_server() -> AsyncIterator[RedisServer]:
    async with RedisServer("valkey", movable_clock=True) as running:
        yield running


class TestTicketsAtValkey(TimedTicketsSuite):
    server: RedisServer
    client: RedisClient

    @pytest.fixture(autouse=True)
    async def _client(self, timed_server: RedisServer) -> AsyncIterator[None]:
        self.server = timed_server
        async with client_of(timed_server.url, new_prefix()) as self.client:
            yield

    async def open(self, clock: FakeClock) -> TicketStore:
        return RedisTickets(self.client)

    async def advance(self, clock: FakeClock, seconds: float) -> None:
        await self.server.advance(seconds)


async def test_redis_ticket_redeems_on_one_of_two_nodes() -> None:
    server, prefix = await shared_redis(), new_prefix()
    async with client_of(server.url, prefix) as one, client_of(server.url, prefix) as two:
        stores = RedisTickets(one), RedisTickets(two)
        ticket = await stores[0].issue("token", TTL)
        assert await stores[1].peek(ticket) == "token"
        redeemed = await asyncio.gather(*(store.redeem(ticket) for store in stores * 10))
        assert sorted(map(str, redeemed)) == ["None"] * 19 + ["token"]


async def test_redis_ticket_key_is_no_ticket() -> None:
    server, prefix = await shared_redis(), new_prefix()
    async with client_of(server.url, prefix) as client:
        ticket = await RedisTickets(client).issue("a canary token", TTL)
        [key] = await server.keys(f"{prefix}:*")
        assert ticket not in key
        assert "canary" not in key
        assert 0 < await server.command("PTTL", key) <= TTL * 1000
