"""Webhooks of several nodes: the order of their events, and who delivers them when nodes come, go and fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from service.adapters.redis.address import parse_redis_url
from service.adapters.redis.broker import RedisBroker
from service.adapters.redis.config import RedisConfig
from service.core.channel import ChannelKey
from service.core.clock import Clock
from service.core.event import Publication
from service.realtime.webhooks import dispatcher, ownership
from service.realtime.webhooks.records import RESULTS, Target
from service.telemetry.metrics import Metrics
from tests.integration.cluster import BUSES, Cluster, Member, cluster
from tests.stores import Cluster as RedisCluster
from tests.support import harness
from tests.support.api_client import ask
from tests.support.exported import exported
from tests.support.harness import eventually
from tests.support.receiver import Receiver, receiving
from tests.support.shared_broker import Bus, Line, RedisBus, SharedBroker

pytestmark = pytest.mark.slow

CONTRACT = Path(__file__).parent / "webhooks.yaml"
LOOKED_UP = 4.0
"""Seconds after which an event without a result is looked up, with this `broker.timeout`."""
TIMEOUT = {"timeout": (LOOKED_UP - 2) / 2}
FAST = {"per_second": 100_000, "burst": 100_000}


class ClusterBus(RedisBus):
    """A Bus on a Redis Cluster of its own."""

    def __init__(self) -> None:
        super().__init__("redis")
        self._cluster = RedisCluster()

    async def start(self) -> None:
        """Starts the Cluster."""
        await self._cluster.start()

    def line(self, clock: Clock | None = None) -> Line:
        """As Bus says."""
        config = RedisConfig(parse_redis_url(self._cluster.url), prefix=self.prefix)
        return Line(RedisBroker(config, Metrics()))

    async def close(self) -> None:
        """Ends the Cluster."""
        self._cluster.end()


@pytest.fixture(autouse=True)
def _short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of 4 s instead of 10 s, so that takeovers come sooner. The fault suite has the real ones."""
    for module in (dispatcher, ownership):
        monkeypatch.setattr(module, "LEASE_TIME", 4.0)
    monkeypatch.setattr(dispatcher, "RENEW_INTERVAL", 1.0)


STORES: dict[str, Callable[[], Bus]] = {**BUSES, "valkey": partial(RedisBus, "valkey"), "cluster": ClusterBus}


@pytest.fixture(params=BUSES)
def store(request: pytest.FixtureRequest) -> str:
    """Each kind of store."""
    return str(request.param)


@asynccontextmanager
async def scene(store: str, nodes: int = 2, **webhooks: Any) -> AsyncIterator[tuple[Cluster, Receiver]]:
    """Nodes that share a store and tell one receiver."""
    async with receiving() as receiver:
        groups = {
            "contract": CONTRACT,
            "limits": {"connection_rate": FAST, "user_rate": FAST, "api_rate_per_key": FAST},
            "webhooks": {"endpoints": [receiver.endpoint()], **webhooks},
            "broker_settings": TIMEOUT,
        }
        async with cluster(STORES[store], nodes, **groups) as made:
            await eventually(lambda: sum(map(owned, made.members)) == webhooks.get("queues", 4))
            yield made, receiver


def owned(member: Member) -> int:
    """How many queues a node delivers."""
    return sum(one.is_running for one in webhooks_of(member).ownership.dispatchers.values())


def webhooks_of(member: Member) -> Any:
    return member.server.service.node.webhooks


def log_of(member: Member) -> Any:
    return member.server.service.node.webhook_log


async def publish(member: Member, channel: str, number: int, type_: str = "chat.message", **more: Any) -> Any:
    return await member.server.publish(
        channel, {"type": type_, "id": f"{channel}-{number}", "data": {"n": number}, **more}
    )


@pytest.mark.parametrize("store", STORES)
async def test_events_of_a_channel_go_by_offset_whichever_nodes_publish_them(store: str) -> None:
    rooms = [f"room:{number}" for number in range(3)]
    async with scene(store) as (made, receiver):

        async def talk(publisher: int) -> None:
            member = made.members[publisher % 2]
            for number in range(20):
                await publish(member, rooms[(publisher + number) % 3], 100 * publisher + number)

        await asyncio.gather(*map(talk, range(6)))
        await eventually(lambda: len(receiver.once) == 120, lambda: len(receiver.once))
        for room in rooms:
            assert receiver.offsets(room) == list(range(1, 41))
        assert len(receiver.entries) == 120  # nothing was repeated


