"""What happens to a NATS server."""

from __future__ import annotations

from time import monotonic

from tests.faults.faults_redis import AGAIN, NOTICE, stays_up
from tests.faults.scenario import Arena, scenario
from tests.stores.nats_server import NatsServer


@scenario("nats-restart", on=("nats",))
async def killed_and_started_again(arena: Arena) -> None:
    """kill -9 with its files kept: everybody stays connected, and all goes on after its return."""
    report = arena.report
    async with NatsServer() as server, arena.stage(server.url, server.url) as stage:
        await stage.calm(arena.size.calm)
        away, moment = arena.random.uniform(1, 3), monotonic()
        server.kill()
        report.noticed(await stage.noticed(stage.nodes[0], moment, 2 * NOTICE), within=NOTICE)
        await stage.calm(max(0.0, away - (monotonic() - moment)))
        await server.restart()
        back = monotonic()
        report.recovered(await stage.healed(back, 2 * AGAIN), within=AGAIN)
        report.tell(f"killed, {back - moment:.1f} s away")
        await stays_up(stage, moment)
        await stage.calm(arena.size.calm)


@scenario("nats-stop", on=("nats",))
async def stopped(arena: Arena) -> None:
    """SIGSTOP: noticed within 5 s, all is well soon after SIGCONT."""
    report = arena.report
    async with NatsServer() as server, arena.stage(server.url, server.url) as stage:
        await stage.calm(arena.size.calm)
        moment = monotonic()
        server.stop_()
        try:
            report.noticed(await stage.noticed(stage.nodes[0], moment, 2 * NOTICE), within=NOTICE)
            await stage.calm(max(0.0, 8.0 - (monotonic() - moment)))
        finally:
            server.cont()
        back = monotonic()
        report.recovered(await stage.healed(back, 2 * AGAIN), within=AGAIN)
        report.tell(f"stopped for {back - moment:.1f} s")
        await stays_up(stage, moment)
