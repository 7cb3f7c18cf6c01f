"""Connections past `rollout.max_age` are asked to reconnect, each at its own time."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.clock import FakeClock
from tests.support.harness import BIT, Client, passes, serving

pytestmark = pytest.mark.slow

MOST = 600.0


def frozen() -> FakeClock:
    return FakeClock(time.time())


async def test_connection_lasts_between_half_and_all_of_max_age() -> None:
    clock = frozen()
    async with serving(clock=clock, rollout={"max_age": MOST}, deadlines={"heartbeat": 10_000}) as server:
        clients = [await Client.open(server, f"u{number}", ttl=36_000) for number in range(40)]
        ages: dict[int, float] = {}

        async def wait(number: int) -> None:
            assert await clients[number].closed() == 1012
            ages[number] = clock.monotonic() - begun

        begun = clock.monotonic()
        waits = [asyncio.create_task(wait(number)) for number in range(len(clients))]
        clock.advance(MOST / 2 - 2.0)
        await passes(clock, 1.0)
        assert not ages
        while clock.monotonic() - begun < MOST + 10.0:
            await passes(clock, BIT)
            await asyncio.sleep(0)
        await asyncio.gather(*waits)
        assert min(ages.values()) >= MOST / 2
        assert max(ages.values()) <= MOST + 8.0
        assert max(ages.values()) - min(ages.values()) > MOST / 4, "not at the same time"
        told = [[one for one in client.received if one["type"] == "reconnect"] for client in clients]
        assert [[one["reason"] for one in few] for few in told] == [["age"]] * 40
        assert all(0 < few[0]["after"] <= 1 for few in told)
        assert await server.metric("reconnects_asked_total", reason="age") == 40