async def test_queues_are_spread_and_handed_over_to_a_new_node(store: str) -> None:
    async with scene(store, 1, queues=16) as (made, receiver):
        assert owned(made.members[0]) == 16
        limits = {"connection_rate": FAST, "user_rate": FAST, "api_rate_per_key": FAST}
        new = await made.join(
            contract=CONTRACT, limits=limits, webhooks={"endpoints": [receiver.endpoint()], "queues": 16}
        )
        await eventually(lambda: owned(new) > 0 and sum(map(owned, made.members)) == 16)
        for number in range(10):
            await publish(made.members[number % 2], f"room:{number}", number)
        await eventually(lambda: len(receiver.entries) == 10)


async def test_replay_keeps_the_order_of_each_channel(store: str) -> None:
    count = 300
    async with scene(store) as (made, receiver):
        for number in range(count):
            await publish(made.members[number % 2], f"room:{number % 3}", number)
        await eventually(lambda: len(receiver.once) == count)
        ids = {room: [one["id"] for one in receiver.once if one["channel"] == room] for room in ("room:0", "room:1")}
        seen = len(receiver.entries)
        queues = [Target("archive", "default").queue(number) for number in range(4)]
        await eventually(lambda: all(log_of(one).state(queue).waiting == 0 for one in made.members for queue in queues))
        assert await webhooks_of(made.members[0]).replay("archive", "default", since=0) == count
        await eventually(lambda: len(receiver.entries) >= seen + count)
        again = receiver.entries[seen:]
        assert {room: [one["id"] for one in again if one["channel"] == room] for room in ids} == ids


async def test_largest_event_that_the_store_takes_can_become_a_dead_letter() -> None:
    async with receiving() as receiver:
        receiver.reply = 413
        groups: dict[str, Any] = {
            "contract": CONTRACT,
            "limits": {
                "message_bytes": 1_047_552,
                "connection_rate": FAST,
                "user_rate": FAST,
                "api_rate_per_key": FAST,
            },
            "webhooks": {"endpoints": [receiver.endpoint()], "attempts": 1},
        }
        async with cluster(BUSES["nats"], 1, **groups) as made:
            server, accepted = made.members[0].server, 0
            for size in range(1_044_800, 1_047_552, 64):
                event = {"type": "chat.message", "data": {"text": "x" * size}}
                answer = await ask(server, "POST", "/channels/room:1/events", event)
                if answer.status != 200:
                    assert (answer.status, answer.body["code"]) == (413, "too_big")
                    break
                accepted += 1
            assert 0 < accepted < 43
            await eventually(
                lambda: (
                    exported(server.service.metrics, "webhooks_total", endpoint="archive", outcome="dead") >= accepted
                )
            )


async def test_entries_of_queues_above_a_lowered_setting_are_replayed() -> None:
    async with scene("memory", nodes=1) as (made, receiver):
        [first] = made.members
        for number in range(8):
            await publish(first, f"room:{number}", 0)
        await eventually(lambda: len(receiver.entries) == 8)
        groups: dict[str, Any] = {"contract": CONTRACT, "broker_settings": TIMEOUT}
        second = await made.join(**groups, webhooks={"endpoints": [receiver.endpoint()], "queues": 2})

        def seen(queue: ChannelKey) -> bool:
            states = [log_of(one).state(queue) for one in (first, second)]
            return bool(states[0].waiting == 0 and states[0].cursor == states[1].cursor)

        queues = [Target("archive", "default").queue(number) for number in range(4)]
        await eventually(lambda: all(map(seen, queues)))
        assert await webhooks_of(second).replay("archive", "default", since=0) == 8


async def test_leaving_node_hands_its_queues_over_at_once(store: str) -> None:
    async with scene(store) as (made, receiver):
        first, second = made.members
        await webhooks_of(first).close()
        await eventually(lambda: owned(second) == 4, within=6)
        await publish(first, "room:1", 1)
        await eventually(lambda: len(receiver.entries) == 1)


async def test_node_that_lost_the_store_stops_and_another_takes_over(store: str) -> None:
    async with scene(store) as (made, receiver):
        first, second = made.members
        for number in range(8):
            await publish(second, f"room:{number}", number)
        await eventually(lambda: len(receiver.once) == 8)
        first.line.go_away()
        await eventually(lambda: owned(first) == 0 and owned(second) == 4, within=25)
        for number in range(8):
            await publish(second, f"room:{number}", 100 + number)
        await eventually(lambda: len(receiver.once) == 16)
        for number in range(8):
            assert receiver.offsets(f"room:{number}") == [1, 2]
        first.line.come_back()
        second.line.go_away()
        await eventually(lambda: owned(first) == 4, within=25)  # their ids decide how many each has when both are there
        second.line.come_back()


