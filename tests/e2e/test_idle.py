"""Idle connections: what every preset promises of them, with and without pings, behind the real proxy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import monotonic

import pytest

from tests.e2e.engine import AS_INSTALLED, Engine
from tests.e2e.front import PLAIN, Front, rendered, settings_of
from tests.e2e.nginx import Nginx
from tests.e2e.programs import WHOLE, need
from tests.e2e.stand import ENGINES, nodes, running
from tests.faults.tokens import token
from tests.stores.redis_server import RedisServer
from tests.support.wire import connect

IDLE = 20 if WHOLE else 6
"""Seconds that presets give a connection here, in the place of an hour; the proxies' own idle time is AS_INSTALLED."""
HEARTBEAT = 1.2
"""In the place of 25 s. A busy machine may hold up a ping for the rest of AS_INSTALLED, and a pong for half of this."""
NEVER = 3600.0
LATE = 3.0
"""Seconds that a cut may come late: some proxies look at their timers now and then, and the machine is busy."""
EARLY = 0.3
OUTLIVED = max(3 * AS_INSTALLED, IDLE + LATE) + 1.0
"""Seconds after which a connection has outlived a proxy: three times what it comes with, and what it was told."""
UNTOLD = {"traefik"}
"""Programs that cut no WebSocket for being idle, whatever they are told: Traefik's idleTimeout and readTimeout are those of
HTTP requests, and end with the upgrade."""


@dataclass
class Watched:
    """One silent client."""

    engine: Engine
    front: Front
    pinged: bool

    async def lives(self) -> float:
        """Seconds until it is cut, or NEVER if it outlives the proxy."""
        wire = await connect(self.front.port, lambda _: None, bearer=token("ann", "red"))
        started = monotonic()
        try:
            async with asyncio.timeout(OUTLIVED):
                await asyncio.shield(wire.gone)
        except TimeoutError:
            return NEVER
        finally:
            wire.abort()
        return monotonic() - started

    @property
    def promised(self) -> float:
        """What the chart promises, read from the values alone: the test's own word, not the translation's."""
        if self.pinged or self.engine.program in UNTOLD:
            return NEVER
        if self.front.preset in {PLAIN, "gateway ngf@2.5"}:  # that takes no idle time
            return float(AS_INSTALLED)
        # Of these the chart says, or its controller's settings say, more than a test can wait for.
        endless = {"ingress haproxytech", "ingress contour", "gateway istio", "gateway envoy-gateway@1.7"}
        return NEVER if self.front.preset in endless else float(IDLE)

    def __str__(self) -> str:
        preset = "as installed" if self.front.preset == PLAIN else self.front.preset
        return f"{self.engine.program} {preset}{', pinged' if self.pinged else ''}"


def _watched(engines: Sequence[Engine], silent: int) -> Iterator[Watched]:
    for engine in engines:
        for front in engine.fronts:
            yield Watched(engine, front, pinged=front.nodes != [silent])


@pytest.mark.parametrize(
    "kinds", [pytest.param((Nginx,), id="nginx"), pytest.param(ENGINES, id="all", marks=pytest.mark.e2e)]
)
async def test_preset_keeps_pinged_and_closes_silent_connections(kinds: Sequence[type[Engine]]) -> None:
    need(*(kind.program for kind in kinds))
    documents = {
        preset: rendered(preset, IDLE, HEARTBEAT)
        for preset in (PLAIN, *(name for kind in kinds for name in (*kind.presets, *kind.older_presets)))
    }
    heartbeats = {settings_of(each)["deadlines"]["heartbeat"] for each in documents.values()}
    assert heartbeats == {HEARTBEAT}
    told = {"DEADLINES__HEARTBEAT": str(HEARTBEAT)}
    async with (
        RedisServer() as redis,
        nodes(redis.url, told, {"DEADLINES__HEARTBEAT": str(NEVER)}) as (pinging, silent),
    ):
        engines = [
            kind(
                [
                    Front(preset, documents[preset], [node.port])
                    for preset in (PLAIN, *kind.presets, *kind.older_presets)
                    for node in (pinging, silent)
                ]
            )
            for kind in kinds
        ]
        async with running(engines):
            watched = list(_watched(engines, silent.port))
            lived = await asyncio.gather(*(each.lives() for each in watched))
    print()
    wrong = []
    for each, seconds in zip(watched, lived, strict=True):
        good = seconds == each.promised if each.promised == NEVER else -EARLY <= seconds - each.promised <= LATE
        line = f"{each!s:42} {'not cut' if seconds == NEVER else f'cut after {seconds:.1f} s'}"
        print(line)
        if not good:
            wrong.append(f"{line}, promised: {each.promised:g} s")
    assert not wrong, wrong
