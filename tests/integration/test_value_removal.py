"""Removed values: who may remove, who is told, and how a node learns of removals that it has missed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.integration.test_gap_recovery import Stage, staged
from tests.support.api_client import ask
from tests.support.harness import Client, Running, serving

DOC = "doc:1"
KNOWS = "?features=removal"


@pytest.fixture
async def server() -> AsyncIterator[Running]:
    async with serving() as server:
        yield server
        await server.at_rest()


async def cursor(client: Client, key: str, **more: Any) -> int:
    """Publishes a value, and returns its rev."""
    reply = await client.ask("doc.cursor", channel=DOC, data={"user": key, **more})
    assert reply["type"] == "ack", reply
    return int(reply["rev"])


async def remove(client: Client, key: str) -> int:
    """Removes a value, and returns the rev of the removal."""
    reply = await client.ask("doc.cursor", channel=DOC, key=key, removed=True)
    assert reply["type"] == "ack", reply
    return int(reply["rev"])


async def test_removal_reaches_only_clients_that_have_announced_it(server: Running) -> None:
    async with AsyncExitStack() as stack:
        knowing = [await stack.enter_async_context(server.client(f"k{n}", query=KNOWS)) for n in range(15)]
        others = [await stack.enter_async_context(server.client(f"o{n}")) for n in range(15)]
        ann = await stack.enter_async_context(server.client("ann"))
        for client in (ann, *knowing, *others):
            await client.subscribe(DOC)
        assert await cursor(ann, "ann") == 1
        assert await remove(ann, "ann") == 2
        assert await cursor(ann, "ben") == 3
        for client in knowing:
            await client.expect("doc.cursor", rev=1, key="ann")
            removed = await client.expect("doc.cursor", rev=2)
            assert removed == {
                "type": "doc.cursor",
                "channel": DOC,
                "id": removed["id"],
                "at": removed["at"],
                "from": "ann",
                "rev": 2,
                "key": "ann",
                "removed": True,
            }
            await client.expect("doc.cursor", rev=3, key="ben")
            await client.silence()
        for client in others:
            await client.expect("doc.cursor", rev=1)
            await client.expect("doc.cursor", rev=3)
            await client.silence()
        assert await server.metric("messages_out_total", type="doc.cursor") == 31 + 15 + 31


async def test_removed_value_is_in_no_later_state(server: Running) -> None:
    async with server.client("ann") as ann, server.client("ben", query=KNOWS) as ben:
        await ann.subscribe(DOC)
        for key in ("ann", "eve"):
            await cursor(ann, key)
        await remove(ann, "ann")
        assert [value["key"] for value in (await ben.subscribe(DOC))["state"]] == ["eve"]
        state = await ask(server, "GET", f"/channels/{DOC}/state")
        assert [value["key"] for value in state.body["state"]] == ["eve"]


async def test_backend_removes_a_value(server: Running) -> None:
    async with server.client("ann", query=KNOWS) as ann:
        await ann.subscribe(DOC)
        await cursor(ann, "ann")
        removal = {"type": "doc.cursor", "key": "ann", "removed": True, "id": "r-1"}
        first = await ask(server, "POST", f"/channels/{DOC}/events", removal)
        again = await ask(server, "POST", f"/channels/{DOC}/events", [removal])
        assert (first.status, first.body["rev"], first.body["duplicate"]) == (200, 2, False)
        assert [(result["rev"], result["duplicate"]) for result in again.body["results"]] == [(2, True)]
        removed = await ann.until("doc.cursor", id="r-1")
        assert (removed["from"], removed["removed"]) == (None, True)
        await ann.silence()


@pytest.mark.parametrize(
    ("body", "status", "code", "path"),
    [
        ({"type": "doc.cursor", "removed": True}, 422, "invalid_key", "$.key"),
        ({"type": "doc.cursor", "key": "a", "removed": True, "data": {}}, 400, "invalid_message", "$.data"),
        ({"type": "doc.cursor", "key": "a", "removed": False}, 400, "invalid_message", "$.removed"),
        ({"type": "doc.cursor", "key": "a"}, 400, "invalid_message", "$.data"),
        ({"type": "doc.note", "key": "a", "removed": True}, 404, "unknown_event", "$.type"),
    ],
)
async def test_backend_removal_is_refused(
    server: Running, body: dict[str, Any], status: int, code: str, path: str
) -> None:
    answer = await ask(server, "POST", f"/channels/{DOC}/events", body)
    assert (answer.status, answer.body["code"], answer.body["details"]["path"]) == (status, code, path)


async def test_backend_removal_of_a_type_that_is_not_removable_is_refused(server: Running) -> None:
    answer = await ask(
        server, "POST", "/channels/board:1/events", {"type": "ticker.price", "key": "A", "removed": True}
    )
    assert (answer.status, answer.body["code"], answer.body["details"]["path"]) == (403, "forbidden", "$.removed")


@pytest.mark.parametrize(
    ("fields", "code", "path"),
    [
        ({"key": "a", "removed": True}, "not_subscribed", "$.channel"),
        ({"removed": True}, "invalid_message", "$.key"),
        ({"key": "a", "removed": True, "data": {}}, "invalid_message", "$.data"),
        ({"key": "a", "removed": False, "data": {"user": "a"}}, "invalid_message", "$.removed"),
        ({"key": "a", "removed": 1, "data": {"user": "a"}}, "invalid_message", "$.removed"),
        ({"key": "", "removed": True}, "invalid_message", "$.key"),
    ],
)
async def test_removal_of_a_client_is_refused(server: Running, fields: dict[str, Any], code: str, path: str) -> None:
    async with server.client("ann") as ann:
        reply = await ann.ask("doc.cursor", channel=DOC, **fields)
        assert (reply["type"], reply["code"], reply["details"]["path"]) == ("error", code, path)


async def test_repeated_key_in_a_removal_is_malformed(server: Running) -> None:
    async with server.client("ann") as ann:
        await ann.subscribe(DOC)
        await ann.raw(f'{{"type":"doc.cursor","id":"r","channel":"{DOC}","key":"a","removed":true,"key":"b"}}')
        await ann.expect("error", id="r", code="malformed")


# --- conditional publishes ----------------------------------------------------------------------------------------------


async def test_publish_with_another_rev_is_a_conflict(server: Running) -> None:
    async with server.client("ann") as ann, server.client("ben") as ben:
        for client in (ann, ben):
            await client.subscribe(DOC)
        first = await ann.ask("doc.cursor", channel=DOC, data={"user": "a"}, if_rev=0)
        assert first["rev"] == 1
        late = await ben.ask("doc.cursor", channel=DOC, data={"user": "a"}, if_rev=0)
        assert (late["code"], late["details"], late["retryable"]) == (
            "conflict",
            {"path": "$.if_rev", "rev": 1},
            False,
        )
        second = await ben.ask("doc.cursor", channel=DOC, data={"user": "a"}, if_rev=1)
        assert second["rev"] == 2
        refused = await ann.ask("doc.cursor", channel=DOC, key="a", removed=True, if_rev=1)
        assert refused["details"]["rev"] == 2
        removed = await ann.ask("doc.cursor", channel=DOC, key="a", removed=True, if_rev=2)
        assert removed["rev"] == 3
        assert await server.metric("publishes_total", delivery="latest", outcome="refused") == 2


async def test_backend_publish_with_another_rev_is_a_conflict(server: Running) -> None:
    path = f"/channels/{DOC}/events"
    event = {"type": "doc.cursor", "data": {"user": "a"}, "if_rev": 0, "id": "c-1"}
    assert (await ask(server, "POST", path, event)).body["rev"] == 1
    again = await ask(server, "POST", path, event)
    assert (again.status, again.body["rev"], again.body["duplicate"]) == (200, 1, True)
    late = await ask(server, "POST", path, event | {"id": "c-2"})
    assert (late.status, late.body["code"], late.body["details"]["rev"]) == (409, "conflict", 1)
    several = await ask(server, "POST", path, [event | {"id": "c-3"}, event | {"id": "c-4", "if_rev": 1}])
    assert several.body["results"][0]["error"]["code"] == "conflict"
    assert several.body["results"][1]["rev"] == 2


@pytest.mark.parametrize(
    ("event", "path"),
    [
        ({"type": "chat.message", "data": {"text": "hi"}, "if_rev": 1}, "$.if_rev"),
        ({"type": "chat.typing", "data": {}, "if_rev": 0}, "$.if_rev"),
        ({"type": "chat.message", "data": {"text": "hi"}, "if_rev": -1}, "$.if_rev"),
        ({"type": "chat.message", "data": {"text": "hi"}, "if_rev": "1"}, "$.if_rev"),
    ],
)
async def test_if_rev_needs_a_latest_event_and_a_number(server: Running, event: dict[str, Any], path: str) -> None:
    async with server.client("ann") as ann:
        await ann.subscribe("room:1")
        kind = event.pop("type")
        reply = await ann.ask(kind, channel="room:1", **event)
        assert (reply["code"], reply["details"]["path"]) == ("invalid_message", path)
        answer = await ask(server, "POST", "/channels/room:1/events", {"type": kind, **event})
        assert (answer.status, answer.body["code"], answer.body["details"]["path"]) == (400, "invalid_message", path)


# --- what a node has missed ---------------------------------------------------------------------------------------------


async def put(stage: Stage, key: str) -> None:
    await publish(stage, {"type": "doc.cursor", "data": {"user": key}})


async def take_out(stage: Stage, key: str) -> None:
    await publish(stage, {"type": "doc.cursor", "key": key, "removed": True})


async def publish(stage: Stage, event: dict[str, Any]) -> None:
    assert (await stage.server.publish(DOC, event))["rev"]
    stage.clock.advance(0)


async def messages(stage: Stage, client: Client, count: int) -> list[tuple[Any, ...]]:
    """The next messages: key, rev, and whether the value was removed; of `subscribed` the keys of the state."""
    found: list[tuple[Any, ...]] = []
    for _ in range(count):
        await stage.turn()
        message = await client.receive()
        if message["type"] == "subscribed":
            found.append((sorted(value["key"] for value in message["state"]), message.get("recovered")))
        else:
            found.append((message["key"], message["rev"], message.get("removed", False)))
    return found


async def test_missed_removal_is_delivered_in_its_place() -> None:
    async with staged() as stage, stage.server.client("ann", query=KNOWS) as ann, stage.server.client("ben") as ben:
        for key in ("a", "b"):
            await put(stage, key)
        for client in (ann, ben):
            assert len((await client.subscribe(DOC))["state"]) == 2
        stage.broker.losing = True
        await take_out(stage, "a")
        await put(stage, "c")
        stage.broker.losing = False
        await put(stage, "d")
        assert await messages(stage, ann, 3) == [("a", 3, True), ("c", 4, False), ("d", 5, False)]
        assert await messages(stage, ben, 2) == [("c", 4, False), ("d", 5, False)]
        for client in (ann, ben):
            await client.silence()


async def test_removal_that_the_broker_has_forgotten_makes_members_get_the_state() -> None:
    async with staged() as stage, stage.server.client("ann", query=KNOWS) as ann, stage.server.client("ben") as ben:
        for key in ("a", "b"):
            await put(stage, key)
        for client in (ann, ben):
            await client.subscribe(DOC)
        stage.broker.losing = True
        await take_out(stage, "a")
        for number in range(5):  # the broker keeps as many removals as the channel has keys
            await take_out(stage, f"k-{number}")
        stage.broker.losing = False
        await put(stage, "d")
        for client in (ann, ben):
            assert await messages(stage, client, 1) == [(["b", "d"], None)]
            await client.silence()


async def test_removals_missed_in_a_channel_with_replaced_values_make_members_get_the_state() -> None:
    async with staged() as stage, stage.server.client("ann", query=KNOWS) as ann:
        await put(stage, "a")
        await ann.subscribe(DOC)
        stage.broker.losing = True
        for _ in range(2):
            await put(stage, "b")
        await take_out(stage, "a")
        stage.broker.losing = False
        await put(stage, "c")
        assert await messages(stage, ann, 1) == [(["b", "c"], None)]
        await ann.silence()
        await take_out(stage, "b")
        assert await messages(stage, ann, 1) == [("b", 6, True)]
