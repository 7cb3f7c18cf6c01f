"""More nodes on one Redis, with the same members and the same events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.growth.clients import Client, connect_all, watch
from benchmarks.growth.figures import Curve, Part, grouped
from benchmarks.growth.ground import DATA, ROUNDS, Ground
from benchmarks.growth.site import Cpu, Site, site

MEMBERS = 2_000
"""Members of the channel that all nodes share."""
ROOMS = 25
"""Small channels that are busy at the same time, all on the same node."""
EACH = 10
"""Members of a small channel."""
PUBLISHERS = 50
"""Clients that publish at the same time, all on the same node."""
EVENTS = 20
"""Events of one round in the channel of all nodes."""
PUBLISHES = 8
"""Events of one round in each small channel."""
NODES = (1, 2, 4, 8)
IDLE = 6.0
"""Seconds of idling: the nodes send their reports, and probe, every five seconds or more often."""


async def measure(ground: Ground) -> Part:
    """Measures deliveries, publishes and idling at each number of nodes."""
    everywhere = Curve("delivery, a wide channel with members on every node", "µs CPU of the nodes", target=1.1)
    with_redis = Curve("delivery, the wide channel, Redis' share", "µs CPU of Redis")
    apart = Curve("delivery, each channel has its members on one node", "µs CPU of the nodes", target=1.1)
    alone = Curve("delivery, the wide channel, as on cores of their own", "µs CPU of the nodes", target=1.1)
    publish = Curve("publish, durable, with its ack and its delivery", "µs CPU of the nodes", target=1.1)
    store = Curve("publish, durable, Redis' share", "µs CPU of Redis", target=1.1)
    idle = Curve("a node without clients", "ms CPU of a node a second")
    sizes = ground.sizes(NODES, (1, 2))
    for nodes in sizes:
        with ground.step(f"{nodes} nodes"):
            async with site(ground.folder, ground.cores, nodes) as running:
                idle.add(nodes, [await _idling(running, nodes, ground)])
                if nodes == 1:  # n nodes cost as much as one with an n-th of the members, n times
                    for number in sizes:
                        alone.add(number, [cpu.nodes for cpu in await _wide(running, ground, number)])
                found = await _wide(running, ground)
                everywhere.add(nodes, [cpu.nodes for cpu in found])
                with_redis.add(nodes, [cpu.redis for cpu in found])
                apart.add(nodes, [cpu.nodes for cpu in await _narrow(running, ground)])
                found = await _publishing(running, ground)
                publish.add(nodes, [cpu.nodes for cpu in found])
                store.add(nodes, [cpu.redis for cpu in found])
    return Part(
        "nodes",
        "More nodes on one Redis",
        "nodes",
        "members, channels and events. The wide channel has its members spread evenly over the nodes. The nodes share one core "
        "of the machine, so each wakes up with cold caches; except in the wide channel, they are busy one after the other",
        (everywhere, alone, apart, with_redis, publish, store, idle),
        (everywhere.name, alone.name, apart.name, publish.name, store.name),
        _further(everywhere, with_redis),
    )


def _further(nodes: Curve, redis: Curve) -> str:
    """Returns the sentence on what a further node costs an event in the wide channel."""
    fewest, most = min(nodes.points), max(nodes.points)
    more = sum(curve.points[most].median - curve.points[fewest].median for curve in (nodes, redis))
    return (
        f"In the wide channel, an event has {grouped(MEMBERS)} deliveries. Each further node with members takes "
        f"{more * MEMBERS / (most - fewest):.0f} µs for an event, with Redis, however many members it has."
    )


async def _idling(running: Site, nodes: int, ground: Ground) -> float:
    before = running.cpu()
    await asyncio.sleep(ground.at_most(IDLE, 0.5))
    return running.cpu().since(before).nodes * 1e3 / nodes / ground.at_most(IDLE, 0.5)


async def _joined(running: Site, places: Sequence[tuple[int, str]]) -> list[Client]:
    """Returns a client for each pair of node and channel, once it is live."""
    tally = watch((), b'"type":"subscribed"')
    addresses = ((running.ports[node], running.token(f"user-{number}")) for number, (node, _) in enumerate(places))
    clients = await connect_all(addresses, tally)
    for client, (_, channel) in zip(clients, places, strict=True):
        client.send(f'{{"type":"subscribe","id":"s","channel":"{channel}"}}')
    await tally.reach(len(clients))
    return clients


async def _costs(
    running: Site, clients: Sequence[Client], units: int, work: Callable[[], Awaitable[None]], ground: Ground
) -> list[Cpu]:
    """Returns the cost of one unit in each round, after one that is not measured."""
    await work()
    await running.at_rest()
    found = []
    for _ in range(ground.at_most(ROUNDS, 1)):
        before = running.cpu()
        await work()
        found.append(running.cpu().since(before).microseconds(units))
    for client in clients:
        client.end()
    await running.at_rest()
    return found


async def _wide(running: Site, ground: Ground, part: int = 1) -> list[Cpu]:
    """Publishes one event at a time to a channel with members on every node. `part`: with so many times fewer members."""
    members, events = ground.at_most(MEMBERS, 100) // part, ground.at_most(EVENTS, 10)
    clients = await _joined(running, [(number % len(running.ports), "room:all") for number in range(members)])

    async def work() -> None:
        tally = watch(clients, b'"type":"bench.plain"')
        for number in range(events):
            clients[number].send(f'{{"type":"bench.plain","channel":"room:all","data":{DATA}}}')
            await tally.reach((number + 1) * members)

    return await _costs(running, clients, events * members, work, ground)


async def _narrow(running: Site, ground: Ground) -> list[Cpu]:
    """Publishes an event to each small channel, one node after the other, when all earlier ones have arrived."""
    waves, rooms, events = max(NODES), ground.at_most(ROOMS, 4), ground.at_most(PUBLISHES, 2)
    places = [
        (wave % len(running.ports), f"room:{wave}-{room}")
        for wave in range(waves)
        for room in range(rooms)
        for _ in range(EACH)
    ]
    clients = await _joined(running, places)

    async def work() -> None:
        tally, sent = watch(clients, b'"type":"bench.plain"'), 0
        for wave in range(waves):
            for _ in range(events):
                for room in range(rooms):
                    client = clients[(wave * rooms + room) * EACH]
                    client.send(f'{{"type":"bench.plain","channel":"room:{wave}-{room}","data":{DATA}}}')
                sent += rooms * EACH
                await tally.reach(sent)

    return await _costs(running, clients, waves * events * rooms * EACH, work, ground)


async def _publishing(running: Site, ground: Ground) -> list[Cpu]:
    """Publishes from clients that are alone in their channels, one node after the other."""
    waves, publishers, events = max(NODES), ground.at_most(PUBLISHERS, 4), ground.at_most(PUBLISHES, 2)
    places = [
        (wave % len(running.ports), f"room:own-{wave}-{number}")
        for wave in range(waves)
        for number in range(publishers)
    ]
    clients = await _joined(running, places)
    ids = ground.ids()

    async def work() -> None:
        acks, sent = watch(clients, b'"type":"ack"'), 0
        for wave in range(waves):
            for _ in range(events):
                for number in range(publishers):
                    client = clients[wave * publishers + number]
                    client.send(
                        f'{{"type":"bench.durable","channel":"room:own-{wave}-{number}","id":"{next(ids)}","data":{DATA}}}'
                    )
                sent += publishers
                await acks.reach(sent)

    return await _costs(running, clients, waves * events * publishers, work, ground)
