"""Who is in a channel: counted by user, told once, debounced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from tests.stores import STORES, broker_of
from tests.support.harness import Client, Running, serving, token


@pytest_asyncio.fixture(params=STORES)
async def stored(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A service on each kind of store."""
    async with broker_of(request.param) as broker, serving(broker_settings=broker) as running:
        yield running


def members(reply: dict[str, object]) -> dict[str, int]:
    view = reply["presence"]
    assert isinstance(view, dict)
    found = {member["user"]: member["connections"] for member in view["members"]}
    assert view["count"] == len(found)
    return found


async def test_join_is_published_with_the_info_of_the_token(server: Running) -> None:
    async with server.client("ann") as ann:
        reply = await ann.subscribe("room:1")
        assert members(reply) == {"ann": 1}
        async with server.client("ben", info={"name": "Ben"}) as ben:
            assert members(await ben.subscribe("room:1")) == {"ann": 1, "ben": 1}
            joined = await ann.until("presence.joined", **{"from": "ben"})
            assert joined["data"] == {"user": "ben", "info": {"name": "Ben"}}
            assert members(await ann.ask("presence", channel="room:1")) == {"ann": 1, "ben": 1}


async def test_five_connections_of_a_user_are_one_member() -> None:
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


async def test_reconnect_within_the_debounce_publishes_nothing() -> None:
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


async def test_unsubscribe_publishes_a_leave() -> None:
    quickly = {"presence_leave": 0.05}
    async with serving(deadlines=quickly) as server, server.client("ann") as ann, server.client("ben") as ben:
        await ann.subscribe("room:1")
        await ben.subscribe("room:1")
        await ben.ask("unsubscribe", channel="room:1")
        left = await ann.until("presence.left")
        assert (left["from"], left["data"]) == ("ben", {"user": "ben"})


async def test_large_channel_gets_counts_instead_of_names() -> None:
    async with serving(presence={"members": 2}) as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        clients = [await Client.open(server, f"u{number}") for number in range(4)]
        replies = [await client.subscribe("room:1") for client in clients]
        assert replies[-1]["presence"] == {"count": 5}
        count = await ann.until("presence.count")
        assert count["data"] == {"count": 5}
        for client in clients:
            await client.close()


async def test_channel_without_presence_publishes_no_presence(server: Running) -> None:
    async with server.client() as ann:
        assert "presence" not in await ann.subscribe("board:1")


class TestInfo:
    """What is shown of a user follows the token that it has shown last."""

    @staticmethod
    async def info(client: Client, user: str = "ben") -> Any:
        view = (await client.ask("presence", channel="room:1"))["presence"]
        return next(member.get("info") for member in view["members"] if member["user"] == user)

    async def test_refresh_with_other_info_is_published_once(self, stored: Running) -> None:
        async with stored.client("ann") as ann, stored.client("ben", info={"name": "Ben"}) as ben:
            await ann.subscribe("room:1")
            await ben.subscribe("room:1")
            await ann.until("presence.joined", key="ben")
            for _ in range(2):
                assert (await ben.ask("refresh", token=token("ben", info={"name": "Benjamin"})))["type"] == "ack"
            joined = await ann.expect("presence.joined", key="ben")
            assert joined["data"] == {"user": "ben", "info": {"name": "Benjamin"}}
            await ann.silence()
            assert await self.info(ann) == {"name": "Benjamin"}
            assert (await ben.ask("refresh", token=token("ben")))["type"] == "ack"
            assert (await ann.expect("presence.joined", key="ben"))["data"] == {"user": "ben"}
            assert await self.info(ann) is None

    async def test_many_tabs_that_refresh_tell_once(self, stored: Running) -> None:
        async with stored.client("ann") as ann, AsyncExitStack() as stack:
            await ann.subscribe("room:1")
            tabs = [await stack.enter_async_context(stored.client("ben")) for _ in range(3)]
            for tab in tabs:
                await tab.subscribe("room:1")
            await ann.until("presence.joined", key="ben")
            for tab in tabs:
                await tab.ask("refresh", token=token("ben", info={"n": 2}))
            assert (await ann.expect("presence.joined"))["data"]["info"] == {"n": 2}
            await ann.silence()

    async def test_reconnect_with_another_token_publishes_its_info(self, stored: Running) -> None:
        async with stored.client("ann") as ann:
            await ann.subscribe("room:1")
            async with stored.client("ben", info={"n": 1}) as ben:
                await ben.subscribe("room:1")
                await ann.until("presence.joined", key="ben")
            async with stored.client("ben", info={"n": 2}) as ben:  # within the debounce: it never left
                await ben.subscribe("room:1")
                assert (await ann.expect("presence.joined"))["data"]["info"] == {"n": 2}
                assert await self.info(ann) == {"n": 2}

    async def test_rejoin_shows_the_info_of_the_new_token(self, stored: Running) -> None:
        async with stored.client("ann") as ann, stored.client("ben", info={"n": 1}) as ben:
            await ann.subscribe("room:1")
            await ben.subscribe("room:1")
            await ben.ask("unsubscribe", channel="room:1")
            await ben.ask("refresh", token=token("ben", info={"n": 2}))
            await ben.subscribe("room:1")
            await ann.until("presence.joined", data={"user": "ben", "info": {"n": 2}})
            assert await self.info(ann) == {"n": 2}

    async def test_refresh_of_a_pending_member_is_published(self, stored: Running) -> None:
        async with stored.client("ann") as ann, stored.client("ben", info={"n": 1}, ready=False) as ben:
            await ann.subscribe("room:1")
            await ben.send(type="subscribe", id="s", channel="room:1")
            await ben.ask("refresh", token=token("ben", info={"n": 2}))
            await ann.until("presence.joined", data={"user": "ben", "info": {"n": 2}})
