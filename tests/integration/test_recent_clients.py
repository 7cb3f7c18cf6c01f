"""One client in a loop is one client, whatever it does; a crowd is as many as it is. By the metrics of a real service."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.test_slow_consumers import deaf, gone, shout
from tests.support.harness import Client, Running, eventually, serving, token
from tests.support.wire import Wire, connect

pytestmark = pytest.mark.slow

RECENT = ("connect", "close", "abnormal_close", "slow")
OFFICE = 110
"""Clients behind one address: enough for it to stand for many."""


async def recent(server: Running) -> list[float]:
    """What it exports of recent clients, in the order of RECENT."""
    metrics = await server.metrics()
    return [metrics[f"tidewire_recent_{name}_clients"] for name in RECENT]


def port_of(server: Running) -> int:
    return int(server.url.rpartition(":")[2])


async def break_off(server: Running, users: list[str | None]) -> None:
    """A connection for each user (None: anonymous) is opened; then all break off at once."""
    registry = server.service.node.streams.registry

    async def come(user: str | None) -> Wire:
        wire = await connect(port_of(server), lambda text: None, bearer=None if user is None else token(user))
        if user is None:
            wire.send({"type": "hello"})
        return wire

    wires = await asyncio.gather(*map(come, users))
    await eventually(lambda: len(registry) == len(users))
    for wire in wires:
        wire.abort()
    await eventually(lambda: len(registry) == 0)


async def test_client_that_disconnects_in_a_loop_counts_once(server: Running) -> None:
    async with server.client("ben"):
        assert await recent(server) == [1, 0, 0, 0]
        for _ in range(10):
            async with server.client("ann"):
                pass
        await eventually(lambda: not server.service.node.streams.registry.of_user("default", "ann"))
        assert await recent(server) == [2, 1, 0, 0]
    await server.at_rest()
    for _ in range(10):
        await break_off(server, ["ann"])
    assert await server.metric("closes_total", code="1006") == 10
    assert await recent(server) == [2, 2, 1, 0]


async def test_users_behind_one_address_count_one_by_one(server: Running) -> None:
    for _ in range(2):
        await break_off(server, [f"user-{number}" for number in range(OFFICE)])
    assert await recent(server) == pytest.approx([OFFICE, OFFICE, OFFICE, 0], abs=3), "an estimate"


async def test_anonymous_clients_behind_one_address_differ_from_one_client() -> None:
    async with serving(auth={"anonymous": True}) as server:
        for _ in range(10):
            await break_off(server, [None])
        assert await recent(server) == [1, 1, 1, 0]
        await break_off(server, [None] * OFFICE)
        connected, closed, broken, _ = await recent(server)
        assert min(connected, closed, broken) > 5, "from the hundredth on each counts by itself"
        await break_off(server, [None] * OFFICE)
        assert (await recent(server))[0] >= OFFICE - 3, "and all of them when they come back"


async def test_client_that_never_says_hello_is_one_client(server: Running) -> None:
    for number in range(5):
        client = await Client.open(server, hello=False)
        await client.send(type="hello", token="x.y.z")
        assert await client.closed() == 4401
        client = await Client.open(server, hello=False)
        server.hello_is_late()
        assert await client.closed() == 4408
        assert await server.metric("closes_total", code="4408") == number + 1
    assert await recent(server) == [0, 1, 1, 0]


async def test_slow_client_in_a_loop_counts_once() -> None:
    async with serving(outbox={"bytes": 65_536}) as server:
        for number in range(2):
            async with deaf(server, "ben", "room:1"):
                while server.service.node.streams.registry.of_user("default", "ben"):
                    await shout(server, 4)
                await gone(server, "ben")
            assert await server.metric("slow_consumers_total") == number + 1
        assert await recent(server) == [1, 1, 0, 1]
