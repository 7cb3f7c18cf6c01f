"""The PresenceStore at Redis and Valkey: the guarantee of the port, with Valkey's clock moved forward."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from redis.asyncio.client import PubSub

from service.adapters.redis import event_codec
from service.adapters.redis.stores.presence import RedisPresence
from service.core.channel import ChannelKey
from service.core.event import Publication
from service.core.presence import PresenceEntry
from tests.contract.presence_suite import MAX_TOLD, ROOM, TTL, Node, SharedPresenceSuite, Stage, TimedPresenceSuite
from tests.contract.redis_stage import client_of, new_prefix
from tests.stores import FLAVOURS, RedisServer

pytestmark = pytest.mark.slow


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=FLAVOURS)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[RedisServer]:
    async with RedisServer(request.param) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def timed_server() -> AsyncIterator[RedisServer]:
    async with RedisServer("valkey", movable_clock=True) as running:
        yield running


@dataclass(frozen=True, slots=True)
class RedisStage(Stage):
    listener: Redis
    pubsub: PubSub
    prefix: str

    async def published_events(self) -> list[Publication]:
        # What was published before this has been put out before it.
        await self.listener.publish(f"{self.prefix}:end", "")
        found: list[Publication] = []
        while True:
            message = await self.pubsub.get_message(timeout=5)
            assert message is not None, "nothing came"
            if message["type"] == "psubscribe":
                continue
            channel = message["channel"].decode()
            if channel == f"{self.prefix}:end":
                return found
            tenant, _, name = channel.partition("{")[2].partition("}")[0].partition(":")
            event = event_codec.decode_message(ChannelKey(tenant, name), message["data"])
            assert (event.offset, event.state_version, event.epoch) == (None, None, "")
            found.append(
                Publication(
                    event.channel, event.type, event.id, event.delivery, event.data, event.sender, event.at, event.key
                )
            )


@asynccontextmanager
async def staged(server: RedisServer) -> AsyncIterator[RedisStage]:
    prefix = new_prefix()
    host, port = server.address
    async with (
        client_of(server.url, prefix) as one,
        client_of(server.url, prefix) as two,
        Redis(host=host, port=port) as listener,
        listener.pubsub() as pubsub,
    ):
        await pubsub.psubscribe(f"{prefix}:*")
        first, second = (Node(RedisPresence(client, ttl=TTL, max_announced_users=MAX_TOLD)) for client in (one, two))
        yield RedisStage(first, second, listener, pubsub, prefix)


class TestRedisPresence(SharedPresenceSuite):
    server: RedisServer

    @pytest.fixture(autouse=True)
    def _at(self, server: RedisServer) -> None:
        self.server = server

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Stage]:
        async with staged(self.server) as stage:
            yield stage

    async def lose_data(self, stage: Stage) -> None:
        await self.server.command("FLUSHALL")


class TestRedisPresenceInTime(TimedPresenceSuite):
    server: RedisServer

    @pytest.fixture(autouse=True)
    def _at(self, timed_server: RedisServer) -> None:
        self.server = timed_server

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Stage]:
        async with staged(self.server) as stage:
            yield stage

    async def advance(self, seconds: float) -> None:
        await self.server.advance(seconds)

    async def test_keys_stay_as_long_as_keep_says_and_nothing_is_published(self, stage: Stage) -> None:
        assert isinstance(stage, RedisStage)
        async with client_of(self.server.url, stage.prefix) as client:
            node = Node(RedisPresence(client, ttl=TTL, max_announced_users=-1, keep=10 * TTL))
            await node.join(ROOM, "ann", "c-1", b"{}")
            await self.advance(10 * TTL - 1)
            assert [one.entry.user for one in await node.store.expired([ROOM])] == ["ann"]
            await node.store.renew([PresenceEntry(ROOM, "ann", "c-1")])
            await self.advance(10 * TTL + 1)
            assert list(await node.store.find_all([(ROOM, "ann")])) == [None]
            await node.join(ROOM, "ann", "c-1")
            assert await node.leave(ROOM, "ann", "c-1") == (True, 0, False)
        assert await stage.published_events() == []
