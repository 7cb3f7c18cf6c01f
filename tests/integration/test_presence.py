"""Who is in a channel: counted by user, told once, debounced."""

from __future__ import annotations

import asyncio

from tests.harness import Client, Running, serving


def members(reply: dict[str, object]) -> dict[str, int]:
    view = reply["presence"]
    assert isinstance(view, dict)
    found = {member["user"]: member["connections"] for member in view["members"]}
    assert view["count"] == len(found)
    return found


async def test_a_join_is_told_to_the_others_with_what_the_token_says(server: Running) -> None:
    async with server.client("ann") as ann:
        reply = await ann.subscribe("room:1")
        assert members(reply) == {"ann": 1}
        async with server.client("ben", info={"name": "Ben"}) as ben:
            assert members(await ben.subscribe("room:1")) == {"ann": 1, "ben": 1}
            joined = await ann.until("presence.joined", **{"from": "ben"})
            assert joined["data"] == {"user": "ben", "info": {"name": "Ben"}}
            assert members(await ann.ask("presence", channel="room:1")) == {"ann": 1, "ben": 1}


async def test_five_tabs_are_one_user() -> None:
    async with serving(deadlines={"presence_leave": 0.05}) as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        tabs: list[Client] = []
        for _ in range(5):
            tab = await Client.open(server, "ben")
            await tab.subscribe("room:1")
            tabs.append(tab)
        assert members(await ann.ask("presence", channel="room:1")) == {"ann": 1, "ben": 5}
        for tab in tabs:
            await tab.close()
        story = [await ann.receive()]
        while story[-1]["type"] != "presence.left":
            story.append(await ann.receive())
        kinds = [message["type"] for message in story if message["from"] == "ben"]
        assert kinds == ["presence.left"], "the one join was read by `ask` above"
        assert members(await ann.ask("presence", channel="room:1")) == {"ann": 1}


async def test_coming_back_within_the_debounce_flaps_nobody() -> None:
    async with serving(deadlines={"presence_leave": 0.3}) as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        async with server.client("ben") as ben:
            await ben.subscribe("room:1")
            await ann.until("presence.joined")
        async with server.client("ben") as ben:
            await ben.subscribe("room:1")
            await pass_time(server, 0.5)
            await ann.silence()
            assert members(await ann.ask("presence", channel="room:1")) == {"ann": 1, "ben": 1}


async def pass_time(server: Running, seconds: float) -> None:
    """Lets the debounce pass: what is awaited is that nothing happens, so time itself is the event."""
    done = asyncio.Event()
    server.service.clock.call_later(seconds, done.set)
    await done.wait()


async def test_leaving_a_channel_is_a_leave_too() -> None:
    quickly = {"presence_leave": 0.05}
    async with serving(deadlines=quickly) as server, server.client("ann") as ann, server.client("ben") as ben:
        await ann.subscribe("room:1")
        await ben.subscribe("room:1")
        await ben.ask("unsubscribe", channel="room:1")
        left = await ann.until("presence.left")
        assert (left["from"], left["data"]) == ("ben", {"user": "ben"})


async def test_a_large_room_gets_counts() -> None:
    async with serving(presence={"members": 2}) as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        clients = [await Client.open(server, f"u{number}") for number in range(4)]
        replies = [await client.subscribe("room:1") for client in clients]
        assert replies[-1]["presence"] == {"count": 5}
        count = await ann.until("presence.count")
        assert count["data"] == {"count": 5}
        for client in clients:
            await client.close()


async def test_channels_without_presence_tell_nothing(server: Running) -> None:
    async with server.client() as ann:
        assert "presence" not in await ann.subscribe("board:1")
