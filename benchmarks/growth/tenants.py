"""More tenants, with the same members and the same events."""

from __future__ import annotations

from benchmarks.growth.clients import Client, connect_all, watch
from benchmarks.growth.figures import Curve, Part, grouped
from benchmarks.growth.ground import DATA, ROUNDS, Ground
from benchmarks.growth.site import Cpu, Site, site

TENANTS = (1, 10, 100, 1_000)
ROOMS = 1_000
MEMBERS = 4
"""Members of each channel."""
EVENTS = 3
"""Events of one round in each channel."""
MIB = 1_048_576


async def measure(ground: Ground) -> Part:
    """Measures deliveries and memory at each number of tenants."""
    delivery = Curve("delivery", "µs CPU of the node", target=1.1)
    store = Curve("delivery, Redis' share", "µs CPU of Redis", target=1.1)
    memory = Curve("memory of the node, with all connections", "MiB", is_total=True)
    redis_memory = Curve("memory of Redis, with all channels", "MiB", is_total=True)
    for tenants in ground.sizes(TENANTS, (1, 10)):
        with ground.step(f"{tenants} tenants"):
            async with site(ground.folder, ground.cores) as running:
                rooms = ground.at_most(ROOMS, 20)
                clients = await _joined(running, tenants, rooms)
                memory.add(tenants, [running.memory() / MIB])
                redis_memory.add(tenants, [running.redis_memory() / MIB])
                found = await _costs(running, clients, rooms, ground)
                delivery.add(tenants, [cpu.nodes for cpu in found])
                store.add(tenants, [cpu.redis for cpu in found])
                for client in clients:
                    client.end()
    return Part(
        "tenants",
        "More tenants",
        "tenants",
        f"{grouped(ROOMS * MEMBERS)} members in {grouped(ROOMS)} channels, which are divided among the tenants",
        (delivery, store, memory, redis_memory),
        (delivery.name, store.name, memory.name, redis_memory.name),
        f"A tenant adds {_each(memory)} KiB to the node and {_each(redis_memory)} KiB to Redis: the difference of the memory "
        "with most and with fewest tenants, divided by the difference of their number.",
    )


def _each(memory: Curve) -> str:
    fewest, most = min(memory.points), max(memory.points)
    more = memory.points[most].median - memory.points[fewest].median
    return f"{more * 1024 / (most - fewest):.2f}"


async def _joined(running: Site, tenants: int, rooms: int) -> list[Client]:
    """Returns the members of the first channel, then of the second one, and so on."""
    tally = watch((), b'"type":"subscribed"')
    tokens = (
        running.token(f"user-{room}-{member}", f"tenant-{room % tenants}")
        for room in range(rooms)
        for member in range(MEMBERS)
    )
    clients = await connect_all(((running.ports[0], bearer) for bearer in tokens), tally)
    for start in range(0, len(clients), 200):
        for number, client in enumerate(clients[start : start + 200], start):
            client.send(f'{{"type":"subscribe","id":"s","channel":"room:{number // MEMBERS}"}}')
        await tally.reach(min(start + 200, len(clients)))
    await running.at_rest()
    return clients


async def _costs(running: Site, clients: list[Client], rooms: int, ground: Ground) -> list[Cpu]:
    async def work() -> None:
        tally = watch(clients, b'"type":"bench.plain"')
        for number in range(EVENTS):
            for room in range(rooms):
                clients[MEMBERS * room].send(f'{{"type":"bench.plain","channel":"room:{room}","data":{DATA}}}')
            await tally.reach((number + 1) * len(clients))

    await work()
    found = []
    for _ in range(ground.at_most(ROUNDS, 1)):
        before = running.cpu()
        await work()
        found.append(running.cpu().since(before).microseconds(EVENTS * len(clients)))
    return found
