"""Couriers deliver orders in an invented town. `Deliveries` does no I/O; `run` plays it while somebody looks."""

from __future__ import annotations

import heapq
import json
import math
import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path
from typing import Any

from tidewire import NewEvent, TidewireError

from .api import Api

CHANNEL = "delivery:old-town"
TICK = 1.0
"""Seconds between two positions of a courier."""
WARM_UP = 150
"""Seconds that are played at once when somebody comes, so that there is something to see."""
OPEN_ORDERS = 8
KEPT_DELIVERED = 5
PACKING = 4.0
"""Seconds between picking an order up and leaving with it."""
PHONE_EVERY = 2
"""Ticks between two signs of life of a phone. The contract ends one after 5 s."""
TOWN = json.loads((Path(__file__).parents[1] / "pages" / "tracking" / "town.json").read_text(encoding="utf-8"))
COURIERS = (
    ("mina", "Mina", "bike", 27.0),
    ("joel", "Joel", "scooter", 38.0),
    ("aiko", "Aiko", "bike", 25.0),
    ("sami", "Sami", "bike", 29.0),
    ("lena", "Lena", "scooter", 36.0),
    ("otto", "Otto", "bike", 24.0),
)
CUSTOMERS = ("Ada", "Noor", "Felix", "Ines", "Jonas", "Priya", "Marco", "Elif", "Hanna", "Luis", "Yuki", "Tess")

Point = tuple[int, int]


class Streets:
    """The street network: a graph of the town's nodes."""

    def __init__(self, town: dict[str, Any]) -> None:
        self.nodes: list[Point] = [(x, y) for x, y in town["nodes"]]
        self.addresses: list[tuple[str, int]] = []
        """Where orders go: the address and its node."""
        self._next: dict[int, list[int]] = {}
        for street in town["streets"]:
            for number, (here, there) in enumerate(pairwise(street["nodes"])):
                self._next.setdefault(here, []).append(there)
                self._next.setdefault(there, []).append(here)
                if number % 2 == 0:  # every second node is between two corners
                    self.addresses.append((f"{street['name']} {there}", there))

    @property
    def reachable(self) -> list[int]:
        """The nodes that a street has; a node of the town may have none."""
        return sorted(self._next)

    def route(self, start: int, end: int) -> list[int]:
        """Returns the nodes of the shortest way, with both ends."""
        best: dict[int, tuple[float, int]] = {start: (0.0, start)}
        heap = [(0.0, start)]
        while heap:
            length, node = heapq.heappop(heap)
            if node == end:
                break
            for other in self._next[node]:
                there = length + math.dist(self.nodes[node], self.nodes[other])
                if other not in best or there < best[other][0]:
                    best[other] = (there, node)
                    heapq.heappush(heap, (there, other))
        way = [end]
        while way[-1] != start:
            way.append(best[way[-1]][1])
        return way[::-1]

    def length(self, way: Sequence[int]) -> float:
        """Returns the length of a way."""
        return sum(math.dist(self.nodes[a], self.nodes[b]) for a, b in pairwise(way))


@dataclass
class Order:
    """An order. Times are seconds since the Unix epoch."""

    id: str
    customer: str
    kitchen: dict[str, Any]
    address: tuple[str, int]
    ready_at: float
    """When the kitchen has it ready."""
    trip: float
    """The length of the way from the kitchen to the address."""
    status: str = "accepted"
    courier: Courier | None = None
    due: float | None = None
    route: list[Point] = field(default_factory=list)
    """The way that its courier takes now."""
    told: dict[str, Any] = field(default_factory=dict)
    """What was last published of it."""

    def facts(self, streets: Streets) -> dict[str, Any]:
        """Returns what the page shows of the order."""
        found = {
            "order": self.id,
            "customer": self.customer,
            "kitchen": self.kitchen["name"],
            "pickup": streets.nodes[self.kitchen["node"]],
            "address": self.address[0],
            "dropoff": streets.nodes[self.address[1]],
            "status": self.status,
        }
        if self.courier is not None:
            found["courier"] = self.courier.id
        if self.route:
            found["route"] = self.route
        if self.due is not None:
            found["due"] = round(self.due * 1000)
        return found


