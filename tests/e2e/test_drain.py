"""A node behind a proxy drains, as a pod does in a rollout: its clients move, and nothing is lost."""

from __future__ import annotations

import signal
from time import monotonic

import pytest

from tests.e2e.engine import Engine
from tests.e2e.front import Front, rendered, settings_of
from tests.e2e.programs import need
from tests.e2e.stand import ENGINES
from tests.faults.report import Report
from tests.faults.stage import Stage, seconds_until
from tests.stores.redis_server import RedisServer

pytestmark = pytest.mark.e2e

CLIENTS, RATE, CHANNELS = 60, 40.0, 4
CALM = 1.0
DRAIN_RATE = 10.0
DRAINED = 25.0
"""Seconds from SIGTERM to the exit."""
REFUSED = "refused HTTP/1.1 503"
BACK = 30.0
"""Seconds in which everyone must be on the other node."""


class Fronted(Stage):
    """Clients come through a proxy, as the chart's preset has it; publishers are backends, and come to the nodes."""

    def __init__(self, report: Report, broker: str, kind: type[Engine], preset: str) -> None:
        documents = rendered(preset, 3600, 25.0)
        hops = settings_of(documents)["proxy"]["hops"]
        # Slow enough that some come back, through a proxy that has not noticed, to the very node that they left.
        told = {"PROXY__HOPS": str(hops), "ROLLOUT__DRAIN_RATE": str(DRAIN_RATE)}
        super().__init__(
            report,
            [broker, broker],
            clients=CLIENTS,
            rate=RATE,
            channels=CHANNELS,
            room=True,
            homes=(0,),
            traffic=False,
            settings=told,
        )
        self.engine = kind([Front(preset, documents, [])])

    async def _open_fronts(self) -> None:
        await super()._open_fronts()
        self.backends = list(self.ports)
        [front] = self.engine.fronts
        front.nodes, front.slots = list(self.backends), list(self.backends)
        self._stack.callback(self.engine.end)
        await self.engine.start()
        self.ports[:] = [front.port]

    async def goes(self, number: int, *, noticed: bool) -> int:
        """A pod's end: out of the endpoints, then SIGTERM; or the other way round. Its exit status."""
        [front] = self.engine.fronts
        others = [port for port in self.backends if port != self.nodes[number].port]
        if noticed:
            await self.engine.lead(front, others)
        self.nodes[number].signal(signal.SIGTERM)
        if not noticed:
            books = await self.crowd.seen()

            async def refused() -> bool:
                return books.seen(REFUSED) > 0

            self.report.expect(await seconds_until(refused, monotonic(), BACK) is not None, "nobody was refused")
            await self.engine.lead(front, others)
        return await self.nodes[number].wait(DRAINED)

    async def connections(self, number: int) -> int:
        """On that node."""
        return int((await self.nodes[number].metrics()).get("connections", -1))


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "late"])
@pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.program) for kind in ENGINES])
async def test_clients_of_a_drained_node_move_and_lose_nothing(kind: type[Engine], noticed: bool) -> None:
    need(kind.program)
    preset = kind.presets[0]
    report = Report(f"drain behind {kind.program}", "redis", 1)
    async with RedisServer() as redis, Fronted(report, redis.url, kind, preset) as stage:
        here = await stage.connections(0)  # before publishers come, some of them over WebSockets
        assert 0 < here < CLIENTS
        stage.desk.start()
        report.expect(await stage.publishing(0.0, BACK) is not None, "publishing did not begin")
        await stage.calm(CALM)
        moment = monotonic()
        status = await stage.goes(0, noticed=noticed)
        report.expect(status == 0, f"the node exited with {status}")

        async def moved() -> bool:
            return await stage.crowd.joined() == CLIENTS

        report.expect(await seconds_until(moved, moment, BACK) is not None, "not everyone came back")
        report.expect(await stage.healed(monotonic(), BACK) is not None, "publishing did not go on")
        books = await stage.crowd.seen()
        tally = books.tally(moment)
        closed, told = books.seen("closed 1012", moment), books.told
        report.expect(
            closed == told == here, f"of {here} clients {told} were told and {closed} closed with 1012: {tally}"
        )
        rough = {what for what in tally if what.startswith(("closed", "recovered")) and what != "closed 1012"}
        report.expect(not rough, f"clients saw {tally}")
        print(f"\n{kind.program}: {here} of {CLIENTS} moved in {monotonic() - moment:.1f} s; they saw {tally}")
    assert not report.failures
