"""The live board: numbers of an invented shop.

Each second has one `shop.sample` with all numbers: durable, because a chart needs them all. Four times a second, the newest
numbers go out as `shop.metric`: latest, because only the newest value counts. Without subscribers, nothing is published. The
samples of that time follow when somebody subscribes.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from typing import Any

from tidewire import NewEvent

from .api import Api

CHANNEL = "shop:main"
KEPT = 960
"""Samples of the longest range that the page shows, 15 minutes, and of one more; the contract keeps as many."""
STEPS = 4
"""Newest values of each metric per second."""
LOOK_AGAIN = 5
"""Seconds of publishing until it looks again whether anybody watches."""
SMALLEST_STOCK, DELIVERY = 250, 900


class Shop:
    """Numbers that rise and fall: visitors come in waves, a payment provider is slow at times, and stock is delivered."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._noise = 0.0
        self._slow_until = -1
        self._slow_next = chance.randrange(60, 200)
        self._stock = float(chance.randrange(700, DELIVERY))
        self._phase = chance.uniform(0, 2 * math.pi)
        self._second = 0

    def step(self) -> dict[str, Any]:
        """Returns the numbers of the next second, and sometimes a note."""
        second, chance = self._second, self._chance
        self._second += 1
        notes = [*self._slow_provider(second)]
        is_slow = second < self._slow_until
        self._noise = 0.9 * self._noise + chance.gauss(0, 0.018)
        waves = 0.24 * math.sin(second / 83 + self._phase) + 0.08 * math.sin(second / 19)
        requests = max(40.0, 420 * (1 + waves + self._noise))
        load = requests / 420
        p50 = (19 + 7 * load * load) * chance.uniform(0.95, 1.05) * (1.7 if is_slow else 1)
        p99 = (84 + 46 * load**3) * chance.uniform(0.9, 1.12) * (chance.uniform(4, 6) if is_slow else 1)
        errors = max(0.0, chance.gauss(0.2, 0.05)) + (chance.uniform(1.5, 3) if is_slow else 0)
        orders = requests * 0.29 * chance.uniform(0.96, 1.04) * (0.45 if is_slow else 1)
        self._stock -= orders / 60
        if self._stock < SMALLEST_STOCK:
            self._stock += DELIVERY
            notes.append(f"{DELIVERY} items delivered")
        numbers = {
            "requests": round(requests),
            "p50": round(p50, 1),
            "p99": round(p99, 1),
            "errors": round(errors, 2),
            "orders": round(orders),
            "stock": round(self._stock),
        }
        return {**numbers, "note": notes[-1]} if notes else numbers

    def _slow_provider(self, second: int) -> list[str]:
        if second == self._slow_next:
            self._slow_until = second + self._chance.randrange(14, 26)
            self._slow_next = self._slow_until + self._chance.randrange(120, 260)
            return ["Payment provider is slow"]
        return ["Payment provider has recovered"] if second == self._slow_until else []


class Board:
    """What is published: a sample for every second, and newest values between two samples."""

    def __init__(self, chance: random.Random, now: float) -> None:
        self._chance = chance
        self._shop = Shop(chance)
        self._next = int(now) - KEPT
        self._numbers: dict[str, Any] = {}

    def samples(self, now: float) -> list[NewEvent]:
        """Returns the samples since the last call, at most as many as are kept."""
        events = []
        for second in range(self._next, int(now) + 1):
            sample = self._shop.step()
            self._numbers = {name: value for name, value in sample.items() if name != "note"}
            if second > now - KEPT:
                events.append(NewEvent(CHANNEL, "shop.sample", {"second": second, **sample}))
        self._next = int(now) + 1
        return events

    def newest(self, now: float) -> list[NewEvent]:
        """Returns the values of this moment: near those of the last sample."""
        values = {
            name: value if name == "stock" else round(value * self._chance.uniform(0.98, 1.02), 2 if value < 100 else 0)
            for name, value in self._numbers.items()
        }
        at = int(now * 1000)
        return [
            NewEvent(CHANNEL, "shop.metric", {"metric": name, "value": value, "at": at})
            for name, value in values.items()
        ]


async def run(api: Api) -> None:
    """Publishes until cancelled, while somebody looks at the board."""
    board = Board(api.random, time.time())
    await api.client.publish_many(board.samples(time.time()))  # the past, for the first who comes
    while True:
        await wait_until_watched(api)
        for _ in range(STEPS * LOOK_AGAIN):
            now = time.time()
            await api.client.publish_many([*board.samples(now), *board.newest(now)])
            await asyncio.sleep(1 / STEPS)


async def wait_until_watched(api: Api) -> None:
    """Returns when somebody subscribes to the board."""
    while not await api.is_watched(CHANNEL):  # noqa: ASYNC110  # no event reports it
        await asyncio.sleep(1)
