"""Taking back what was published: one event, a channel, a user."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import structlog

from service.realtime import remover
from tests.integration.cluster import cluster
from tests.support.api_client import Answer, ask, get
from tests.support.harness import OTHER_API_KEY, Running, serving
from tests.support.shared_broker import Bus

pytestmark = pytest.mark.slow


def message(id: str, text: str = "x", **more: Any) -> dict[str, Any]:
    return {"type": "chat.message", "id": id, "data": {"text": text}, **more}


async def delete(server: Running, path: str) -> dict[str, Any]:
    """Returns the body of a DELETE; fails the test unless it succeeds."""
    answer = await ask(server, "DELETE", path)
    assert answer.status == 200, answer.body
    return answer.body


def position(subscribed: dict[str, Any], offset: int, id: str) -> dict[str, Any]:
    return {"epoch": subscribed["epoch"], "offset": offset, "id": id}


async def history(server: Running, channel: str) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = (await get(server, f"/channels/{channel}/history?limit=1000"))["events"]
    return events


def shown(event: dict[str, Any]) -> tuple[str, str, Any]:
    return event["type"], event["id"], event["data"]


# --- one event -----------------------------------------------------------------------------------------------------------


async def test_removed_event_is_told_to_subscribers_of_all_nodes_once(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 2) as nodes:
        first, second = (member.server for member in nodes.members)
        async with first.client() as ann, second.client("ben") as ben:
            began = await ann.subscribe("room:1")
            await ben.subscribe("room:1")
            for number in (1, 2, 3):
                await first.publish("room:1", message(f"m-{number}", "a secret", **{"from": "eve"}))
            reply = await delete(first, "/channels/room:1/events/m-2")
            assert reply == {"channel": "room:1", "id": "m-2", "epoch": began["epoch"], "offset": 2}
            assert await delete(second, "/channels/room:1/events/m-2") == reply
            await first.publish("room:1", message("m-4"))
            for client in (ann, ben):
                await client.until("chat.message", id="m-3")
                told = await client.expect("event.removed", offset=4, **{"from": None})
                assert told["data"] == {"id": "m-2", "offset": 2}
                await client.expect("chat.message", id="m-4", offset=5)
            for server in (first, second):
                events = await history(server, "room:1")
                assert [event["offset"] for event in events] == [1, 2, 3, 4, 5]
                assert shown(events[1]) == ("event.removed", "m-2", {"id": "m-2", "offset": 2})
                assert events[1]["from"] is None


async def test_client_that_was_away_learns_of_a_removal_by_resuming(server: Running) -> None:
    for number in (1, 2, 3):
        await server.publish("room:1", message(f"m-{number}"))
    async with server.client() as ann:
        began = await ann.subscribe("room:1")
    await delete(server, "/channels/room:1/events/m-1")
    await delete(server, "/channels/room:1/events/m-3")
    async with server.client() as ann:
        back = await ann.subscribe("room:1", since=position(began, 3, "m-3"))
        assert back["recovered"] is True
        assert [event["data"] for event in back["events"]] == [{"id": "m-1", "offset": 1}, {"id": "m-3", "offset": 3}]
        assert [event["offset"] for event in back["events"]] == [4, 5]
    async with server.client() as ann:  # a client that has seen less gets the tombstone in the place of the event
        back = await ann.subscribe("room:1", since=position(began, 2, "m-2"))
        assert [shown(event)[:2] for event in back["events"]] == [
            ("event.removed", "m-3"),
            ("event.removed", back["events"][1]["id"]),
            ("event.removed", back["last"]),
        ]


async def test_removed_event_stays_a_duplicate_for_its_publisher(server: Running) -> None:
    await server.publish("room:1", message("m-1", "a secret"))
    await delete(server, "/channels/room:1/events/m-1")
    again = await server.publish("room:1", message("m-1", "a secret"))
    assert (again["offset"], again["duplicate"]) == (1, True)
    assert "secret" not in json.dumps(await history(server, "room:1"))


async def test_remove_finds_the_newest_of_an_id_or_the_one_at_its_offset(server: Running) -> None:
    for sender in ("ann", "ben", "eve"):
        await server.publish("room:1", message("same", sender, **{"from": sender}))
    assert (await delete(server, "/channels/room:1/events/same"))["offset"] == 3
    assert (await delete(server, "/channels/room:1/events/same?offset=1"))["offset"] == 1
    events = await history(server, "room:1")
    assert [event["from"] for event in events[:3]] == [None, "ben", None]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("room:1/events/unknown", 404, "not_found"),
        ("room:1/events/m-1?offset=2", 404, "not_found"),
        ("room:1/events/m-1?offset=9", 404, "not_found"),
        ("room:1/events/m-1?offset=0", 400, "invalid_request"),
        ("room:1/events/m-1?from=ann", 400, "invalid_request"),
        ("room:1/events/%C3%A4", 400, "invalid_request"),
        (f"room:1/events/{'x' * 65}", 400, "invalid_request"),
        ("board:1/events/m-1", 404, "not_found"),
        ("nowhere/events/m-1", 404, "unknown_channel"),
        ("nowhere/history", 404, "unknown_channel"),
    ],
)
async def test_remove_of_what_there_is_not_is_refused(server: Running, path: str, status: int, code: str) -> None:
    await server.publish("room:1", [message("m-1"), message("m-2")])
    (await ask(server, "DELETE", f"/channels/{path}")).refused(status, code)
    assert [event["type"] for event in await history(server, "room:1")] == ["chat.message"] * 2


async def test_remove_of_what_tells_of_a_removal_is_refused(server: Running) -> None:
    await server.publish("room:1", message("m-1"))
    await delete(server, "/channels/room:1/events/m-1")
    _, told = await history(server, "room:1")
    (await ask(server, "DELETE", f"/channels/room:1/events/{told['id']}")).refused(404, "not_found")


async def test_remove_searches_a_bounded_number_of_events(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remover, "PAGE_EVENTS", 5)
    monkeypatch.setattr(remover, "MAX_SEARCHED", 10)
    await server.publish("room:1", [message(f"m-{number}") for number in range(1, 21)])
    assert (await delete(server, "/channels/room:1/events/m-12"))["offset"] == 12
    answer = await ask(server, "DELETE", "/channels/room:1/events/m-2")
    answer.refused(404, "not_found")
    assert "without `offset`" in answer.body["detail"]
    assert (await delete(server, "/channels/room:1/events/m-2?offset=2"))["offset"] == 2


async def test_client_cannot_publish_the_type_of_a_removal(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        reply = await ann.ask("event.removed", channel="room:1", data={"id": "m-1", "offset": 1})
        assert (reply["type"], reply["code"]) == ("error", "unknown_event")


# --- a channel -----------------------------------------------------------------------------------------------------------


async def test_purge_resyncs_subscribers_of_all_nodes_in_a_new_epoch(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 2) as nodes:
        first, second = (member.server for member in nodes.members)
        async with first.client() as ann, second.client("ben") as ben:
            began = await ann.subscribe("room:1")
            await ben.subscribe("room:1")
            await first.publish("room:1", message("m-1", "a secret"))
            await first.publish("room:1", {"type": "chat.pinned", "data": {"slot": "top", "text": "a secret"}})
            for client in (ann, ben):
                await client.until("chat.pinned")
            purged = await delete(second, "/channels/room:1/history")
            assert (purged["offset"], purged["epoch"] != began["epoch"]) == (1, True)
            for client in (ann, ben):
                resync = await client.until("subscribed")
                assert (resync["id"], resync["epoch"], resync["offset"]) == (None, purged["epoch"], 1)
                assert (resync["events"], resync["state"], resync["recovered"]) == ([], [], False)
            await first.publish("room:1", message("m-2"))
            for client in (ann, ben):
                await client.expect("chat.message", id="m-2", offset=2)
        assert [event["id"] for event in await history(second, "room:1")] == ["m-2"]
        assert (await get(first, "/channels/room:1/state"))["state"] == []


async def test_purge_of_an_empty_channel_changes_nothing(server: Running) -> None:
    assert await delete(server, "/channels/room:1/history") == {"channel": "room:1", "offset": 0}


# --- a user --------------------------------------------------------------------------------------------------------------


async def erase(server: Running, user: str) -> tuple[int, int, int]:
    """Erases a user. Returns the number of events, of channels and of requests."""
    removed = channels = requests = 0
    cursor: str | None = ""
    while cursor is not None:
        page = await delete(server, f"/users/{user}" + (f"?cursor={quote(cursor)}" if cursor else ""))
        removed, channels, requests = removed + page["removed"], channels + page["channels"], requests + 1
        cursor = page.get("cursor")
    return removed, channels, requests


async def test_erased_user_leaves_tombstones_in_all_channels_of_the_tenant(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 1) as nodes:
        server = nodes.members[0].server
        async with server.client("ben") as ben:
            await ben.subscribe("room:1")
            for channel in ("room:1", "room:2"):
                for number, sender in enumerate(("ann", "ben", "ann", None), 1):
                    await server.publish(channel, message(f"m-{number}", "x", **({"from": sender} if sender else {})))
            assert await erase(server, "ann") == (4, 2, 1)
            told = await ben.until("event.removed")
            assert told["data"] == {"id": "m-1", "offset": 1, "more": [{"id": "m-3", "offset": 3}]}
        for channel in ("room:1", "room:2"):
            events = await history(server, channel)
            assert [event["from"] for event in events] == [None, "ben", None, None, None]
            assert [event["type"].partition(".")[0] for event in events] == ["event", "chat", "event", "chat", "event"]
        assert await erase(server, "ann") == (0, 2, 1)
        assert await erase(server, "nobody") == (0, 2, 1)


async def test_erasure_works_in_bounded_pages(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remover, "PAGE_EVENTS", 4)
    monkeypatch.setattr(remover, "MAX_EXAMINED_EVENTS", 10)
    monkeypatch.setattr(remover, "MAX_EXAMINED_CHANNELS", 2)
    for channel in range(5):
        events = [message(f"m-{number}", **{"from": "ann" if number % 2 else "ben"}) for number in range(15)]
        await server.publish(f"room:{channel}", events)
    removed, channels, requests = await erase(server, "ann")
    assert (removed, channels) == (35, 5)
    assert requests > 5
    for channel in range(5):
        assert [event["from"] for event in (await history(server, f"room:{channel}"))[:15]] == [
            None if number % 2 else "ben" for number in range(15)
        ]


@pytest.mark.parametrize("cursor", ["", "/1", "%C3%A4", "a%7Db/1", "room:1/-1", "room:1/x", "room:1/1/1", "A" * 600])
async def test_erasure_with_an_invented_cursor_is_refused(server: Running, cursor: str) -> None:
    details = (await ask(server, "DELETE", f"/users/ann?cursor={cursor}")).refused(400, "invalid_request")
    assert details["parameter"] == "cursor"


async def test_erasure_stays_in_its_tenant(server: Running) -> None:
    await server.publish("room:1", message("m-1", "theirs", **{"from": "ann"}), OTHER_API_KEY)
    assert await erase(server, "ann") == (0, 0, 1)
    assert len((await get(server, "/channels/room:1/history", key=OTHER_API_KEY))["events"]) == 1


async def test_value_is_removed_by_its_id_and_by_its_user(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus, 2) as nodes:
        first, second = (member.server for member in nodes.members)

        def pin(slot: str, id: str, sender: str) -> dict[str, Any]:
            return {"type": "chat.pinned", "id": id, "data": {"slot": slot, "text": "a secret"}, "from": sender}

        async with second.client("ben", query="?features=removal") as ben:
            began = await ben.subscribe("room:1")
            await first.publish("room:1", [pin("a", "p-1", "ann"), pin("b", "p-2", "ben"), pin("c", "p-3", "ann")])
            reply = await delete(first, "/channels/room:1/events/p-1")
            assert reply == {"channel": "room:1", "id": "p-1", "epoch": began["epoch"], "rev": 1}
            (await ask(first, "DELETE", "/channels/room:1/events/p-1")).refused(404, "not_found")
            assert await erase(second, "ann") == (1, 1, 1)
            for key, rev in (("a", 4), ("c", 5)):
                removed = await ben.until("chat.pinned", removed=True)
                assert (removed["key"], removed["rev"], removed["from"]) == (key, rev, None)
        again = await first.publish("room:1", pin("a", "p-1", "ann"))
        assert (again["rev"], again["duplicate"]) == (1, True)
        for server in (first, second):
            state = (await get(server, "/channels/room:1/state"))["state"]
            assert [event["id"] for event in state] == ["p-2"]


# --- costs and traces ------------------------------------------------------------------------------------------------------


async def test_removals_are_counted_and_logged_without_data(server: Running) -> None:
    with structlog.testing.capture_logs() as logs:
        await server.publish("room:1", [message(f"m-{number}", "a secret", **{"from": "ann"}) for number in (1, 2, 3)])
        await delete(server, "/channels/room:1/events/m-1")
        await delete(server, "/channels/room:1/events/m-1")
        await erase(server, "ann")
        await delete(server, "/channels/room:1/history")
    commands = [{**log} for log in logs if log["event"] == "backend_command"]
    assert [(log["command"], log["by"], log["tenant"]) for log in commands] == [
        (command, "tests", "default") for command in ("remove_event", "remove_event", "erase_user", "purge_channel")
    ]
    assert "secret" not in str(logs)
    assert await server.metric("removed_events_total") == 3
    assert await server.metric("purges_total") == 1


async def test_removal_that_reads_much_is_charged_to_the_key() -> None:
    async with serving(limits={"api_rate_per_key": {"per_second": 0.001, "burst": 6}}) as server:
        await server.publish("room:1", [message(f"m-{number}", **{"from": "ann"}) for number in range(50)])
        answers: list[Answer] = [await ask(server, "DELETE", "/channels/room:1/events/unknown") for _ in range(5)]
        assert [answer.status for answer in answers] == [404] * 3 + [429] * 2, "each costs 1, and a half for 50 events"
