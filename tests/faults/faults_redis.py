"""What happens to a Redis or Valkey server: it dies, stops, is full, forgets its scripts, throws clients out."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import NamedTuple

import aiohttp

from tests.faults.faults_clients import undisturbed
from tests.faults.node import lag_p99
from tests.faults.scenario import Arena, scenario
from tests.faults.stage import Stage, seconds_until
from tests.faults.tokens import API_KEYS
from tests.stores.redis_server import Persistence, RedisServer

NOTICE = 5.0
"""Seconds until a node must know that its store does not answer."""
LAG, MORE_LAG = 0.1, 2.0
"""Seconds: the loop's lag at its 99th percentile while the store does not answer. On a busy machine, where it is late before the
fault too, at most by this factor more."""
AGAIN = 15.0
"""Seconds after the store's return until everything must be as before."""
PAUSED = 4.0
"""Seconds for which Redis answers nobody: all of a burst reaches the node within it."""
KILLS = 4
"""Kills of Pub/Sub at most during a burst: one that takes long on a busy machine must not keep Pub/Sub away for as long."""
BURST = 300
"""Events that are published in one go while connections are killed; below what an outbox holds."""
RESYNC = 2.0
"""Seconds until a cut of Pub/Sub alone must be made good."""
UNAVAILABLE = "error broker_unavailable"


async def stays_up(stage: Stage, since: float) -> None:
    """The store's absence cost nobody a connection: clients saw announcements at most, the nodes are alive and ready."""
    books = await stage.crowd.seen()
    seen = {what: count for what, count in books.tally(since).items() if what not in ("recovered false", UNAVAILABLE)}
    stage.report.expect(not seen, f"clients saw {seen}")
    stage.report.expect(books.gaps == 0, f"{books.gaps} gaps reached clients")
    refused = {trouble.what for trouble in stage.log.troubles if trouble.at >= since}
    stage.report.expect(refused <= {UNAVAILABLE}, f"publishers saw {refused}")
    for node in stage.nodes:
        for name, (status, text) in (("readyz", await node.ready()), ("healthz", await node.alive())):
            stage.report.expect(status == 200, f"{node.name}: {name} said {status} {text}")


async def _known(stage: Stage, since: float) -> None:
    """All nodes know within NOTICE, and the fault shows in liveness of none."""
    seconds = await asyncio.gather(*(stage.noticed(node, since, 2 * NOTICE) for node in stage.nodes))
    times = [one for one in seconds if one is not None]
    stage.report.noticed(max(times) if len(times) == len(seconds) else None, within=NOTICE)
    for node in stage.nodes:
        status, text = await node.alive()
        stage.report.expect(status == 200, f"{node.name}: healthz said {status} {text} without the store")


async def _killed(arena: Arena, persistence: Persistence | None) -> None:
    size, report = arena.size, arena.report
    async with (
        RedisServer(arena.flavour, persistence=persistence) as server,
        arena.stage(server.url, server.url) as stage,
    ):
        await stage.calm(size.calm)
        away, moment = arena.random.uniform(1, 3), monotonic()
        server.kill()
        await _known(stage, moment)
        await stage.calm(max(0.0, away - (monotonic() - moment)))
        await server.restart()
        back = monotonic()
        report.recovered(await stage.healed(back, 2 * AGAIN), within=AGAIN)
        report.tell(f"killed, {back - moment:.1f} s away")
        await stays_up(stage, moment)
        await stage.calm(size.calm)
        if persistence == "always":
            await _kept(stage)


async def _kept(stage: Stage) -> None:
    """Every acknowledged event is in its stream: nothing that was promised to be on disk is gone."""
    await stage.desk.stop(20)
    node, missing = stage.nodes[0], 0
    for key in {ack.key for ack in stage.log.acks}:
        kept: set[int] = set()
        after, more = 0, True
        while more:
            _, body = await node.api(key.tenant, "GET", f"channels/{key.channel}/history?after={after}&limit=1000")
            kept |= {event["data"]["line"] for event in body["events"]}
            more, after = body["more"], body["events"][-1]["offset"] if body["events"] else after
        missing += sum(ack.key == key and ack.line not in kept for ack in stage.log.acks)
    stage.report.expect(missing == 0, f"{missing} acknowledged events are not in their streams any more")


