"""What happens to webhooks: the endpoint is down, a node that delivers is killed or frozen, the store is killed."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import quantiles
from time import monotonic

from tests.faults.node import Node, total
from tests.faults.scenario import ANY, Arena, scenario
from tests.faults.stage import Stage, seconds_until
from tests.faults.tokens import TENANTS
from tests.stores.redis_server import RedisServer
from tests.support.receiver import Receiver, receiving

CONTRACT = Path(__file__).parent / "webhooks.yaml"
DOWN, QUICK_DOWN = 60.0, 6.0
"""Seconds for which the endpoint is down; the same in the quick form."""
QUEUES = 4 * len(TENANTS)
TAKEN_OVER = 15.0
"""Seconds until another node must deliver the queues of one that was killed."""
DELIVERED = 60.0
"""Seconds after a fault in which everything must be delivered: the longest pause of a delivery, or a lookup, and some."""
GROWN = 24_000
"""KiB by which a node may grow while the endpoint is down, whatever waits."""
SLOWER = 3.0
"""By what the p99 of other publishes may grow meanwhile, if it is above LEAST_P99."""
LEAST_P99 = 0.05
"""Seconds below which a p99 is as good as any on a machine where others work, too."""
FROZEN = 20.0
"""Seconds for which a node is stopped: longer than its leases, and than an event without a result waits to be looked up."""


@asynccontextmanager
async def told(arena: Arena, *brokers: str, **options: object) -> AsyncIterator[tuple[Stage, Receiver]]:
    """A stage whose halls tell a receiver of each event."""
    async with receiving() as receiver:
        endpoint = receiver.endpoint(tenants=TENANTS)
        settings = {"CONTRACT": str(CONTRACT), "WEBHOOKS__ENDPOINTS": json.dumps([endpoint])}
        async with arena.stage(*brokers, settings=settings, **options) as stage:
            within = 20 * arena.report.patience
            spread = await seconds_until(lambda: _delivering(stage.nodes, QUEUES), monotonic(), within)
            arena.report.expect(spread is not None, "the nodes did not take all queues at the start")
            yield stage, receiver
            await _judge(stage, receiver)


async def _delivering(nodes: Sequence[Node], queues: int) -> bool:
    """Whether these nodes deliver all the queues."""
    return sum([total(await node.metrics(), "webhook_queues") for node in nodes if node.is_running]) >= queues


async def _judge(stage: Stage, receiver: Receiver) -> None:
    """Everything that was acknowledged must have come, and each channel in order."""
    await stage.desk.stop(10.0)
    wanted = {(ack.key.tenant, ack.key.channel, ack.line) for ack in stage.log.acks}

    async def complete() -> bool:
        return wanted <= {place for place, _ in _arrived(receiver)}

    await seconds_until(complete, monotonic(), DELIVERED * stage.report.patience)
    arrived = _arrived(receiver)
    missing = wanted - {place for place, _ in arrived}
    stage.report.expect(not missing, f"{len(missing)} of {len(wanted)} webhooks are missing: {sorted(missing)[:5]}")
    inverted = 0
    newest: dict[tuple[str, str, str], int] = {}
    for (tenant, channel, _), (epoch, offset) in arrived:
        place = (tenant, channel, epoch)
        inverted += offset < newest.get(place, 0)
        newest[place] = max(offset, newest.get(place, 0))
    stage.report.expect(not inverted, f"{inverted} webhooks came after later ones of their channel")
    repeats = len(receiver.entries) - len(receiver.once)
    stage.report.tell(f"{len(wanted)} webhooks of {len(newest)} channels, 0 missing, {repeats} repeated")


def _arrived(receiver: Receiver) -> list[tuple[tuple[str, str, int], tuple[str, int]]]:
    """What a receiver that recognizes repeats has: tenant, channel and line; epoch and offset."""
    found = []
    for entry in receiver.once:
        event = entry["event"]
        if event["type"] == "talk.line":
            data = event["data"]
            found.append(
                ((data["t"], entry["channel"], data["line"]), (event.get("epoch", ""), event.get("offset", 0)))
            )
    return found


@scenario("webhook-receiver-down", quick=True, on=ANY)
async def receiver_down(arena: Arena) -> None:
    """The endpoint is down for 60 s under load: nothing is lost, each channel stays in order although several publishers on two
    nodes publish in it, the nodes do not grow, and publishes without a webhook are as fast as before."""
    report = arena.report
    async with arena.broker() as url, told(arena, url, url) as (stage, receiver):
        before = await _latency(stage, arena.size.calm if arena.quick else DOWN / 3)
        grown = {node.name: node.rss() for node in stage.nodes}
        await receiver.stop()
        down = monotonic()
        during = await _latency(stage, QUICK_DOWN if arena.quick else DOWN)
        size = max(node.rss() - grown[node.name] for node in stage.nodes)
        waiting = sum([total(await node.metrics(), "webhook_waiting") for node in stage.nodes])
        await receiver.start_again()
        back = monotonic()
        report.expect(waiting > 0, "nothing waited for the endpoint")
        # A store in the node's own memory holds what waits.
        report.expect(arena.store == "memory" or size <= GROWN, f"a node grew by {size} KiB")
        worst = max(LEAST_P99, SLOWER * before) * report.patience
        report.expect(during <= worst, f"p99 of other publishes was {during * 1000:.0f} ms, {before * 1000:.0f} before")
        report.recovered(await _delivered(stage, receiver, back), within=DELIVERED + 20)
        report.tell(
            f"down for {back - down:.0f} s, {waiting:.0f} records waited, a node grew by {size} KiB; p99 of other publishes"
            f" {before * 1000:.1f} ms before, {during * 1000:.1f} ms meanwhile"
        )


async def _latency(stage: Stage, seconds: float) -> float:
    """Publishes events without a webhook for so long. Returns the p99 of their answers in seconds."""
    took, end = [], monotonic() + max(seconds, 2.0)
    while monotonic() < end:
        for node in stage.nodes:
            moment = monotonic()
            status, body = await node.api(
                TENANTS[0], "POST", "channels/room:apart/events", {"type": "talk.line", "data": 1}
            )
            assert status == 200, body
            took.append(monotonic() - moment)
        await asyncio.sleep(0.02)
    return quantiles(took, n=100)[-1]


async def _delivered(stage: Stage, receiver: Receiver, since: float) -> float | None:
    """Waits until all that is acknowledged by now has come. The seconds since the moment; None if it does not come."""
    wanted = {(ack.key.tenant, ack.key.channel, ack.line) for ack in stage.log.acks}

    async def complete() -> bool:
        return wanted <= {place for place, _ in _arrived(receiver)}

    return await seconds_until(complete, since, (DELIVERED + 20) * stage.report.patience)


@scenario("webhook-node-kill", quick=True, on=("redis", "valkey", "nats"))
async def node_killed(arena: Arena) -> None:
    """kill -9 of a node with webhooks under way: the other delivers all queues within 15 s, and nothing is missing."""
    report = arena.report
    async with arena.broker() as url, told(arena, url, url) as (stage, receiver):
        await stage.calm(arena.size.calm)
        victim, other = stage.nodes
        # On a busy machine, queues still move from node to node.
        await seconds_until(lambda: _delivering([victim], 1), monotonic(), TAKEN_OVER * report.patience)
        mine = total(await victim.metrics(), "webhook_queues")
        report.expect(mine > 0, "the node that is killed delivers no queue")
        moment = monotonic()
        await victim.kill()
        within = TAKEN_OVER * report.patience
        taken = await seconds_until(lambda: _delivering([other], QUEUES), moment, within + 10)
        report.expect(taken is not None and taken <= within, f"the queues were taken over after {taken} s")
        report.recovered(await _delivered(stage, receiver, moment), within=DELIVERED)
        report.tell(f"{mine:.0f} queues of {QUEUES} taken over after {taken or -1:.1f} s")
        await victim.start()


@scenario("webhook-node-frozen", on=("redis", "valkey", "nats"))
async def node_frozen(arena: Arena) -> None:
    """SIGSTOP of a node for longer than its leases, with deliveries and publishes under way: what it does after SIGCONT loses
    nothing, and changes no order."""
    report = arena.report
    async with arena.broker() as url, told(arena, url, url) as (stage, receiver):
        await stage.calm(arena.size.calm)
        victim, other = stage.nodes
        moment = monotonic()
        victim.signal(signal.SIGSTOP)
        taken = await seconds_until(lambda: _delivering([other], QUEUES), moment, FROZEN * report.patience)
        await stage.calm(max(0.0, FROZEN - (monotonic() - moment)))
        victim.signal(signal.SIGCONT)
        report.expect(taken is not None, "nobody took the queues over")
        await stage.calm(arena.size.calm)
        report.recovered(await _delivered(stage, receiver, monotonic()), within=DELIVERED)
        report.tell(f"stopped for {monotonic() - moment:.0f} s, its queues taken over after {taken or -1:.1f} s")


@scenario("webhook-store-kill")
async def store_killed(arena: Arena) -> None:
    """kill -9 of a store with appendfsync always, and a restart: every acknowledged event has its webhook."""
    report = arena.report
    async with (
        RedisServer(arena.flavour, persistence="always") as server,
        told(arena, server.url, server.url) as (stage, receiver),
    ):
        await stage.calm(arena.size.calm)
        server.kill()
        away = monotonic()
        await stage.calm(arena.random.uniform(1, 3))
        await server.restart()
        back = monotonic()
        report.expect(await stage.publishing(back, 20) is not None, "publishing did not go on")
        await stage.calm(arena.size.calm)
        report.recovered(await _delivered(stage, receiver, back), within=DELIVERED)
        report.tell(f"killed, {back - away:.1f} s away")
