"""Nodes with a wrong clock: what other nodes act on goes by the store's time."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.stores.documents import Documents
from service.adapters.nats.stores.presence import NatsPresence
from service.adapters.nats.stores.tickets import NatsTickets
from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.errors import ServiceError
from service.realtime.cluster.store_clock import StoreClock
from service.telemetry.metrics import Metrics
from tests.contract.broker_suite import Publisher, RecordingSink
from tests.contract.nats_stage import config
from tests.contract.presence_suite import entrance, farewell
from tests.stores import NatsServer, RedisServer
from tests.support.api_client import post
from tests.support.clock import START, FakeClock, WrongClock
from tests.support.harness import Client, serving, token

pytestmark = pytest.mark.slow

HOUR = 3600.0


@pytest.fixture(params=["redis", "nats"])
async def url(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with RedisServer() if request.param == "redis" else NatsServer() as server:
        yield server.url


@pytest.mark.parametrize("ahead", [-HOUR, HOUR], ids=["slow", "fast"])
async def test_node_with_a_wrong_clock_revokes_what_was_issued_until_now_and_nothing_later(
    url: str, ahead: float
) -> None:
    async with (
        serving(broker_settings={"url": url}) as right,
        serving(broker_settings={"url": url}, clock=WrongClock(ahead)) as wrong,
    ):
        old, now = token("ann", iat=time.time() - 5), time.time()
        ann = await Client.open(right, token_=old)
        answer = await post(wrong, "/users/ann/revoke", None)
        assert abs(answer["before"] - now) < 3.0
        while (await ann.ws.receive(timeout=10)).data not in (4401, None):
            pass
        assert ann.ws.close_code == 4401
        again = await Client.open(right, token_=token("ann", iat=time.time() + 3))
        await again.close()
        metrics = await wrong.metrics()
        assert abs(metrics["tidewire_broker_clock_skew_seconds"] - ahead) < 2.0
        assert abs((await right.metrics())["tidewire_broker_clock_skew_seconds"]) < 2.0


async def test_events_are_stamped_with_the_stores_time(url: str) -> None:
    async with serving(broker_settings={"url": url}, clock=WrongClock(HOUR)) as wrong:
        await wrong.publish("room:1", {"type": "chat.message", "data": {"text": "x"}})
        page = await wrong.service.broker.history(ChannelKey("default", "room:1"), None, None, 1)
        assert abs(page.events[0].at / 1000 - time.time()) < 10


async def test_nats_stores_of_nodes_with_different_clocks_agree() -> None:
    async with NatsServer() as server:
        where = config(server)
        nodes = []
        for ahead in (0.0, HOUR, -HOUR):
            clock = StoreClock(WrongClock(ahead), Metrics())
            broker = NatsBroker(where, clock, Metrics(), clock.record)
            await broker.start(RecordingSink())
            nodes.append((broker, Documents(broker), clock))
        room = ChannelKey("acme", "room:1")
        try:
            _, documents, clock = nodes[0]
            stores = [NatsPresence(some, its, ttl=30.0, max_announced_users=10) for _, some, its in nodes]
            await stores[0].join(entrance(room, "ann", "c-1"))
            ticket = await NatsTickets(documents, clock).issue("token", 30.0)
            receipt = await Publisher(nodes[0][0], clock).durable(room, id="m")  # type: ignore[arg-type]  # any clock
            for (broker, some, its), store in zip(nodes[1:], stores[1:], strict=True):
                assert await store.remove_expired([room], farewell) == []
                assert (await store.members(room, 10))[0] == 1
                assert await NatsTickets(some, its).peek(ticket) == "token"
                assert (await Publisher(broker, its).durable(room, id="m")).offset == receipt.offset  # type: ignore[arg-type]
                assert len((await broker.history(room, None, None, 10)).events) == 1
        finally:
            for broker, *_ in nodes:
                await broker.close()


async def test_slow_node_holds_a_revocation_for_as_long_as_it_takes_the_token() -> None:
    slow = FakeClock()
    async with serving(clock=slow, auth={"revocation_ttl": 60.0}) as server:
        revocations, store = server.service.node.cluster.revocations, server.service.store_clock
        store.record("store", START + HOUR, 0.0)
        await revocations.revoke_token("default", "t-1", "")
        identity = Identity("default", "ann", token_id="t-1", issued_at=START, expires_at=None)
        slow.advance(90.0)
        revocations.maintain()
        with pytest.raises(ServiceError):  # by its own clock the token lives
            revocations.check(identity)