@scenario("redis-kill", quick=True)
async def killed_without_persistence(arena: Arena) -> None:
    """kill -9, nothing on disk: everybody stays connected and is told that events are missing; a new epoch."""
    await _killed(arena, None)


@scenario("redis-kill-everysec")
async def killed_with_everysec(arena: Arena) -> None:
    """kill -9 with appendfsync everysec: what the last second took with it is announced."""
    await _killed(arena, "everysec")


@scenario("redis-kill-always")
async def killed_with_always(arena: Arena) -> None:
    """kill -9 with appendfsync always: every acknowledged event is still in its stream."""
    await _killed(arena, "always")


@scenario("redis-stop")
async def stopped(arena: Arena) -> None:
    """SIGSTOP: noticed within 5 s, the loop turns all the while, all is well soon after SIGCONT."""
    report, seconds = arena.report, 5.0 if arena.quick else 15.0
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url) as stage:
        started = [await node.metrics() for node in stage.nodes]
        await stage.calm(arena.size.calm)
        before = [await node.metrics() for node in stage.nodes]
        moment = monotonic()
        server.stop_()
        try:
            await _known(stage, moment)
            await stage.calm(max(0.0, seconds - (monotonic() - moment)))
        finally:
            server.cont()
        back = monotonic()
        lags = [lag_p99(old, await node.metrics()) for node, old in zip(stage.nodes, before, strict=True)]
        usual = max(map(lag_p99, started, before))
        report.expect(
            max(lags) <= max(LAG, MORE_LAG * usual) * report.patience,
            f"the loop was {max(lags):g} s late at the 99th percentile, and {usual:g} s before the fault",
        )
        report.recovered(await stage.healed(back, 2 * AGAIN), within=AGAIN)
        report.tell(f"stopped for {back - moment:.1f} s, loop lag p99 ≤ {max(lags):g} s")
        await stays_up(stage, moment)


@scenario("client-pause", quick=True)
async def paused(arena: Arena) -> None:
    """CLIENT PAUSE: the queue takes what it may, the rest is refused at once with a retryable 503; then all is accepted."""
    report, queue, burst = arena.report, 40, 160
    settings = {"BROKER__QUEUE": str(queue), "BROKER__TIMEOUT": "2", "BROKER__SILENCE": f"{PAUSED + 1:g}"}
    async with (
        RedisServer(arena.flavour) as server,
        arena.stage(server.url, server.url, settings=settings, rate=10) as stage,
    ):
        await stage.calm(arena.size.calm)
        moment = monotonic()
        await server.command("CLIENT", "PAUSE", int(PAUSED * 1000), "ALL")
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            answers = await asyncio.gather(*(_post(http, stage.nodes[0].port, number) for number in range(burst)))
            # By their reason, not by their time: on a busy machine, this process may need seconds to read all of them.
            at_once = sum("broker.queue" in answer.detail for answer in answers)
            slow = max(answer.seconds for answer in answers)
            wrong = {(answer.status, answer.code) for answer in answers} - {(200, ""), (503, "broker_unavailable")}
            report.expect(not wrong, f"answers were {wrong}")
            report.expect(burst - at_once <= queue + 10, f"only {at_once} of {burst} were refused at once")
            report.expect(slow <= (2 + 1) * report.patience, f"an answer took {slow:.1f} s with broker.timeout 2 s")
            back = moment + PAUSED
            report.recovered(await stage.healed(back, 2 * AGAIN), within=AGAIN)
            again = [await _post(http, stage.nodes[0].port, number) for number in range(burst)]
        report.expect({answer.status for answer in again} == {200}, "not everything was accepted at last")
        report.tell(f"paused for {PAUSED:g} s: {at_once} of {burst} refused at once, the slowest answer {slow:.1f} s")
        await stays_up(stage, moment)


class _Answer(NamedTuple):
    status: int
    code: str
    detail: str
    seconds: float