@dataclass
class Courier:
    """A courier, at a node or on the way to one."""

    id: str
    name: str
    vehicle: str
    speed: float
    """Units of the map per second."""
    node: int
    at: tuple[float, float]
    heading: int = 0
    way: deque[int] = field(default_factory=deque)
    """The nodes ahead."""
    order: Order | None = None
    waits_until: float = 0.0
    silent_until: float = 0.0
    """Until then its phone has no network."""
    battery: float = 100.0

    def ride(self, streets: Streets, seconds: float) -> list[Point]:
        """Moves along the way. Returns the points that it passed, and where it is."""
        passed: list[Point] = []
        left = self.speed * seconds
        while self.way:
            to = streets.nodes[self.way[0]]
            distance = math.dist(self.at, to)
            if distance > 0:
                self.heading = round(math.degrees(math.atan2(to[1] - self.at[1], to[0] - self.at[0]))) % 360
            if distance > left:
                share = left / distance
                self.at = (self.at[0] + (to[0] - self.at[0]) * share, self.at[1] + (to[1] - self.at[1]) * share)
                break
            left -= distance
            self.at, self.node = to, self.way.popleft()
            passed.append(to)
        here = (round(self.at[0]), round(self.at[1]))
        return passed if passed and passed[-1] == here else [*passed, here]

    def left(self, streets: Streets) -> float:
        """Returns the length of the way ahead."""
        return math.dist(self.at, streets.nodes[self.way[0]]) + streets.length([*self.way]) if self.way else 0.0


