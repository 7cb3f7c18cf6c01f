"""What clients notice while pods come and go: nothing that they have to know of."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.programs import need
from tests.faults.report import Report, table
from tests.faults.stage import seconds_until
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.e2e

CLIENTS = 2000
DRAIN_RATE = 100
"""Closes a second that a drain is set to: the planned rate of reconnects."""
PEAK = 1.5
"""How much more than planned may come in any second."""
BACK, SHARE = 15.0, 0.99
"""Seconds in which so many of those whose node was killed must be back."""
MOVES = 50
"""Connections a second that a pod may ask to move, for a test that does not take minutes."""
SKEW = 1.3
"""By how much the fullest pod may be above the mean, once it is even."""
MAX_MOVED = 1.5
"""How many times as many as must be may be moved."""
QUIET = 8.0
"""Seconds after the last connect in which all of presence has been told: the debounce of 5 s, and a sweep."""


@pytest.fixture(autouse=True)
def _programs() -> None:
    need("haproxy")


@asynccontextmanager
async def cluster(report: Report, *, size: int, up: int, **settings: str) -> AsyncIterator[Cluster]:
    """Pods, of which `up` run, with everybody connected through the proxy; at the end, the judgement."""
    asyncio.get_running_loop().set_debug(False)  # it would spend the clients' core on tracebacks
    async with (
        RedisServer() as redis,
        Cluster(
            report,
            redis.url,
            size=size,
            up=up,
            clients=CLIENTS,
            rate=40,
            channels=40,
            room=True,
            apart=True,
            settings=settings,
        ) as stage,
    ):
        await stage.calm(QUIET)
        yield stage
    print(table([report]))
    assert not report.failures


async def test_rolling_restart_of_three_pods() -> None:
    report = Report("rolling restart", "redis", seed=1)
    async with cluster(report, size=4, up=3, ROLLOUT__DRAIN_RATE=str(DRAIN_RATE)) as stage:
        pods, spare = stage.nodes[:3], stage.nodes[3]
        before = await stage.crowd.seen()
        report.expect(bool(before.presence), "presence tells of nobody: the test would not see a flap")
        began, peak = monotonic(), 0.0
        for old in pods:
            # As a Deployment with maxUnavailable 0 does: the new pod is ready before the old one goes.
            await stage.add(spare)
            start, end = await stage.go(old)
            everyone = await seconds_until(lambda: _all_joined(stage), end, BACK)
            report.expect(everyone is not None, f"not everyone was back {BACK:g} s after {old.name} had gone")
            peak = max(peak, (await stage.crowd.seen()).peak(start, monotonic()))
            spare = old
        report.recover = (monotonic() - began) / 3
        await stage.calm(QUIET)
        books = await stage.crowd.seen()
        seen = books.tally(began)
        moved = books.told - before.told
        report.tell(f"{moved} told, {seen}, at most {peak:g} tries to connect a second")
        report.expect(set(seen) == {"closed 1012"}, f"clients saw {seen}")
        report.expect(seen.get("closed 1012") == moved == books.resumed - before.resumed, "not everyone resumed")
        report.expect(peak <= PEAK * DRAIN_RATE, f"{peak:g} tries a second where {DRAIN_RATE} were planned")
        flaps = {what: n - before.presence.get(what, 0) for what, n in books.presence.items()}
        flaps = {what: count for what, count in flaps.items() if count}
        report.expect(not flaps, f"presence flapped: {sum(flaps.values())} times, such as {list(flaps)[:3]}")


async def test_killed_pod() -> None:
    report = Report("kill -9 of a pod", "redis", seed=2)
    async with cluster(report, size=3, up=3) as stage:
        victim = stage.nodes[0]
        [here, *_] = await stage.counts()
        moment = monotonic()
        await victim.kill()

        async def back() -> bool:
            return await stage.crowd.joined() >= CLIENTS - here + SHARE * here

        report.recovered(await seconds_until(back, moment, 2 * BACK), within=BACK)
        report.tell(f"{here} clients lost their pod")
        report.expect(here >= CLIENTS / 4, f"only {here} clients were on the pod")
        report.expect(await stage.healed(monotonic(), 20) is not None, "publishing did not go on")


async def test_pods_that_are_added_get_their_share() -> None:
    report = Report("2 pods become 4", "redis", seed=3)
    rate = {"ROLLOUT__REBALANCE": "true", "ROLLOUT__REBALANCE_RATE": str(MOVES), "ROLLOUT__REBALANCE_LEAST_AGE": "5"}
    async with cluster(report, size=4, up=2, **rate) as stage:
        before = await stage.crowd.seen()
        began = monotonic()
        await asyncio.gather(*(stage.add(node) for node in stage.nodes[2:]))
        ready = monotonic()
        # docs/operate/rebalancing.md, with a balancer that takes the node with the fewest connections.
        window = 30 + (CLIENTS / 2 - CLIENTS / 4) / MOVES

        async def even() -> bool:
            counts = await stage.counts()
            return sum(counts) >= CLIENTS and max(counts) <= SKEW * CLIENTS / 4

        report.recovered(await seconds_until(even, ready, 2 * window), within=window)
        counts = await stage.counts()
        books = await stage.crowd.seen()
        seen, moved = books.tally(began), books.told - before.told
        report.tell(f"{counts} connections, {moved} told, {seen}")
        report.expect(set(seen) == {"closed 1012"}, f"clients saw {seen}")
        report.expect(moved <= MAX_MOVED * CLIENTS / 2, f"{moved} connections were moved")


async def _all_joined(stage: Cluster) -> bool:
    return await stage.crowd.joined() == CLIENTS
