"""The simulations of the demos: all that they publish passes the contract, and they keep a bounded number of values."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from tidewire import NewEvent

from demo.simulations import cursors, tracking
from service.assets import demo_folder
from service.contract.gate import Gate
from service.contract.load import load
from service.core.identity import backend


class Channels:
    """Checks events as the service would, and keeps its values."""

    def __init__(self) -> None:
        self._gate = Gate(load(demo_folder() / "contract.yaml"))
        self.values: dict[tuple[str, str], Any] = {}
        """By event type and key."""
        self.events: list[tuple[str, Any]] = []
        """Type and data of all others."""

    def publish(self, events: Iterable[NewEvent]) -> None:
        for event in events:
            told: dict[str, Any] = {"id": event.id, "key": event.key, "sender": event.sender, "at": 0}
            if event.removed is True:
                removal = self._gate.validate_removal(backend("default"), event.channel, event.type, **told)
                self.values.pop((event.type, str(removal.key)), None)
                continue
            data = msgspec.json.encode(event.data)
            publication = self._gate.validate(backend("default"), event.channel, event.type, data, **told)
            if publication.key:
                self.values[event.type, publication.key] = event.data
            else:
                self.events.append((event.type, event.data))

    def of(self, type: str) -> list[Any]:
        return [data for (kind, _), data in self.values.items() if kind == type]


@pytest.fixture
def channels() -> Channels:
    return Channels()


def test_hour_of_deliveries_is_bounded_and_valid(channels: Channels) -> None:
    deliveries = tracking.Deliveries(random.Random(1), 0.0)
    for _ in range(3600):
        channels.publish(deliveries.step())
        assert len(channels.of("courier.position")) == len(tracking.COURIERS)
        assert len(channels.of("order.facts")) <= tracking.OPEN_ORDERS + tracking.KEPT_DELIVERED
    steps = defaultdict(list)
    for _, data in channels.events:
        steps[data["order"]].append(data["status"])
    whole = ["accepted", "picked_up", "on_its_way", "delivered"]
    assert all(found == whole[: len(found)] for found in steps.values())
    assert sum(found == whole for found in steps.values()) > 100
    channels.publish(deliveries.sign_off())
    assert channels.of("courier.position") == channels.of("courier.phone") == []


def test_couriers_move_along_streets(channels: Channels) -> None:
    deliveries = tracking.Deliveries(random.Random(2), 0.0)
    nodes = deliveries.streets.nodes
    segments = [(nodes[a], nodes[b]) for street in tracking.TOWN["streets"] for a, b in pairwise(street["nodes"])]
    for _ in range(300):
        deliveries.step()
        for courier in deliveries.couriers:
            assert min(_distance(courier.at, *segment) for segment in segments) < 1


def _distance(point: tuple[float, float], a: tuple[int, int], b: tuple[int, int]) -> float:
    """Of a point from a line between two others."""
    along = (b[0] - a[0], b[1] - a[1])
    share = ((point[0] - a[0]) * along[0] + (point[1] - a[1]) * along[1]) / (along[0] ** 2 + along[1] ** 2)
    share = min(max(share, 0.0), 1.0)
    return math.dist(point, (a[0] + share * along[0], a[1] + share * along[1]))


@pytest.mark.parametrize("seed", range(40))
def test_couriers_reach_everything_wherever_they_start(seed: int) -> None:
    deliveries = tracking.Deliveries(random.Random(seed), 0.0)
    for _ in range(60):
        deliveries.step()
    assert any(order.courier is not None for order in deliveries.orders.values())


def test_courier_without_a_network_publishes_nothing() -> None:
    deliveries = tracking.Deliveries(random.Random(3), 0.0)
    silent = deliveries.couriers[0]
    deliveries.step()
    silent.silent_until = deliveries.now + 10
    of_courier = [
        event
        for _ in range(9)
        for event in deliveries.step()
        if event.type.startswith("courier.") and event.data["courier"] == silent.id
    ]
    assert of_courier == []
    assert any(
        event.type == "courier.phone" and event.data["courier"] == silent.id
        for _ in range(3)
        for event in deliveries.step()
    )


def test_first_visitor_gets_orders_of_the_last_minutes(channels: Channels) -> None:
    deliveries = tracking.Deliveries(random.Random(4), 1000.0)
    channels.publish(tracking.play(deliveries, 5000.0) + deliveries.everything())
    assert deliveries.now == 5000.0
    assert {data["status"] for data in channels.of("order.facts")} >= {"accepted", "delivered"}
    assert len(channels.of("courier.phone")) >= len(tracking.COURIERS) - 1, "at most one has no network"
    times = [data["at"] for _, data in channels.events]
    assert min(times) >= (5000 - tracking.WARM_UP) * 1000
    assert max(times) <= 5000 * 1000


def test_ten_minutes_of_bots_are_bounded_and_valid(channels: Channels) -> None:
    bots = [cursors.Bot("Robin (bot)", 4, random.Random(1), 0), cursors.Bot("Kim (bot)", 5, random.Random(2), 2)]
    for _ in range(6_000):
        for bot in bots:
            channels.publish(bot.step())
        assert len(channels.of("canvas.line")) <= 40
    states = {data["state"] for _, data in channels.events}
    assert states == {"over", "draws"}
    channels.publish(bots[0].leave())
    assert channels.events[-1][1]["state"] == "gone"