async def _post(http: aiohttp.ClientSession, port: int, number: int) -> _Answer:
    """One publish."""
    started = monotonic()
    event = {"type": "talk.line", "id": f"burst-{number}", "data": {"text": "burst"}}
    async with http.post(
        f"http://127.0.0.1:{port}/api/v1/channels/hall:burst/events",
        json=event,
        headers={"Authorization": f"Bearer {API_KEYS['red']}"},
    ) as response:
        body = await response.json(content_type=None)
        return _Answer(response.status, body.get("code", ""), body.get("detail", ""), monotonic() - started)


@scenario("pubsub-kill-once")
async def thrown_out(arena: Arena) -> None:
    """CLIENT KILL TYPE pubsub in the middle of bursts: made good within 2 s; clients and publishers see nothing."""
    report, times = arena.report, 3 if arena.quick else 8
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url) as stage:
        slowest, killed = 0.0, 0
        for _ in range(times):
            await stage.calm(arena.random.uniform(0.2, 1.0))
            node, channel = arena.random.choice(stage.nodes), arena.random.choice(stage.channels)
            burst = asyncio.create_task(stage.flood(node, "red", channel, events=BURST, size=10))
            moment = monotonic()
            for _ in range(KILLS):
                killed += int(await server.command("CLIENT", "KILL", "TYPE", "pubsub"))
                moment = monotonic()
                if burst.done():
                    break
            await burst
            took = await stage.caught_up(moment, 3 * RESYNC)
            slowest = max(slowest, math.inf if took is None else took)
        report.recovered(slowest, within=RESYNC)
        books, repaired = await stage.crowd.seen(), await stage.repaired()
        report.expect(books.slowest <= RESYNC * report.patience, f"an event took {books.slowest:.2f} s")
        report.expect(repaired > 0, "no event fell into a gap: the scenario tested nothing")
        report.tell(f"{killed} Pub/Sub connections killed, {repaired:g} events repaired, slowest {books.slowest:.2f} s")
        await undisturbed(stage, 0.0)


@scenario("script-flush")
async def scripts_flushed(arena: Arena) -> None:
    """SCRIPT FLUSH: nobody notices."""
    await _harmless(arena, lambda server: server.command("SCRIPT", "FLUSH"), "SCRIPT FLUSH")


async def _harmless(arena: Arena, hit: Callable[[RedisServer], Awaitable[object]], name: str) -> None:
    times = 5 if arena.quick else 20
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url) as stage:
        for _ in range(times):
            await stage.calm(arena.random.uniform(0.1, 0.6))
            await hit(server)
        await stage.calm(arena.size.calm)
        arena.report.tell(f"{times} × {name}")
        await undisturbed(stage, 0.0)


@scenario("maxmemory", quick=True)
async def full(arena: Arena) -> None:
    """noeviction and no memory left: publishes are refused, retryably; who listens stays; with room again all goes on."""
    report = arena.report
    async with RedisServer(arena.flavour) as server, arena.stage(server.url, server.url) as stage:
        await stage.calm(arena.size.calm)
        moment = monotonic()
        await server.command("CONFIG", "SET", "maxmemory", "1mb")

        async def refused() -> bool:
            return any(trouble.what == UNAVAILABLE and trouble.at > moment for trouble in stage.log.troubles)

        report.noticed(await seconds_until(refused, moment, NOTICE * report.patience), within=NOTICE)
        await stage.calm(arena.size.calm)
        accepted = sum(ack.at > moment + 1 for ack in stage.log.acks)
        await server.command("CONFIG", "SET", "maxmemory", "128mb")
        back = monotonic()
        report.recovered(await stage.healed(back, AGAIN), within=AGAIN)
        report.tell(f"no memory for {back - moment:.1f} s, {accepted} accepted meanwhile")
        report.expect(accepted == 0, f"{accepted} publishes were accepted without memory")
        books = await stage.crowd.seen()
        report.expect(not books.tally(moment), f"clients saw {books.tally(moment)}")
        await stays_up(stage, moment)
