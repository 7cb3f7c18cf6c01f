"""Clients set what presence shows of their users."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.stores import STORES, broker_of
from tests.support.harness import Client, Running, serving, token

DESK = "desk:1"


@pytest_asyncio.fixture(params=STORES)
async def stored(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """A service on each kind of store."""
    async with broker_of(request.param) as broker, serving(broker_settings=broker) as running:
        yield running


async def update(client: Client, data: Any, channel: str = DESK) -> dict[str, Any]:
    """Sets the info of the client's user, and returns the reply."""
    return await client.ask("presence.update", channel=channel, data=data)


async def shown(client: Client, user: str = "ben", channel: str = DESK) -> dict[str, Any]:
    """What presence shows of a user."""
    view = (await client.ask("presence", channel=channel))["presence"]
    found: dict[str, Any] = next(member for member in view["members"] if member["user"] == user)
    return found


async def test_update_is_told_by_a_repeated_join_and_stays_for_later_connections(stored: Running) -> None:
    async with stored.client("ann") as ann, stored.client("ben", info={"name": "Ben"}) as ben:
        await ann.subscribe(DESK)
        await ben.subscribe(DESK)
        await ann.until("presence.joined", key="ben")
        assert (await update(ben, {"status": "busy"})).keys() == {"type", "id"}
        joined = await ann.expect("presence.joined", key="ben")
        assert joined["from"] == "ben"
        assert joined["data"] == {"user": "ben", "info": {"status": "busy"}, "updated": True}
        await update(ben, {"status": "busy"})  # no news
        async with stored.client("ben", info={"name": "Benjamin"}) as tab:
            await tab.subscribe(DESK)
            await ann.silence()
            assert await shown(ann) == {"user": "ben", "connections": 2, "info": {"status": "busy"}, "updated": True}
            await update(tab, {"status": "free"})  # the last writer counts
            await ann.expect("presence.joined", data={"user": "ben", "info": {"status": "free"}, "updated": True})
        await ben.ask("refresh", token=token("ben", info={"name": "B."}))
        await ann.expect("presence.joined", data={"user": "ben", "info": {"name": "B."}})
        assert await shown(ann) == {"user": "ben", "connections": 2, "info": {"name": "B."}}


async def test_update_with_an_id_is_acknowledged_and_without_one_only_refused() -> None:
    async with serving() as server, server.client("ben") as ben:
        await ben.subscribe(DESK)
        await ben.send(type="presence.update", id="p-2", channel=DESK, data={"status": "busy"})
        await ben.expect("ack", id="p-2")
        await ben.send(type="presence.update", channel=DESK, data={"status": "free"})
        await ben.send(type="presence.update", channel=DESK, data={"status": 1})
        refused = await ben.until("error")
        assert "id" not in refused
        assert (refused["code"], refused["details"]["path"]) == ("invalid_data", "$.data.status")
        assert (await shown(ben))["info"] == {"status": "free"}


@pytest.mark.parametrize(
    ("channel", "data", "code", "path"),
    [
        ("desk:1", {"status": "busy", "more": 1}, "invalid_data", "$.data"),
        ("desk:2", {"status": "busy"}, "not_subscribed", "$.channel"),
        ("room:1", {"status": "busy"}, "unknown_event", "$.type"),
        ("board:1", {"status": "busy"}, "unknown_event", "$.type"),
        ("shelf:1", {}, "forbidden", "$.type"),
        ("nowhere", {}, "unknown_channel", "$.channel"),
        ("desk:1", {"status": "x" * 1100}, "too_big", "$.data"),
    ],
)
async def test_update_is_refused_with_code_and_path(channel: str, data: Any, code: str, path: str) -> None:
    grants = [{"channel": "shelf:*", "rights": ["subscribe", "presence"]}, "room:*"]
    async with serving() as server, server.client("ben", grants=grants) as ben:
        for name in (DESK, "room:1", "shelf:1"):
            await ben.subscribe(name)
        refused = await update(ben, data, channel)
        assert (refused["type"], refused["code"], refused["details"]["path"]) == ("error", code, path)
        assert "info" not in await shown(ben)


async def test_update_of_the_largest_size_is_accepted_and_a_larger_one_is_counted() -> None:
    largest = {"status": "\u00e9" * 8}
    size = len(json.dumps(largest))
    async with serving(presence={"update_bytes": size}) as server, server.client("ben") as ben:
        await ben.subscribe(DESK)
        assert (await update(ben, largest))["type"] == "ack"
        refused = await update(ben, {"status": largest["status"] + "x"})
        assert (refused["code"], refused["details"]["limit"]) == ("too_big", size)
        assert await server.metric("limit_hits_total", limit="presence_update_bytes") == 1


async def test_update_costs_a_message() -> None:
    async with (
        serving(limits={"connection_rate": {"per_second": 0.001, "burst": 3}}) as server,
        server.client("ben") as ben,
    ):
        await ben.subscribe(DESK)
        replies = [await update(ben, {"status": str(number)}) for number in range(6)]
        assert [reply["type"] for reply in replies] == ["ack"] * 3 + ["error"] * 3
        assert {reply["code"] for reply in replies[3:]} == {"rate_limited"}


async def test_anonymous_client_sets_no_info() -> None:
    async with serving(auth={"anonymous": True}) as server:
        nobody = await Client.open(server, hello=False)
        await nobody.send(type="hello")
        await nobody.expect("welcome")
        assert (await update(nobody, {}))["code"] == "forbidden"
        await nobody.close()


async def test_large_channel_gets_no_updates() -> None:
    async with serving(presence={"members": 1}) as server, server.client("ann") as ann, server.client("ben") as ben:
        await ann.subscribe(DESK)
        await ben.subscribe(DESK)
        await ann.until("presence.count")
        assert (await update(ben, {"status": "busy"}))["type"] == "ack"
        await ann.silence()
        assert (await ann.ask("presence", channel=DESK))["presence"] == {"count": 2}


async def test_client_without_the_right_to_presence_sees_no_updates() -> None:
    blind = [{"channel": "shelf:*", "rights": ["subscribe", "publish"]}]
    async with (
        serving() as server,
        server.client("ann", grants=blind) as ann,
        server.client("ben", grants=["shelf:*"]) as ben,
        server.client("cat", grants=["shelf:*"]) as cat,
    ):
        for client in (ann, ben, cat):
            await client.subscribe("shelf:1")
        assert (await update(ben, [1], "shelf:1"))["type"] == "ack"
        await cat.until("presence.joined", data={"user": "ben", "info": [1], "updated": True})
        assert (await update(ann, [2], "shelf:1"))["type"] == "ack"
        await cat.until("presence.joined", data={"user": "ann", "info": [2], "updated": True})
        await ann.silence()
