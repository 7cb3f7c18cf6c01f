"""Updates of presence race with joins, leaves, new tokens and each other, at several nodes: everybody ends with the same view."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from service.protocol import messages
from tests.integration.cluster import cluster
from tests.support.harness import Client, Running, token
from tests.support.shared_broker import Bus

DESK = "desk:1"
STEPS = 30


async def view(client: Client) -> dict[str, Any]:
    """What presence shows, by user."""
    reply = await client.ask("presence", channel=DESK)
    return {member["user"]: member for member in reply["presence"]["members"]}


async def act(client: Client, chance: random.Random, number: int) -> None:
    """One thing that a client of ben can do. Refusals after an `unsubscribe` are part of the race."""
    kind = chance.choice(["update", "update", "refresh", "leave", "join"])
    if kind == "update":
        await client.send(type="presence.update", channel=DESK, data={"status": f"s-{number}"})
    elif kind == "refresh":
        await client.send(
            type="refresh", id=f"r-{number}", token=token("ben", info={"name": f"n-{number}"}, grants=["room:*"])
        )
    elif kind == "leave":
        await client.send(type="unsubscribe", id=f"l-{number}", channel=DESK)
    else:
        await client.send(type="subscribe", id=f"j-{number}", channel=DESK)


@pytest.mark.parametrize("seed", [1, 2])
async def test_racing_updates_end_with_one_view_at_all_nodes(make_bus: Callable[[], Bus], seed: int) -> None:
    chance = random.Random(seed)
    async with cluster(make_bus, deadlines={"presence_leave": 0.05}) as nodes, AsyncExitStack() as stack:
        servers: list[Running] = [member.server for member in nodes.members]
        if not servers[0].service.node.admission.quota.is_shared:
            return  # presence in memory is that of one node
        watchers = [await stack.enter_async_context(server.client("ann")) for server in servers]
        for watcher in watchers:
            await watcher.subscribe(DESK)
        bens = [
            await stack.enter_async_context(servers[number % 2].client("ben", info={"name": f"b-{number}"}))
            for number in range(4)
        ]
        await asyncio.gather(*(act(bens[number % 4], chance, number) for number in range(STEPS)))
        for ben in bens:
            await ben.send(type="subscribe", id="again", channel=DESK)
            await ben.send(type="ping", id="joined")
            await ben.until("pong", id="joined")
        last = {"status": "last"}
        await bens[0].send(type="presence.update", id="last", channel=DESK, data=last)
        await bens[0].until("ack", id="last")
        for watcher in watchers:
            await watcher.until("presence.joined", data={"user": "ben", "info": last, "updated": True})
        views = [await view(watcher) for watcher in watchers]
        assert views[0] == views[1]
        assert views[0]["ben"] == {"user": "ben", "connections": 4, "info": last, "updated": True}
        for watcher in watchers:
            seen = [m for m in watcher.received if m["type"].startswith("presence.") and m.get("key") == "ben"]
            assert {m["type"] for m in seen} <= {"presence.joined", "presence.left"}
            assert seen[-1]["data"]["info"] == last


def test_no_type_of_message_is_taken_for_a_leave_by_old_clients() -> None:
    """They take every type that begins with `presence.`, other than the ones that they know, for `presence.left`."""
    types = {tag for tag in messages.SYSTEM_TYPES if tag.startswith("presence.")}
    assert types - {"presence.update"} == {"presence.joined", "presence.left", "presence.count"}
