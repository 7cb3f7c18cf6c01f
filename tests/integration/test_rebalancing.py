"""Rebalancing with real nodes, a real store and clients that resume."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex
from urllib.parse import urlsplit

import pytest

from service.core.broker import PublishResult
from service.core.event import Publication
from service.realtime.cluster import heartbeat
from service.realtime.lifecycle import rebalancer
from tests.faults.books import Told
from tests.faults.clients.crowd import Cast, Crowd
from tests.faults.tokens import API_KEYS, SECRET
from tests.integration.cluster import Cluster, Member, cluster
from tests.support.clock import FakeClock
from tests.support.exported import exported
from tests.support.harness import DEADLINE, Running, eventually
from tests.support.shared_broker import RedisBus, SharedBroker

pytestmark = pytest.mark.slow

HALL = "hall:1"
CLIENTS = 400
"""On four nodes chance makes 130 of 100, but no more."""
SETTINGS: dict[str, Any] = {
    "contract": Path(__file__).parents[1] / "faults" / "contract.yaml",
    "auth": {"secret": SECRET},
    "api": {"keys": [{"name": "red", "key": API_KEYS["red"], "tenant": "red"}]},
    "rollout": {"rebalance_rate": 100, "rebalance_least_age": 1.0},
}


@pytest.fixture(autouse=True)
def _hurried(_unhurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All times a tenth of what they are."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 0.5)
    for name in ("CHECK_INTERVAL", "SETTLE_TIME", "TRIAL_TIME"):
        monkeypatch.setattr(rebalancer, name, getattr(rebalancer, name) / 10)


class InTurns(list[int]):
    """The ports of nodes behind a balancer that leads one connection here, the next one there."""

    turn = 0

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        self.turn += 1
        return super().__getitem__(self.turn % len(self))


def port(member: Member) -> int:
    return urlsplit(member.server.url).port or 0


def counts(nodes: Cluster) -> list[int]:
    return [len(member.server.service.node.streams.registry) for member in nodes.members]


def asked(nodes: Cluster) -> float:
    return sum(
        member.server.service.metrics.lifecycle.reconnects_asked.labels("rebalance").value for member in nodes.members
    )


def surpluses(nodes: Cluster) -> list[float]:
    return [exported(member.server.service.metrics, "rebalance_surplus") for member in nodes.members]


@asynccontextmanager
async def publishing(server: Running) -> AsyncIterator[list[int]]:
    """A backend that publishes all the time; gives the offsets that it is told."""
    offsets = list[int]()

    async def go_on() -> None:
        while True:
            event = {"type": "talk.line", "data": {"t": "red", "c": HALL, "line": len(offsets)}}
            receipt = await server.publish(HALL, event, API_KEYS["red"])
            offsets.append(receipt["offset"])
            await asyncio.sleep(0.1)  # the pace of the traffic

    task = asyncio.create_task(go_on())
    try:
        yield offsets
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def crowd(ports: InTurns) -> AsyncIterator[Crowd]:
    clients = Crowd(Cast(seed=1, clients=CLIENTS, tenants=["red"], channels=[HALL], ports=ports))
    try:
        await clients.come(within=60)
        yield clients
    finally:
        await clients.leave()


async def test_rebalancing_to_two_new_nodes_loses_no_event() -> None:
    ports = InTurns()
    async with cluster(partial(RedisBus, "redis"), nodes=2, **SETTINGS) as nodes:
        ports.extend(map(port, nodes.members))
        async with crowd(ports) as clients, publishing(nodes.members[0].server) as offsets:
            assert counts(nodes) == [CLIENTS / 2] * 2
            for _ in range(2):
                ports.append(port(await nodes.join(**SETTINGS)))
            await eventually(lambda: max(counts(nodes)) <= 1.3 * CLIENTS / 4, lambda: counts(nodes), within=60)
            await eventually(
                lambda: sum(counts(nodes)) == CLIENTS and not any(surpluses(nodes)),
                lambda: (counts(nodes), surpluses(nodes)),
                within=60,
            )
            # Half of those who were asked were led back to where they came from.
            assert asked(nodes) <= 1.5 * CLIENTS
            await eventually(lambda: all(client.is_joined for client in clients.clients), within=60)
            so_far = len(offsets)
            await eventually(lambda: len(offsets) > so_far, within=60)
        books = clients.books
        moved = await asyncio.gather(*(_metric(member, "reconnects_asked_total") for member in nodes.members))
        assert sum(moved) == asked(nodes) == books.told
        assert {trouble.what for trouble in books.troubles} == {"closed 1012"}
        assert books.gaps == 0
        assert books.resumed >= asked(nodes) * 0.9
        for diary in await clients.diaries():
            [stretch] = diary.stretches
            assert stretch.told is Told.FRESH
            assert stretch.offsets == list(range(stretch.base + 1, stretch.top + 1))
            assert stretch.top >= offsets[so_far]


async def _metric(member: Member, name: str) -> float:
    return await member.server.metric(name, reason="rebalance")


async def test_report_shows_accepting_and_draining() -> None:
    async with cluster(SharedBroker, nodes=2, **SETTINGS) as nodes:
        one, other = (member.server.service.node for member in nodes.members)

        def reported(*, accepting: bool, draining: bool) -> bool:
            state = one.cluster.membership.states().get(other.cluster.node_id)
            return state is not None and (state.accepting, state.draining) == (accepting, draining)

        await eventually(lambda: reported(accepting=True, draining=False))
        other.runtime.tasks.failed = "something vital"
        await eventually(lambda: reported(accepting=False, draining=False))
        other.runtime.tasks.failed = None
        await eventually(lambda: reported(accepting=True, draining=False))
        await other.lifecycle.drain()
        await eventually(lambda: reported(accepting=False, draining=True))


async def test_change_during_a_report_is_reported_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", 600.0)
    async with cluster(SharedBroker, nodes=2, **SETTINGS) as nodes:
        one, other = (member.server.service.node for member in nodes.members)
        line = nodes.members[1].line
        publish, on_its_way, arrives = line.publish, asyncio.Event(), asyncio.Event()

        async def slow(publication: Publication) -> PublishResult:
            on_its_way.set()
            await arrives.wait()
            return await publish(publication)

        monkeypatch.setattr(line, "publish", slow)
        other.cluster.heartbeat.report_soon()
        async with asyncio.timeout(DEADLINE):
            await on_its_way.wait()
        await other.lifecycle.drain()
        arrives.set()
        await eventually(lambda: any(state.draining for state in one.cluster.membership.states().values()))


async def test_rebalancing_stops_without_the_broker() -> None:
    async with cluster(SharedBroker, nodes=1, **SETTINGS) as nodes:
        [member] = nodes.members
        member.line.go_away()
        node = member.server.service.node
        await eventually(lambda: node.availability.health.is_unavailable)
        assert not node.lifecycle.rebalancer.is_allowed
        member.line.come_back()
        await eventually(lambda: not node.availability.health.is_unavailable)
        assert node.lifecycle.rebalancer.is_allowed


@pytest.mark.parametrize("is_enabled", [True, False])
async def test_rebalancing_starts_only_if_enabled(is_enabled: bool) -> None:
    clock = FakeClock()
    rollout = {**SETTINGS["rollout"], "rebalance": is_enabled}
    async with cluster(SharedBroker, nodes=0) as nodes:
        await nodes.join(clock, **{**SETTINGS, "rollout": rollout})
        clock.advance(rebalancer.CHECK_INTERVAL)
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert ("rebalance check" in names) is is_enabled
