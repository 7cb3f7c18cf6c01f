"""The big one: two nodes, a thousand clients each, and Pub/Sub cut every five seconds."""

from __future__ import annotations

import math
from time import monotonic

from tests.faults.faults_clients import undisturbed
from tests.faults.faults_redis import RESYNC
from tests.faults.scenario import Arena, scenario
from tests.stores.redis_server import RedisServer

EVERY = 5.0
"""Seconds between two kills."""
RATE, ACKNOWLEDGED = 200, 190
"""Publishes a second, and how many of them must be acknowledged."""
FEW_POLLS = 32
"""One client of so many polls. A poll ends with each event, so those of the usual mix would take a whole core."""


@scenario("pubsub-kill")
async def two_thousand_and_a_kill_every_five_seconds(arena: Arena) -> None:
    """CLIENT KILL TYPE pubsub every 5 s under 200 publishes a second: 0 lost, 0 repeated, and clients saw no error."""
    report, seconds = arena.report, 10.0 if arena.quick else 60.0
    kinds = arena.mix.transports
    others = tuple(kind for kind in kinds if kind != "poll") * FEW_POLLS
    mix = (*others[: FEW_POLLS - 1], "poll") if others and "poll" in kinds else kinds
    traffic = {"clients": 2000, "rate": RATE, "channels": 25, "apart": True, "transports": mix}
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url, **traffic) as stage:
        end, killed, slowest = monotonic() + seconds, 0, 0.0
        begun = len(stage.log.acks)
        while monotonic() < end:
            moment = monotonic()
            killed += int(await server.command("CLIENT", "KILL", "TYPE", "pubsub"))
            took = await stage.caught_up(moment, EVERY)
            slowest = max(slowest, math.inf if took is None else took)
            await stage.calm(max(0.0, moment + EVERY - monotonic()))
        report.recovered(slowest, within=RESYNC)
        rate = (len(stage.log.acks) - begun) / seconds
        report.expect(rate >= ACKNOWLEDGED / report.patience, f"only {rate:.0f} publishes a second were acknowledged")
        books = await stage.crowd.seen()
        repaired = await stage.repaired()
        report.expect(repaired > 0, "no event fell into a gap: the scenario tested nothing")
        report.tell(
            f"{killed} Pub/Sub connections killed in {seconds:g} s at {rate:.0f} publishes/s, {books.deliveries} deliveries,"
            f" {repaired:g} events repaired,"
            f" the slowest {books.slowest:.2f} s"
        )
        await undisturbed(stage, 0.0)
