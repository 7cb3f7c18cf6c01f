"""What a proxy does to connections that are open when its configuration changes, when endpoints do, and when its own pod goes.

docs/deploy/proxies.md has the table that this measures.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import monotonic

import pytest

from tests.e2e.engine import Engine
from tests.e2e.front import PLAIN, Front, rendered
from tests.e2e.programs import need
from tests.e2e.stand import ENGINES, nodes, running
from tests.faults.tokens import token
from tests.stores.redis_server import RedisServer
from tests.support.wire import connect

pytestmark = pytest.mark.e2e

LINGER = 4
"""Seconds of worker_shutdown_timeout, hard-stop-after, graceTimeOut, --drain-time-s."""
KEPT = 2.0 * LINGER
"""Seconds after which a connection counts as not cut."""
EARLY, LATE = 0.3, 2.5
HEARTBEAT = 0.5
"""So that no idle time is what cuts."""
CUT, NOT = "cut", "not cut"
MEASURED = {
    ("nginx", "reload"): CUT,
    (
        "nginx",
        "endpoints",
    ): CUT,  # a reload, with F5's controller and NGINX Gateway Fabric; ingress-nginx does it without
    ("nginx", "retire"): CUT,
    ("haproxy", "reload"): CUT,
    ("haproxy", "endpoints"): NOT,
    ("haproxy", "retire"): CUT,
    ("traefik", "reload"): NOT,
    ("traefik", "endpoints"): NOT,
    ("traefik", "retire"): CUT,
    ("envoy", "reload"): CUT,
    ("envoy", "endpoints"): NOT,
    ("envoy", "retire"): NOT,
}
"""Whether connections last longer than LINGER seconds."""


@dataclass
class Held:
    """One proxy, one connection through it, and what happens then."""

    engine: Engine
    event: str
    nodes: list[int]

    async def lasts(self) -> float | None:
        """Seconds from the event to the cut; None if there is none. New clients always get in, unless the proxy itself goes."""
        [front] = self.engine.fronts
        wire = await connect(front.port, lambda _: None, bearer=token("ann", "red"))
        try:
            moment = monotonic()
            if self.event == "endpoints":
                await self.engine.lead(front, self.nodes[1:])
            else:
                await (self.engine.reload if self.event == "reload" else self.engine.retire)()
            if self.event != "retire":
                (await connect(front.port, lambda _: None, bearer=token("ben", "red"))).abort()
            async with asyncio.timeout(KEPT):
                await asyncio.shield(wire.gone)
            return monotonic() - moment
        except TimeoutError:
            return None
        finally:
            wire.abort()

    def __str__(self) -> str:
        return f"{self.engine.program} {self.event}"


async def test_open_connections_last_as_documented() -> None:
    need(*(kind.program for kind in ENGINES))
    told = {"DEADLINES__HEARTBEAT": str(HEARTBEAT)}
    documents = rendered(PLAIN, 3600, 25.0)
    async with RedisServer() as redis, nodes(redis.url, told, told) as members:
        ports = [node.port for node in members]
        held = [
            Held(kind([Front(PLAIN, documents, ports[:1])], linger=LINGER), event, ports)
            for kind in ENGINES
            for event in ("reload", "endpoints", "retire")
        ]
        for one in held:
            [front] = one.engine.fronts
            front.slots = list(ports)  # HAProxy has a slot for the endpoint that comes
        async with running([one.engine for one in held]):
            lasted = await asyncio.gather(*(one.lasts() for one in held))
    print()
    wrong = []
    for one, seconds in zip(held, lasted, strict=True):
        print(f"{one!s:20} {'not cut' if seconds is None else f'cut after {seconds:.1f} s'}")
        good = seconds is not None and -EARLY <= seconds - LINGER <= LATE
        if (seconds is None) != (MEASURED[one.engine.program, one.event] == NOT) or (seconds is not None and not good):
            wrong.append(f"{one}: {seconds}")
    assert not wrong, wrong