async def test_event_whose_node_ended_before_the_result_is_looked_up(store: str, monkeypatch: Any) -> None:
    """The store has accepted one event and not the other, and nobody writes what became of them."""
    async with scene(store, 1) as (made, receiver):
        [member] = made.members
        log = member.server.service.node.webhook_log
        assert log is not None
        monkeypatch.setattr(log, "add_result", lambda queue, result: None)
        await publish(member, "room:1", 1)
        await publish(member, "room:1", 5, "score.team", data={"team": "red", "n": 5})
        real = member.line.publish

        async def fail(publication: Publication) -> Any:
            if publication.channel.name == "room:1":
                member.line.go_away()
            try:
                return await real(publication)
            finally:
                if publication.channel.name == "room:1":
                    member.line.come_back()

        monkeypatch.setattr(member.line, "publish", fail)
        with pytest.raises(AssertionError, match="broker_unavailable"):
            await publish(member, "room:1", 2)
        monkeypatch.setattr(member.line, "publish", real)
        monkeypatch.undo()
        await publish(member, "room:1", 3)
        await eventually(lambda: len(receiver.entries) == 3, lambda: receiver.entries, within=25)
        events = [entry["event"] for entry in receiver.entries if entry["event"]["type"] == "chat.message"]
        assert [(event["id"], event["offset"]) for event in events] == [("room:1-1", 1), ("room:1-3", 2)]
        [value] = [entry["event"] for entry in receiver.entries if entry["event"]["type"] == "score.team"]
        assert (value["key"], value["rev"]) == ("red", 1)


# --- faults of the store and of nodes -----------------------------------------------------------------------------------


async def test_results_that_the_store_has_not_taken_are_written_when_it_is_back(store: str, monkeypatch: Any) -> None:
    async with scene(store, 1) as (made, receiver):
        [member] = made.members
        real = member.line.publish

        async def go_away_before_results(publication: Publication) -> Any:
            if publication.type == RESULTS:
                member.line.go_away()
            return await real(publication)

        monkeypatch.setattr(member.line, "publish", go_away_before_results)
        await publish(member, "room:1", 1)
        await eventually(lambda: member.line.deaf)
        monkeypatch.setattr(member.line, "publish", real)
        member.line.come_back()
        await eventually(lambda: len(receiver.entries) == 1, within=LOOKED_UP - 1)  # it was not looked up


async def test_delivery_under_way_is_given_up_before_the_lease_ends(store: str) -> None:
    async with scene(store, queues=1) as (made, receiver):
        [owner] = [member for member in made.members if owned(member)]
        [other] = [member for member in made.members if member is not owner]
        given_up = asyncio.Event()

        async def hang(request: web.Request, delivery: Mapping[str, Any]) -> web.StreamResponse:
            try:
                await asyncio.Event().wait()
            finally:
                given_up.set()
            raise AssertionError

        receiver.reply = hang
        await publish(other, "room:1", 1)
        await eventually(lambda: len(receiver.deliveries) == 1)
        owner.line.go_away()
        async with asyncio.timeout(harness.DEADLINE):
            await given_up.wait()
        assert owned(other) == 0
        receiver.reply = 204
        await eventually(lambda: receiver.offsets("room:1") == [1], within=25)
        assert owned(other) == 1
        owner.line.come_back()


async def test_store_that_lost_its_end_is_continued_and_the_loss_is_counted() -> None:
    async with scene("memory", 1, queues=1) as (made, receiver):
        [member] = made.members
        assert isinstance(made.bus, SharedBroker)
        for number in range(5):
            await publish(member, "room:1", number)
        await eventually(lambda: len(receiver.entries) == 5)
        receiver.reply = 500
        await publish(member, "room:1", 5)
        deliveries = len(receiver.deliveries)
        await eventually(lambda: len(receiver.deliveries) > deliveries)
        await made.bus.fail_over(lost=1)
        receiver.reply = 204
        await eventually(lambda: len(receiver.entries) == 6)
        for number in range(6, 9):
            await publish(member, "room:1", number)
        await eventually(lambda: [entry["event"]["data"]["n"] for entry in receiver.once] == [*range(9)])
        counted = member.server.service.metrics.webhooks.webhooks
        assert counted.labels("archive", "dropped").value >= 1


async def test_webhooks_go_on_after_the_store_has_lost_everything(store: str) -> None:
    async with scene(store) as (made, receiver):
        for number in range(4):
            await publish(made.members[0], f"room:{number}", number)
        await eventually(lambda: len(receiver.once) == 4)
        await made.bus.lose_everything()
        await eventually(lambda: sum(map(owned, made.members)) == 4, within=30)
        for number in range(4):
            await publish(made.members[number % 2], f"room:{number}", 100 + number)
        await eventually(lambda: len(receiver.once) == 8, lambda: len(receiver.once), within=30)
