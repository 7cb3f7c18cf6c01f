"""Sticky sessions: a cookie pins a client to its node, and without them clients spread; a node that goes keeps nobody out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
import pytest

from tests.e2e.front import PLAIN, Front, rendered
from tests.e2e.programs import need
from tests.e2e.stand import ENGINES, Visitor, nodes, running, visiting
from tests.faults.node import Node
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.e2e

IDLE, HEARTBEAT = 3600, 25.0
HEARTBEATS = (21.0, 22.0, 23.0)
"""Of each node, which its `welcome` tells: so a client knows where it is."""
VISITS = 6
"""Visits of a pinned client: by chance they would all end at one node once in 243 times."""
STRANGERS = 24
"""Clients without a cookie, or of proxies that look at nothing else: one in 16 000 times they would all end at one node."""
TRIES = 60
"""Clients that come until one ends at a certain node of three: all miss it once in 10 billion times."""


async def _place(visitor: Visitor) -> int:
    """Opens a WebSocket and ends it: the number of the node that it led to."""
    guest = await visitor.come()
    await guest.leave()
    return HEARTBEATS.index(guest.welcome["heartbeat"])


async def _refusals(members: Sequence[Node]) -> list[float]:
    return [
        (await node.metrics()).get('upgrade_refusals_total{cause="client",door="upgrade",reason="invalid_token"}', 0.0)
        for node in members
    ]


async def _pinned_to(number: int, http: aiohttp.ClientSession, front: Front) -> Visitor:
    for _ in range(TRIES):
        visitor = Visitor(http, front.port)
        if await _place(visitor) == number:
            assert visitor.cookies, "the proxy gave no cookie with the upgrade"
            return visitor
    raise AssertionError(f"{front.preset}: nobody came to node {number} in {TRIES} tries")


async def _pins(http: aiohttp.ClientSession, front: Front, members: Sequence[Node]) -> None:
    visitor = Visitor(http, front.port)
    before = await _refusals(members)
    for _ in range(VISITS):
        status, *_ = await visitor.get(Authorization="Bearer nonsense")
        assert status == 401
    gets = [after - was for was, after in zip(before, await _refusals(members), strict=True)]
    assert sorted(gets) == [0.0, 0.0, float(VISITS)], f"{front.preset}: GETs with one cookie went to {gets}"
    places = [await _place(visitor) for _ in range(VISITS)]
    assert places == [gets.index(VISITS)] * VISITS, f"{front.preset}: upgrades with one cookie went to {places}"


async def _spreads(http: aiohttp.ClientSession, front: Front) -> None:
    visitor = Visitor(http, front.port)  # one client that keeps its cookies, if it gets any
    places = {await _place(visitor) for _ in range(STRANGERS)}
    assert not visitor.cookies, f"{front.preset}: a cookie without being told to: {visitor.cookies}"
    assert len(places) == len(HEARTBEATS), f"{front.preset}: without affinity all went to {places}"


async def test_only_the_cookie_pins_a_client() -> None:
    need(*(kind.program for kind in ENGINES))
    told = [{"DEADLINES__HEARTBEAT": str(heartbeat), "DEADLINES__SHUTDOWN": "2"} for heartbeat in HEARTBEATS]
    async with RedisServer() as redis, nodes(redis.url, *told) as members, visiting() as http:
        ports = [node.port for node in members]
        engines, sticky, loose = [], [], []
        for kind in ENGINES:
            pinning = [Front(one, rendered(one, IDLE, HEARTBEAT, sticky=True), ports) for one in kind.sticky_presets]
            free = [Front(one, rendered(one, IDLE, HEARTBEAT), ports) for one in (PLAIN, *kind.presets)]
            engines.append(kind([*pinning, *free]))
            sticky += [(engines[-1], front) for front in pinning]
            loose += free
        async with running(engines):
            for front in loose:
                await _spreads(http, front)
            for _, front in sticky:
                await _pins(http, front, members)
                strangers = {await _place(Visitor(http, front.port)) for _ in range(STRANGERS)}
                assert len(strangers) > 1, f"{front.preset}: clients without a cookie all went to {strangers}"
            # The node goes as a pod does: out of the endpoints first.
            visitors = [await _pinned_to(0, http, front) for _, front in sticky]
            await asyncio.gather(*(engine.lead(front, ports[1:]) for engine, front in sticky))
            await members[0].kill()
            for visitor, (_, front) in zip(visitors, sticky, strict=True):
                places = [await _place(visitor) for _ in range(VISITS)]
                assert places[0] != 0
                assert len(set(places)) == 1, f"{front.preset}: after its node had gone the client went to {places}"