class Deliveries:
    """All couriers and orders."""

    def __init__(self, chance: random.Random, now: float) -> None:
        self.now = now
        """Seconds since the Unix epoch."""
        self.streets = Streets(TOWN)
        self._chance = chance
        self._numbers: Iterator[int] = count(204)
        nodes = chance.sample(self.streets.reachable, len(COURIERS))
        self.couriers = [
            Courier(id, name, vehicle, speed, node, self.streets.nodes[node], battery=chance.uniform(40, 100))
            for (id, name, vehicle, speed), node in zip(COURIERS, nodes, strict=True)
        ]
        self.orders: dict[str, Order] = {}
        self._next_silence = now + 20
        self._events: list[NewEvent] = []
        self._tick = 0

    def step(self, seconds: float = TICK) -> list[NewEvent]:
        """Plays some seconds, and returns what happened."""
        self.now += seconds
        self._tick += 1
        self._accept()
        self._assign()
        for courier in self.couriers:
            passed = courier.ride(self.streets, seconds)
            self._act(courier)
            if courier.silent_until <= self.now:
                self._report(courier, passed)
                self._sign(courier)
        self._silence()
        self._tell_orders()
        events, self._events = self._events, []
        return events

    def everything(self) -> list[NewEvent]:
        """Returns the positions, phones and orders of now."""
        for order in self.orders.values():
            order.told = {}
        for courier in self.couriers:
            if courier.silent_until > self.now:
                self._report(courier, courier.ride(self.streets, 0))
        self._tick = PHONE_EVERY - 1  # so that this step is one with phones
        return self.step(0)

    def sign_off(self) -> list[NewEvent]:
        """Removes the couriers from the map."""
        kinds = ("courier.position", "courier.phone")
        return [NewEvent(CHANNEL, kind, key=courier.id, removed=True) for courier in self.couriers for kind in kinds]

    # --- orders -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """Accepts an order now and then, and forgets the oldest that are delivered."""
        open_orders = [order for order in self.orders.values() if order.status != "delivered"]
        if len(open_orders) < OPEN_ORDERS and (len(open_orders) < 4 or self._chance.random() < 0.15):
            customer, kitchen = self._chance.choice(CUSTOMERS), self._chance.choice(TOWN["kitchens"])
            address = self._chance.choice(self.streets.addresses)
            trip = self.streets.length(self.streets.route(kitchen["node"], address[1]))
            ready_at = self.now + self._chance.uniform(8, 30)
            order = Order(f"A-{next(self._numbers)}", customer, kitchen, address, ready_at, trip)
            self.orders[order.id] = order
            self._become(order, "accepted")
        delivered = [order for order in self.orders.values() if order.status == "delivered"]
        for order in delivered[:-KEPT_DELIVERED]:
            del self.orders[order.id]
            self._events.append(NewEvent(CHANNEL, "order.facts", key=order.id, removed=True))

    def _assign(self) -> None:
        """Gives the oldest order without a courier to the nearest free one."""
        free = [courier for courier in self.couriers if courier.order is None and courier.waits_until <= self.now]
        waiting = [order for order in self.orders.values() if order.courier is None and order.status == "accepted"]
        for order in waiting[: len(free)]:
            kitchen = self.streets.nodes[order.kitchen["node"]]
            courier = min(free, key=lambda courier: math.dist(courier.at, kitchen))
            free.remove(courier)
            courier.order, order.courier = order, courier
            self._send(courier, order, order.kitchen["node"])

    def _act(self, courier: Courier) -> None:
        """What a courier does that has arrived."""
        order = courier.order
        if order is None or courier.way or courier.waits_until > self.now:
            return
        if order.status == "accepted":
            if order.ready_at <= self.now:
                self._become(order, "picked_up")
                courier.waits_until = self.now + PACKING
        elif order.status == "picked_up":
            self._become(order, "on_its_way")
            self._send(courier, order, order.address[1])
        else:
            self._become(order, "delivered")
            courier.order, courier.waits_until = None, self.now + self._chance.uniform(3, 8)

    def _send(self, courier: Courier, order: Order, node: int) -> None:
        """Sends a courier, who stands at a node, on the way to another one."""
        way = self.streets.route(courier.node, node)
        courier.way = deque(way)
        order.route = [self.streets.nodes[node] for node in way]

    def _become(self, order: Order, status: str) -> None:
        order.status = status
        if status != "on_its_way":
            order.route = []
        data = {"order": order.id, "status": status, "at": round(self.now * 1000)}
        self._events.append(NewEvent(CHANNEL, "order.status", data))

    def _tell_orders(self) -> None:
        """Publishes the facts that have changed, and an estimate that has changed by more than 3 s."""
        for order in self.orders.values():
            due = self._estimate(order)
            if due is None or order.due is None or abs(due - order.due) > 3:
                order.due = due
            if (facts := order.facts(self.streets)) != order.told:
                order.told = facts
                self._events.append(NewEvent(CHANNEL, "order.facts", facts))

    def _estimate(self, order: Order) -> float | None:
        courier = order.courier
        if courier is None or order.status == "delivered":
            return None
        rest = courier.left(self.streets) / courier.speed
        if order.status == "on_its_way":
            return self.now + rest
        return max(self.now + rest, order.ready_at) + PACKING + order.trip / courier.speed

    # --- couriers ------------------------------------------------------------------------------------------------------

    def _report(self, courier: Courier, passed: list[Point]) -> None:
        """The position that a phone sends."""
        x, y = passed[-1]
        position = {
            "courier": courier.id,
            "name": courier.name,
            "vehicle": courier.vehicle,
            "x": x,
            "y": y,
            "heading": courier.heading,
            "path": passed[-12:],
        }
        self._events.append(NewEvent(CHANNEL, "courier.position", position))

    def _sign(self, courier: Courier) -> None:
        """The sign of life of a phone."""
        if self._tick % PHONE_EVERY == 0:
            courier.battery = max(15.0, courier.battery - 0.05)
            phone = {"courier": courier.id, "battery": round(courier.battery)}
            self._events.append(NewEvent(CHANNEL, "courier.phone", phone))

    def _silence(self) -> None:
        """From time to time the phone of a courier on the road loses its network."""
        moving = [courier for courier in self.couriers if courier.way]
        if self._next_silence > self.now or not moving:
            return
        self._chance.choice(moving).silent_until = self.now + self._chance.uniform(14, 22)
        self._next_silence = self.now + self._chance.uniform(40, 60)


def play(deliveries: Deliveries, now: float) -> list[NewEvent]:
    """Plays until now. After a long time, of all but the last step only what happened to orders is returned."""
    deliveries.now = max(deliveries.now, now - WARM_UP)
    events: list[NewEvent] = []
    while now - deliveries.now > 3 * TICK:
        events += [event for event in deliveries.step() if event.type.startswith("order.")]
    return events + deliveries.step(now - deliveries.now)


async def run(api: Api) -> None:
    """Plays while somebody looks. Otherwise it asks once a second, and no courier is on the map."""
    with suppress(TidewireError):
        await api.client.purge(CHANNEL)  # what an earlier run has left
    deliveries = Deliveries(api.random, time.time() - WARM_UP)
    while True:
        while not await api.is_watched(CHANNEL):
            await api.sleep(TICK)
        await _publish(api, play(deliveries, time.time()) + deliveries.everything())
        while await api.is_watched(CHANNEL):
            await api.sleep(TICK)
            await _publish(api, play(deliveries, time.time()))
        await _publish(api, deliveries.sign_off())


async def _publish(api: Api, events: list[NewEvent]) -> None:
    """Publishes events, and waits for the service as long as that takes."""
    while not await api.send(events):
        await api.sleep(TICK)
