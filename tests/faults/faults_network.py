"""What happens to networks: links between nodes and Redis that are slow, stall, swallow everything, or are cut."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from tests.faults.faults_clients import undisturbed
from tests.faults.faults_redis import AGAIN, NOTICE, stays_up
from tests.faults.scenario import ANY, Arena, scenario
from tests.faults.stage import Stage
from tests.stores.redis_server import RedisServer
from tests.support.proxy import Proxy

CUT = "overcoming of output buffer limits"
"""What Redis logs when it cuts a client off."""
CUT_OFF = 30.0
"""Seconds in which it must have cut off a node that takes nothing."""


@asynccontextmanager
async def linked(arena: Arena, **options: object) -> AsyncIterator[tuple[RedisServer, Proxy, Stage]]:
    """Two nodes on one server, the first of them through a proxy."""
    async with RedisServer(arena.flavour) as server:
        link = Proxy(server.port)
        try:
            address = f"redis://127.0.0.1:{await link.start()}"
            async with arena.stage(address, server.url, **options) as stage:
                await stage.calm(arena.size.calm)
                yield server, link, stage
        finally:
            await link.close()


@scenario("black-hole", quick=True)
async def a_link_swallows_everything(arena: Arena) -> None:
    """No FIN, no RST, no answer on one node's link: noticed within 5 s; the other node goes on; all is well when it is back."""
    report, seconds = arena.report, 5.0 if arena.quick else 15.0
    async with linked(arena) as (_, link, stage):
        moment = monotonic()
        link.black_hole()
        report.noticed(await stage.noticed(stage.nodes[0], moment, 2 * NOTICE), within=NOTICE)
        await stage.calm(max(0.0, seconds - (monotonic() - moment)))
        link.heal()
        back = monotonic()
        report.recovered(await stage.healed(back, 2 * AGAIN), within=AGAIN)
        events = await stage.repaired()
        report.expect(events > 0, "the other node's events did not fall into a gap: the scenario tested nothing")
        report.tell(f"one node's link swallowed everything for {back - moment:.1f} s, {events:g} events repaired")
        await stays_up(stage, moment)


@scenario("link-cut")
async def a_link_is_cut(arena: Arena) -> None:
    """Connections reset and refused: noticed at once, all is well when it is back."""
    report = arena.report
    async with linked(arena) as (_, link, stage):
        away, moment = arena.random.uniform(1, 6), monotonic()
        link.cut()
        report.noticed(await stage.noticed(stage.nodes[0], moment, NOTICE), within=NOTICE)
        await stage.calm(max(0.0, away - (monotonic() - moment)))
        link.heal()
        report.recovered(await stage.healed(monotonic(), 2 * AGAIN), within=AGAIN)
        events = await stage.repaired()
        report.expect(events > 0, "the other node's events did not fall into a gap: the scenario tested nothing")
        report.tell(f"one node's link was cut for {away:.1f} s, {events:g} events repaired")
        await stays_up(stage, moment)


@scenario("link-stall")
async def a_link_stalls(arena: Arena) -> None:
    """Short stalls, shorter than broker.silence: nobody sees anything but the delay."""
    async with linked(arena) as (_, link, stage):
        for _ in range(5):
            link.stall()
            await stage.calm(arena.random.uniform(0.3, 1.5))
            link.resume()
            await stage.calm(arena.random.uniform(0.3, 1.0))
        arena.report.recovered(await stage.healed(monotonic(), AGAIN), within=AGAIN)
        arena.report.tell("5 stalls of up to 1.5 s")
        await undisturbed(stage, 0.0)


@scenario("link-slow")
async def a_link_is_slow(arena: Arena) -> None:
    """40 ms each way on one node's link: nobody sees anything but the delay, and order holds between the nodes."""
    async with linked(arena) as (_, link, stage):
        link.latency = 0.04
        await stage.calm(2 * arena.size.calm)
        arena.report.recovered(await stage.caught_up(monotonic(), AGAIN), within=AGAIN)
        arena.report.tell(f"80 ms a round trip, the slowest event took {(await stage.crowd.seen()).slowest:.2f} s")
        await undisturbed(stage, 0.0)


@scenario("output-buffer", quick=True)
async def redis_cuts_a_slow_node_off(arena: Arena) -> None:
    """client-output-buffer-limit cuts a node that is stuck: that is a gap, and it is repaired; connections see nothing. A poll
    needs the store, and may miss more between two polls than a node sends at once: it is told."""
    report = arena.report
    # The stall lasts until Redis has cut the link, however busy the machine is. So nobody publishes at the stalled node, where
    # a publish may take broker.timeout.
    long = f"{2 * CUT_OFF:g}"
    wide = {"OUTBOX__BYTES": "67108864", "OUTBOX__MESSAGES": "100000", "OUTBOX__STALL": long, "BROKER__SILENCE": long}
    async with linked(arena, settings=wide, backends=(1,)) as (server, link, stage):
        await server.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 256kb 128kb 1")
        moment = monotonic()
        link.stall()
        try:
            while not (cuts := server.log.count(CUT)) and monotonic() < moment + CUT_OFF:
                await stage.flood(stage.nodes[1], "red", stage.channels[0], events=400, size=2000)
        finally:
            link.resume()
        back = monotonic()
        report.expect(cuts > 0, "Redis cut nobody off: the scenario tested nothing")
        report.recovered(await stage.healed(back, 2 * AGAIN), within=AGAIN)
        events = await stage.repaired()
        report.expect(events > 0, "no event was read from a stream")
        report.tell(f"{cuts} connections cut off by Redis after {back - moment:.1f} s, {events:g} events repaired")
        await undisturbed(stage, 0.0, "recovered false", "error broker_unavailable")


@scenario("clients-cut", on=ANY)
async def clients_lose_their_network(arena: Arena) -> None:
    """Everyone on one node is reset, several times: they come back, there or on the other node, and have missed nothing."""
    report, times = arena.report, 2 if arena.quick else 6
    async with arena.broker() as broker, arena.stage(broker, broker, fronts=True) as stage:
        slowest = 0.0
        for _ in range(times):
            await stage.calm(arena.random.uniform(0.3, 1.0))
            moment, front = monotonic(), arena.random.choice(stage.fronts)
            front.cut()
            await stage.calm(arena.random.uniform(0.1, 1.0))
            front.heal()
            took = await stage.healed(moment, AGAIN)
            slowest = max(slowest, math.inf if took is None else took)
        report.recovered(slowest, within=AGAIN)
        books = await stage.crowd.seen()
        report.expect(books.resumed > 0, "nobody resumed: the scenario tested nothing")
        report.expect(books.seen("recovered false") == 0, "somebody was told recovered:false though the stream has all")
        report.tell(f"{times} cuts, {books.seen('closed 1006')} connections reset, {books.resumed} resumed")
