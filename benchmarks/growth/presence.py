"""More users in a channel with presence."""

from __future__ import annotations

import asyncio
import time

from benchmarks.growth.clients import Client, Tally, connect_all, watch
from benchmarks.growth.figures import Curve, Part, grouped
from benchmarks.growth.ground import Ground
from benchmarks.growth.site import Site, site

USERS = (10, 50, 150, 1_000, 10_000)
MEMBERS = 5_000
"""Users of all channels together, at least."""
JOINS = 1_000
"""Joins in the measured second, spread over the channels."""
_SLICE = 0.02
"""Seconds between two groups of joins."""
_COUNTS = 1.3
"""Seconds in which the last count goes out: a channel sends one a second at most."""


async def measure(ground: Ground) -> Part:
    """Measures joins at each number of users."""
    messages = Curve("messages sent a join", "messages", bound="presence.members")
    cost = Curve("join, with all that it sends", "µs CPU of the node", bound="presence.members")
    store = Curve("join, Redis' share", "µs CPU of Redis", bound="presence.members")
    for users in ground.sizes(USERS, (10, 50)):
        with ground.step(f"{users} users in a channel"):
            async with site(ground.folder, ground.cores, outbox={"send_buffer": 262_144}) as running:
                rooms = max(1, ground.at_most(MEMBERS, 100) // users)
                joins = ground.at_most(JOINS, 50)
                members = await _connected(running, 0, rooms * users)
                await _join(members, rooms)
                joiners = await _connected(running, rooms * users, joins)
                await running.at_rest()
                tally = watch((*members, *joiners), b'"type":')
                before = running.cpu()
                await _join_steadily(joiners, rooms, joins / ground.at_most(JOINS, 500))
                await _all_received(tally)
                spent = running.cpu().since(before).microseconds(joins)
                messages.add(users, [tally.count / joins])
                cost.add(users, [spent.nodes])
                store.add(users, [spent.redis])
                for client in (*members, *joiners):
                    client.end()
    return Part(
        "presence",
        "More users in a channel with presence",
        "users in a channel",
        f"{grouped(JOINS)} joins in one second, spread over all channels; {grouped(MEMBERS)} users in all channels together "
        "(10 000 in the last column). A channel with more than `presence.members` users (200) sends only their number, "
        "at most once a second",
        (messages, cost, store),
        (messages.name, cost.name, store.name),
    )


async def _connected(running: Site, first: int, count: int) -> list[Client]:
    numbers = range(first, first + count)
    return await connect_all(
        ((running.ports[0], running.token(f"user-{number}")) for number in numbers), watch((), b'"type":"subscribed"')
    )


def _subscribe(client: Client, room: int) -> None:
    client.send(f'{{"type":"subscribe","id":"s","channel":"crowd:{room}"}}')


async def _join(clients: list[Client], rooms: int) -> None:
    """Joins a hundred at a time, as fast as the node can."""
    tally = watch(clients, b'"type":"subscribed"')
    for start in range(0, len(clients), 100):
        for number, client in enumerate(clients[start : start + 100], start):
            _subscribe(client, number % rooms)
        await tally.reach(min(start + 100, len(clients)))


async def _all_received(tally: Tally) -> None:
    """Waits for the last counts, and until the clients have read all that was sent."""
    seen = -1
    while seen != tally.count:
        seen = tally.count
        await asyncio.sleep(_COUNTS)


async def _join_steadily(clients: list[Client], rooms: int, seconds: float) -> None:
    """Joins at a fixed rate, whether or not earlier joins have been answered, and waits for all answers."""
    tally, began = clients[0].tally, time.monotonic()
    sent = 0
    while sent < len(clients):
        due = min(len(clients), round((time.monotonic() - began) / seconds * len(clients)) + 1)
        for number in range(sent, due):
            _subscribe(clients[number], number % rooms)
        sent = due
        await asyncio.sleep(_SLICE)
    await tally.reach(len(clients))
