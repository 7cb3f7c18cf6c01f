"""What clients notice while pods come and go: nothing that they have to know of."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from statistics import quantiles
from time import monotonic

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.programs import need
from tests.faults.apart import CrowdApart
from tests.faults.client import Message
from tests.faults.crowd import Cast
from tests.faults.node import Node
from tests.faults.report import Report, table
from tests.faults.stage import seconds_until
from tests.faults.tokens import TENANTS, token
from tests.stores.redis_server import RedisServer
from tests.wire import Wire, connect, reader

pytestmark = pytest.mark.e2e

CLIENTS = 2000
DRAIN_RATE = 100
"""Closes a second that a drain is set to: the planned rate of reconnects."""
PEAK = 1.5
"""How much more than planned may come in any second."""
BACK, SHARE = 15.0, 0.99
"""Seconds in which so many of those whose node was killed must be back."""
QUIET = 8.0
"""Seconds after the last connect in which all of presence has been told: the debounce of 5 s, and a sweep."""
STORM = 5000
ACCEPTS = 250
"""Upgrades a second that the node is set to take in."""
CALM = 8.0
"""Seconds of traffic before a storm, to compare with."""
EVERY = 0.02
"""Seconds between two events whose way is timed."""
NOISE = 0.005
"""A p99 below this is the machine's own, and twice of it says nothing."""

_read = reader(Message)


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


async def test_a_rolling_restart_of_three_pods() -> None:
    report = Report("rolling restart", "redis", seed=1)
    async with cluster(report, size=4, up=3, ROLLOUT__DRAIN_RATE=str(DRAIN_RATE)) as stage:
        pods, spare = stage.nodes[:3], stage.nodes[3]
        before = await stage.crowd.seen()
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


async def test_a_pod_that_is_killed() -> None:
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


async def _all_joined(stage: Cluster) -> bool:
    return await stage.crowd.joined() == CLIENTS


class Listeners:
    """Some who are connected, and what they wait between a publish and its delivery."""

    def __init__(self, node: Node, count: int) -> None:
        self.node = node
        self.count = count
        self.waits: list[float] = []
        self._wires: list[Wire] = []
        self._publishing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Listeners:
        for number in range(self.count):
            wire = await connect(self.node.port, self._text, bearer=token(f"listener-{number}", "red"))
            self._wires.append(wire)
            wire.send({"type": "ready"})
            wire.send({"type": "subscribe", "id": "s", "channel": "hall:0"})
        self._publishing = asyncio.create_task(self._publish())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._publishing is not None
        self._publishing.cancel()
        await asyncio.gather(self._publishing, return_exceptions=True)
        for wire in self._wires:
            wire.abort()

    async def _publish(self) -> None:
        number = 0
        while True:
            due = monotonic() + EVERY
            data = {"t": "red", "c": "hall:0", "line": number, "at": monotonic()}
            event = {"type": "talk.line", "id": f"l{number}", "data": data}
            status, body = await self.node.api("red", "POST", "channels/hall:0/events", event)
            assert status == 200, body
            number += 1
            await asyncio.sleep(max(0.0, due - monotonic()))

    def _text(self, frame: bytes) -> None:
        now = monotonic()
        for message in _read(frame):
            if message.type == "talk.line" and message.data is not None:
                self.waits.append(now - message.data.at)

    async def p99(self, during: Awaitable[object]) -> float:
        """Of the deliveries in that time, in seconds."""
        self.waits.clear()
        await during
        assert len(self.waits) >= 100, "hardly anything was delivered"
        return quantiles(self.waits, n=100)[98]


async def test_a_storm_against_one_pod() -> None:
    asyncio.get_running_loop().set_debug(False)
    rate = {"ROLLOUT__ACCEPT_RATE__PER_SECOND": str(ACCEPTS), "ROLLOUT__ACCEPT_RATE__BURST": str(ACCEPTS)}
    node = Node("node", "memory://", rate)
    crowd = CrowdApart(Cast(3, STORM, list(TENANTS), [f"hall:{n}" for n in range(1, 51)], [node.port], wave=STORM))
    try:
        await node.start()
        async with Listeners(node, 20) as listeners:
            calm = await listeners.p99(asyncio.sleep(CALM))
            came = asyncio.create_task(_come(crowd))
            storm = await listeners.p99(came)
        metrics = await node.metrics()
        refused = metrics['upgrade_refusals_total{reason="overloaded"}']
        tries = len((await crowd.seen()).tries)
        print(
            f"\n{STORM} clients at once, {ACCEPTS} a second let in: all were in after {came.result():.1f} s, with {tries} tries;"
            f" p99 of those who were there {1000 * calm:.1f} ms before, {1000 * storm:.1f} ms meanwhile"
        )
        assert metrics["connections"] == STORM + 20
        assert refused == tries - STORM, "somebody was refused for another reason, or cut"
        assert came.result() <= 1.25 * STORM / ACCEPTS + 2, "the crowd took longer than the rate asks for"
        assert storm <= 2 * max(calm, NOISE)
    finally:
        await crowd.leave()
        await node.close()


async def _come(crowd: CrowdApart) -> float:
    began = monotonic()
    await crowd.come(60, nice=10)  # the clients' own work must not look like the service's
    return monotonic() - began
