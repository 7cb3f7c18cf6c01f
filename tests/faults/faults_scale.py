"""The big one: two nodes, a thousand clients each, and Pub/Sub cut every five seconds."""

from __future__ import annotations

from time import monotonic

from tests.faults.faults_clients import undisturbed
from tests.faults.faults_redis import RESYNC
from tests.faults.scenario import Arena, scenario
from tests.stores.redis_server import RedisServer

EVERY = 5.0
"""Seconds between two kills."""


@scenario("pubsub-kill")
async def two_thousand_and_a_kill_every_five_seconds(arena: Arena) -> None:
    """CLIENT KILL TYPE pubsub every 5 s under 200 publishes a second: 0 lost, 0 repeated, and clients saw no error."""
    report, seconds = arena.report, 10.0 if arena.quick else 60.0
    traffic = {"clients": 2000, "rate": 200, "channels": 25, "apart": True}
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url, **traffic) as stage:
        end, killed, slowest = monotonic() + seconds, 0, 0.0
        begun = len(stage.log.acks)
        while monotonic() < end:
            moment = monotonic()
            killed += int(await server.command("CLIENT", "KILL", "TYPE", "pubsub"))
            took = await stage.caught_up(moment, EVERY)
            slowest = max(slowest, took if took is not None else EVERY)
            await stage.calm(max(0.0, moment + EVERY - monotonic()))
        report.recovered(slowest, within=RESYNC)
        rate = (len(stage.log.acks) - begun) / seconds
        report.expect(rate >= 190, f"only {rate:.0f} publishes a second were acknowledged")
        books = await stage.crowd.seen()
        repaired = await stage.repaired()
        report.expect(repaired > 0, "no event fell into a gap: the scenario tested nothing")
        report.tell(
            f"{killed} Pub/Sub connections killed in {seconds:g} s at {rate:.0f} publishes/s, {books.deliveries} deliveries,"
            f" {repaired:g} events repaired,"
            f" the slowest {books.slowest:.2f} s"
        )
        await undisturbed(stage, 0.0)
