"""Presence, tickets and quotas at NATS: the guarantees of their ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import nats
import pytest

from service.adapters.nats.config import NatsConfig
from service.adapters.nats.stores.documents import Documents
from service.adapters.nats.stores.presence import NatsPresence
from service.adapters.nats.stores.quota import NatsQuota
from service.adapters.nats.stores.tickets import NatsTickets
from service.core.channel import ChannelKey
from service.core.event import Publication
from service.core.presence import PresenceEntry
from service.core.tickets import TicketStore
from service.errors import ErrorCode, ServiceError
from tests.contract.nats_stage import ListeningSink, config, running
from tests.contract.presence_suite import (
    LEFT,
    MAX_TOLD,
    OTHER_ROOM,
    ROOM,
    SAME_ROOM_OF_ANOTHER_TENANT,
    Node,
    SharedPresenceSuite,
    Stage,
    TimedPresenceSuite,
    farewell,
)
from tests.contract.presence_suite import TTL as PRESENCE_TTL
from tests.contract.quota_suite import Nodes, SharedQuotaSuite, TimedQuotaSuite
from tests.contract.tickets_suite import TTL, TimedTicketsSuite
from tests.stores import NatsServer
from tests.support.clock import FakeClock

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    """A server for all tests; each has its own stream."""
    server = NatsServer()
    asyncio.run(server.start())
    yield server
    server.end()


# --- tickets ----------------------------------------------------------------------------------------------------------


class TestNatsTickets(TimedTicketsSuite):
    documents: Documents

    @pytest.fixture(autouse=True)
    async def _documents(self, server: NatsServer, clock: FakeClock) -> AsyncIterator[None]:
        async with running(config(server), clock) as (broker, _):
            self.documents = Documents(broker)
            yield

    async def open(self, clock: FakeClock) -> TicketStore:
        return NatsTickets(self.documents, clock)


async def test_nats_ticket_redeems_on_one_of_two_nodes(server: NatsServer) -> None:
    clock, where = FakeClock(), config(server)
    async with running(where, clock) as (one, _), running(where, clock) as (two, _):
        stores = [NatsTickets(Documents(broker), clock) for broker in (one, two)]
        ticket = await stores[0].issue("token", TTL)
        assert await stores[1].peek(ticket) == "token"
        redeemed = await asyncio.gather(*(store.redeem(ticket) for store in stores * 5))
        assert sorted(map(str, redeemed)) == ["None"] * 9 + ["token"]


async def test_nats_ticket_without_server_raises_unavailable(server: NatsServer) -> None:
    async with running(config(server), FakeClock()) as (broker, _):
        pass
    with pytest.raises(ServiceError) as away:
        await NatsTickets(Documents(broker), FakeClock()).issue("token", TTL)
    assert away.value.code is ErrorCode.BROKER_UNAVAILABLE


# --- caps -------------------------------------------------------------------------------------------------------------


class NatsQuotaStage:
    server: NatsServer
    clock: FakeClock

    @pytest.fixture(autouse=True)
    def _at(self, server: NatsServer) -> None:
        self.server, self.clock = server, FakeClock()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Nodes]:
        where = config(self.server)
        async with running(where, self.clock) as (one, _), running(where, self.clock) as (two, _):
            yield Nodes(*(NatsQuota(Documents(broker), self.clock) for broker in (one, two)))


class TestNatsQuota(NatsQuotaStage, SharedQuotaSuite):
    pass


class TestNatsQuotaInTime(NatsQuotaStage, TimedQuotaSuite):
    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)


# --- presence ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NatsStage(Stage):
    documents: Documents
    sink: ListeningSink
    config: NatsConfig

    async def published_events(self) -> list[Publication]:
        # Events that were published before this request arrive before its answer, on the same connection.
        await self.documents.check()
        events, self.sink.events = self.sink.events, []
        return [
            Publication(
                event.channel, event.type, event.id, event.delivery, event.data, event.sender, event.at, event.key
            )
            for event in events
        ]


class NatsPresenceStage:
    server: NatsServer
    clock: FakeClock

    @pytest.fixture(autouse=True)
    def _at(self, server: NatsServer) -> None:
        self.server, self.clock = server, FakeClock()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Stage]:
        where = config(self.server)
        async with running(where, self.clock) as (one, sink), running(where, self.clock) as (two, _):
            for channel in (ROOM, OTHER_ROOM, SAME_ROOM_OF_ANOTHER_TENANT):
                await one.subscribe(channel)
            documents = [Documents(broker) for broker in (one, two)]
            nodes = [
                Node(NatsPresence(each, self.clock, ttl=PRESENCE_TTL, max_announced_users=MAX_TOLD))
                for each in documents
            ]
            yield NatsStage(nodes[0], nodes[1], documents[0], sink, where)


class TestNatsPresence(NatsPresenceStage, SharedPresenceSuite):
    async def lose_data(self, stage: Stage) -> None:
        assert isinstance(stage, NatsStage)
        witness = await nats.connect(self.server.url)
        await witness.jetstream().purge_stream(stage.config.prefix)
        await witness.close()


class TestNatsPresenceInTime(NatsPresenceStage, TimedPresenceSuite):
    async def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    async def test_documents_stay_as_long_as_keep_says_and_nothing_is_published(self, stage: Stage) -> None:
        assert isinstance(stage, NatsStage)
        store = NatsPresence(
            stage.documents, self.clock, ttl=PRESENCE_TTL, max_announced_users=-1, keep=10 * PRESENCE_TTL
        )
        node = Node(store)
        await node.join(ROOM, "ann", "c-1", b"{}")
        await self.advance(10 * PRESENCE_TTL - 1)
        assert [one.entry.user for one in await store.expired([ROOM])] == ["ann"]
        await store.renew([PresenceEntry(ROOM, "ann", "c-1")])
        await self.advance(10 * PRESENCE_TTL + 1)
        assert list(await store.find_all([(ROOM, "ann")])) == [None]
        await node.join(ROOM, "ann", "c-1")
        assert await node.leave(ROOM, "ann", "c-1") == (True, 0, False)
        assert await stage.published_events() == []

    async def test_remove_expired_by_killed_node_is_continued_by_another(self, stage: Stage) -> None:
        """At once: there is no lease, as NATS refuses one of two concurrent changes."""
        await stage.one.join(ROOM, "ann", "c-1")
        await self.advance(PRESENCE_TTL + 1)

        def dies(channel: ChannelKey, user: str) -> Publication:
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError, match="killed"):
            await stage.one.store.remove_expired([ROOM], dies)
        assert await stage.two.store.remove_expired([ROOM], farewell) == [(ROOM, (True, 0, True))]
        assert (await stage.story())[-1] == (LEFT, "ann")


async def test_nats_presence_document_above_max_payload_is_refused(clock_at: FakeClock) -> None:
    """NATS closes a connection that sends more than `max_payload`."""
    async with (
        NatsServer(config="max_payload: 8192") as small,
        running(config(small), clock_at) as (broker, _),
    ):
        node = Node(NatsPresence(Documents(broker), clock_at, ttl=PRESENCE_TTL, max_announced_users=MAX_TOLD))

        async def crowd() -> None:
            for number in range(1_000):
                await node.join(ROOM, f"u-{number}", f"c-{number}", b'{"name":"somebody with a name"}')

        with pytest.raises(ServiceError, match="too large for NATS"):
            await crowd()
        await broker.check()
        assert await node.store.renew([PresenceEntry(ROOM, "u-0", "c-0")]) == []


@pytest.fixture
def clock_at() -> FakeClock:
    return FakeClock()
