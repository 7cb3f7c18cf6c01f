"""More channels on one node, with one member each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass

from benchmarks.growth.clients import Client, connect_all, watch
from benchmarks.growth.figures import Curve, Part
from benchmarks.growth.ground import Ground
from benchmarks.growth.site import Cpu, Site, site

CHANNELS = (1_000, 5_000, 20_000, 50_000)
EACH = 250
"""Channels of one connection."""
IDLE = 20.0
"""Seconds of idling: each channel's position is checked twice (`repair.check`), and renewed once (`broker.empty_ttl`)."""
_BATCH = 50
"""Subscribes in one frame."""
_AT_ONCE = 20
"""Connections that subscribe at the same time."""


async def measure(ground: Ground) -> Part:
    """Measures subscribes, memory, idling and a restart of Redis at each number of channels."""
    subscribe = Curve("subscribe", "µs CPU of the node")
    store = Curve("subscribe, Redis' share", "µs CPU of Redis")
    memory = Curve("memory of the node a channel", "bytes")
    store_memory = Curve("memory of Redis a channel", "bytes")
    idle = Curve("check of an idle channel", "µs CPU of the node a second")
    store_idle = Curve("check of an idle channel, Redis' share", "µs CPU of Redis a second")
    again = Curve("resubscribe after a restart of Redis", "µs CPU of the node")
    store_again = Curve("resubscribe, Redis' share", "µs CPU of Redis")
    seconds = Curve("resubscribe, until the last channel is live", "µs a channel")
    for channels in ground.sizes(CHANNELS, (250, 500)):
        with ground.step(f"{channels} channels"):
            async with site(ground.folder, ground.cores, limits={"subscriptions": EACH}) as running:
                port, numbers = running.ports[0], range(channels // EACH)
                addresses = [(port, running.token(f"user-{number}")) for number in numbers]
                clients = await connect_all(addresses, watch((), b'"type":"subscribed"'))
                await running.at_rest()
                bytes_before, redis_before = running.memory(), running.redis_memory()
                joined = await _timed(running, _subscribe(clients))
                memory.add(channels, [(running.memory() - bytes_before) / channels])
                store_memory.add(channels, [(running.redis_memory() - redis_before) / channels])
                resting = await _timed(running, asyncio.sleep(ground.at_most(IDLE, 0.5)))
                tally = watch(clients, b'"type":"subscribed"')
                await running.end_redis()
                await running.start_redis()
                # Every channel has a new epoch, so every member gets `subscribed` again.
                returned = await _timed(running, tally.reach(channels))
                for client in clients:
                    client.end()
            per_second = resting.cpu.microseconds(channels * resting.seconds)
            idle.add(channels, [per_second.nodes])
            store_idle.add(channels, [per_second.redis])
            # While the channels are added, half of them are checked on average. A quick run is too short to tell.
            checks = ground.at_most(1.0, 0.0)
            for (own, redis), phase, share in (
                ((subscribe, store), joined, 0.5),
                ((again, store_again), returned, 1.0),
            ):
                cost = phase.cpu.microseconds(channels)
                own.add(channels, [cost.nodes - checks * share * per_second.nodes * phase.seconds])
                redis.add(channels, [cost.redis - checks * share * per_second.redis * phase.seconds])
            seconds.add(channels, [returned.seconds / channels * 1e6])
    return Part(
        "channels",
        "More channels on a node",
        "channels",
        f"one member in each channel, {EACH} channels on each connection (its memory is counted too), no events. "
        "The periodic checks of idle channels have rows of their own, and are not part of the others",
        (subscribe, store, memory, store_memory, idle, store_idle, again, store_again, seconds),
        (subscribe.name, memory.name, store_memory.name, idle.name, again.name, seconds.name),
    )


@dataclass(frozen=True, slots=True)
class _Phase:
    cpu: Cpu
    seconds: float


async def _timed(running: Site, work: Awaitable[None]) -> _Phase:
    """Returns what the nodes and Redis use while the work runs."""
    before, began = running.cpu(), time.monotonic()
    await work
    return _Phase(running.cpu().since(before), time.monotonic() - began)


async def _subscribe(clients: list[Client]) -> None:
    """Subscribes each client to its channels, some clients at a time."""
    tally = watch(clients, b'"type":"subscribed"')
    done = 0
    for start in range(0, len(clients), _AT_ONCE):
        part = clients[start : start + _AT_ONCE]
        for number, client in enumerate(part, start):
            for first in range(0, EACH, _BATCH):
                wanted = (
                    f'{{"type":"subscribe","id":"s-{channel}","channel":"room:{number}-{channel}"}}'
                    for channel in range(first, first + _BATCH)
                )
                client.send(f"[{','.join(wanted)}]")
        done += len(part) * EACH
        await tally.reach(done)
