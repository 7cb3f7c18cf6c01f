"""More events in the history of a channel."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.growth.clients import Client, connect_all, watch
from benchmarks.growth.figures import Curve, Part
from benchmarks.growth.ground import DATA, ROUNDS, Ground
from benchmarks.growth.site import Cpu, Site, site

EVENTS = (10, 100, 1_000, 10_000, 100_000)
"""As in `contract.yaml`."""
CLIENTS = 20
EACH = 20
"""Requests of each client in one round."""
MISSED = 5
"""Events after the `since` of a subscribe."""
PAGE = 50
_BATCH = 50


async def measure(ground: Ground) -> Part:
    """Measures publishes, subscribes and pages at each length of the history."""
    publish = Curve("publish into a full history", "µs CPU of the node")
    publish_redis = Curve("publish, Redis' share", "µs CPU of Redis")
    since = Curve(f"subscribe with `since`, {MISSED} events missed, and its end", "µs CPU of the node")
    since_redis = Curve("subscribe with `since`, Redis' share", "µs CPU of Redis")
    page = Curve(f"page of {PAGE} events from the middle", "µs CPU of the node")
    page_redis = Curve("page, Redis' share", "µs CPU of Redis")
    for events in ground.sizes(EVENTS, (10, 100)):
        with ground.step(f"{events} events in a history"):
            async with site(ground.folder, ground.cores) as running:
                addresses = ((running.ports[0], running.token(f"user-{number}")) for number in range(CLIENTS))
                clients = await connect_all(addresses, watch((), b""))
                channel = Channel(running, clients, f"kept{events}:a", ground)
                await channel.fill(events)
                found = await channel.costs(channel.publish, b'"type":"ack"')
                publish.add(events, [cpu.nodes for cpu in found])
                publish_redis.add(events, [cpu.redis for cpu in found])
                found = await channel.costs(await channel.resume(), b'"type":"unsubscribed"')
                since.add(events, [cpu.nodes for cpu in found])
                since_redis.add(events, [cpu.redis for cpu in found])
                if events >= PAGE * 2:  # a shorter history has no such page
                    found = await channel.costs(await channel.page(), b'"type":"history"')
                    page.add(events, [cpu.nodes for cpu in found])
                    page_redis.add(events, [cpu.redis for cpu in found])
                for client in clients:
                    client.end()
    return Part(
        "history",
        "More events in the history of a channel",
        "events",
        f"{CLIENTS} clients, each with one request under way. The history is full: a publish removes the oldest event",
        (publish, publish_redis, since, since_redis, page, page_redis),
        (publish.name, publish_redis.name, since.name, since_redis.name, page.name, page_redis.name),
    )


class Channel:
    """A channel with history, and the clients that use it."""

    def __init__(self, running: Site, clients: list[Client], name: str, ground: Ground) -> None:
        self._running = running
        self._clients = clients
        self._name = name
        self._ground = ground
        self._ids: Iterator[str] = ground.ids()

    async def fill(self, events: int) -> None:
        """Publishes more than the history keeps."""
        acks = watch(self._clients, b'"type":"ack"')
        published = 0
        while published < events + MISSED:
            for client in self._clients:
                client.send(f"[{','.join(self.publish() for _ in range(_BATCH))}]")
            published += len(self._clients) * _BATCH
            await acks.reach(published)

    async def costs(self, request: Callable[[], str], answer: bytes) -> list[Cpu]:
        """Returns the cost of one request in each round, after one that is not measured."""
        units = len(self._clients) * self._ground.at_most(EACH, 5)
        await self._round(request, answer)
        await self._running.at_rest()
        found = []
        for _ in range(self._ground.at_most(ROUNDS, 1)):
            before = self._running.cpu()
            await self._round(request, answer)
            found.append(self._running.cpu().since(before).microseconds(units))
        return found

    async def _round(self, request: Callable[[], str], answer: bytes) -> None:
        tally = watch(self._clients, answer)
        for number in range(self._ground.at_most(EACH, 5)):
            for client in self._clients:
                client.send(request())
            await tally.reach((number + 1) * len(self._clients))

    def publish(self) -> str:
        """Returns a publish."""
        return f'{{"type":"bench.durable","channel":"{self._name}","id":"{next(self._ids)}","data":{DATA}}}'

    async def resume(self) -> Callable[[], str]:
        """Returns what makes a subscribe from a position before the newest event, and its unsubscribe."""
        head = await self._history(f'"limit":{MISSED + 1}')
        first = head["events"][0]
        since = json.dumps({"epoch": head["epoch"], "offset": first["offset"], "id": first["id"]})
        both = (
            f'[{{"type":"subscribe","id":"s","channel":"{self._name}","since":{since}}},'
            f'{{"type":"unsubscribe","id":"u","channel":"{self._name}"}}]'
        )
        return lambda: both

    async def page(self) -> Callable[[], str]:
        """Returns what makes a request of a page from the middle."""
        head = await self._history('"limit":1')
        kept = int(self._name.removeprefix("kept").partition(":")[0])
        after = head["offset"] - kept // 2 - PAGE // 2
        asked = self._request(f'"after":{after},"limit":{PAGE}')
        return lambda: asked

    async def _history(self, which: str) -> dict[str, Any]:
        tally = watch(self._clients, b'"type":"history"')
        self._clients[0].send(self._request(which))
        await tally.reach(1)
        found: dict[str, Any] = json.loads(self._clients[0].last)
        return found

    def _request(self, which: str) -> str:
        return f'{{"type":"history","id":"h","channel":"{self._name}",{which}}}'
