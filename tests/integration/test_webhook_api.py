"""Webhooks over the backend API: what endpoints wait for, what they were told, dead letters, replays. With real receivers."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest
from aiohttp import web

from service.core.webhooks import new_entry_id
from service.web.api import openapi
from service.web.api.routes import OPERATIONS
from tests.contract.redis_stage import new_prefix
from tests.stores import STORES, broker_of
from tests.stores.process import until
from tests.support.api_client import ask, get
from tests.support.backend import serving_backend
from tests.support.harness import DEADLINE, OTHER_API_KEY, Running, eventually
from tests.support.webhook_api import QUIET, delivered, letters, say, telling, until_dead, until_done

DESCRIPTION = openapi.describe(OPERATIONS)


async def page(server: Running, queue: int = 0, **query: Any) -> dict[str, Any]:
    """A page of entries."""
    options = "".join(f"&{name}={value}" for name, value in query.items())
    return await get(server, f"/webhooks/archive/entries?queue={queue}{options}")


async def entries(server: Running, queues: int = 4, **query: Any) -> list[dict[str, Any]]:
    """All entries of all queues."""
    found: list[dict[str, Any]] = []
    for queue in range(queues):
        after: dict[str, Any] = {}
        while True:
            body = await page(server, queue, **query, **after)
            found += body["entries"]
            after = {"after": body["next"].replace(":", "%3A")}
            if not body["more"]:
                break
    return found


async def has(server: Running, count: int) -> None:
    """Waits until the first queue has so many entries that may be read."""

    async def there() -> bool:
        return len(await entries(server, 1)) >= count

    await until(there, f"{count} entries", within=DEADLINE)


def texts_of(found: list[dict[str, Any]]) -> list[str]:
    return [entry["event"]["data"]["text"] for entry in found]


def fits(operation: str, body: dict[str, Any]) -> None:
    """Fails the test unless a reply is as the OpenAPI document describes it."""
    [responses] = [
        described["responses"]
        for methods in DESCRIPTION["paths"].values()
        for described in methods.values()
        if described["operationId"] == operation
    ]
    schema = responses["200"]["content"]["application/json"]["schema"]
    jsonschema_rs.Draft202012Validator({**schema, "components": DESCRIPTION["components"]}).validate(body)


# --- what waits -------------------------------------------------------------------------------------------------------


async def test_service_without_webhooks_lists_none_and_knows_none(server: Running) -> None:
    body = await get(server, "/webhooks")
    assert (body["tenant"], body["endpoints"]) == ("default", [])
    answer = await ask(server, "GET", "/webhooks/archive/entries")
    assert answer.refused(404, "not_found") == {"parameter": "endpoint"}


async def test_list_shows_what_waits_in_each_queue() -> None:
    async with telling(queues=2) as server:
        body = await get(server, "/webhooks")
        assert [(one["endpoint"], one["sends"]) for one in body["endpoints"]] == [("archive", False)]
        assert [queue["queue"] for queue in body["endpoints"][0]["queues"]] == [0, 1]
        assert all("oldest_at" not in queue for queue in body["endpoints"][0]["queues"])
    async with serving_backend() as backend:

        async def away(_: web.Request) -> web.Response:
            return web.Response(status=503)

        backend.reply = away
        async with telling(backend.endpoint("archive"), queues=1) as server:
            await say(server, "room:1", "a", "b")
            found: dict[str, Any] = {}

            async def failed() -> bool:
                [endpoint] = (await get(server, "/webhooks"))["endpoints"]
                found.update(endpoint["queues"][0], sends=endpoint["sends"])
                return "failure" in found

            await until(failed, "a failed delivery", within=DEADLINE)
            assert found["sends"] is True
            fits("listWebhooks", await get(server, "/webhooks"))
            assert found["waiting"] >= 2
            assert "503" in found["failure"]
            assert found["owner"]
            assert abs((await get(server, "/webhooks"))["at"] - found["oldest_at"]) < 60_000


async def test_tenant_sees_only_its_own_endpoints() -> None:
    other = {"name": "archive", "tenants": ["other"]}
    more = {"name": "more", "tenants": ["other"]}
    async with telling(QUIET, other, more) as server:
        await say(server, "room:1", "mine")
        assert [one["endpoint"] for one in (await get(server, "/webhooks"))["endpoints"]] == ["archive"]
        body = await get(server, "/webhooks", key=OTHER_API_KEY)
        assert (body["tenant"], [one["endpoint"] for one in body["endpoints"]]) == ("other", ["archive", "more"])
        (await ask(server, "GET", "/webhooks/more/entries")).refused(404, "not_found")
        for queue in range(4):
            seen = await get(server, f"/webhooks/archive/entries?queue={queue}", key=OTHER_API_KEY)
            assert seen["entries"] == []


# --- entries ----------------------------------------------------------------------------------------------------------


async def test_entries_come_in_order_page_by_page_and_again() -> None:
    async with telling(queues=1) as server:
        ids = await say(server, "room:1", "a", "b", "c", "d", "e")
        await has(server, 5)
        first = await page(server, limit=2)
        fits("getWebhookEntries", first)
        assert (texts_of(first["entries"]), first["more"]) == (["a", "b"], True)
        second = await page(server, limit=10, after=first["next"])
        assert (texts_of(second["entries"]), second["more"]) == (["c", "d", "e"], False)
        assert (await page(server, after=second["next"]))["entries"] == []
        whole = await entries(server, 1)
        assert [entry["event"]["id"] for entry in whole] == ids
        assert [entry["event"]["offset"] for entry in whole] == [1, 2, 3, 4, 5]
        assert len({entry["id"] for entry in whole}) == 5
        assert await entries(server, 1) == whole, "reading changes nothing"
        await say(server, "room:1", "f")
        await has(server, 6)
        assert texts_of((await page(server, after=second["next"]))["entries"]) == ["f"]


async def test_entries_since_a_moment_leave_out_earlier_ones() -> None:
    async with telling(queues=1) as server:
        await say(server, "room:1", "a", "b")
        await has(server, 2)
        [_, last] = await entries(server, 1)
        found = await entries(server, 1, since=last["at"])
        assert "b" in texts_of(found)
        assert await entries(server, 1, since=last["at"] + 60_000) == []


async def test_entries_are_read_beside_a_receiver_that_gets_all_of_them() -> None:
    async with serving_backend() as backend, telling(backend.endpoint("archive"), queues=1) as server:
        await say(server, "room:1", "a", "b", "c")
        await has(server, 3)
        await eventually(lambda: len(delivered(backend)) >= 3)
        assert texts_of(delivered(backend)) == ["a", "b", "c"]
        assert await entries(server, 1) == delivered(backend)


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("queue=64", "queue"),
        ("queue=-1", "queue"),
        ("after=yesterday", "after"),
        ("after=e%3A1%3A2.x", "after"),
        ("after=e%3A-1", "after"),
        ("after=e%3A18446744073709551616", "after"),
        ("after=e%3A%D9%A1", "after"),
        ("since=-1", "since"),
        ("since=now", "since"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("page=2", "page"),
    ],
)
async def test_entries_with_a_wrong_query_are_refused(query: str, parameter: str) -> None:
    async with telling() as server:
        details = (await ask(server, "GET", f"/webhooks/archive/entries?{query}")).refused(400, "invalid_request")
        assert details["parameter"] == parameter


async def test_queue_that_there_is_not_is_not_found() -> None:
    async with telling(queues=2) as server:
        assert (await page(server, 1))["entries"] == []
        answer = await ask(server, "GET", "/webhooks/archive/entries?queue=2")
        assert answer.refused(404, "not_found") == {"parameter": "queue"}


# --- dead letters -----------------------------------------------------------------------------------------------------


async def test_dead_letters_are_listed_replayed_and_dropped() -> None:
    async with serving_backend() as backend, telling(backend.endpoint("archive"), queues=1, attempts=1) as server:

        async def refuse(_: web.Request) -> web.Response:
            return web.Response(status=422)

        backend.reply = refuse
        await say(server, "room:1", "a", "b", "c")
        found = await until_dead(server, 3)
        assert texts_of([letter["entry"] for letter in found]) == ["a", "b", "c"]
        assert all("422" in letter["reason"] and letter["queue"] == 0 for letter in found)

        first = await get(server, "/webhooks/archive/dead-letters?limit=2")
        fits("getWebhookDeadLetters", first)
        assert first["dead_letters"] == found[:2]
        last = await get(server, f"/webhooks/archive/dead-letters?limit=2&after={first['next']}")
        assert (last["dead_letters"], "next" in last) == (found[2:], False)

        ids = [letter["entry"]["id"] for letter in found]
        dropped = await ask(server, "POST", "/webhooks/archive/drop", {"ids": [ids[0], new_entry_id()]})
        assert dropped.body == {"endpoint": "archive", "dropped": 1}
        backend.reply = {}
        backend.questions.clear()
        replayed = await ask(server, "POST", "/webhooks/archive/replay", {"ids": [ids[1]]})
        assert replayed.body == {"endpoint": "archive", "replayed": 1}
        await eventually(lambda: len(delivered(backend)) >= 1)
        assert delivered(backend) == [found[1]["entry"]], "with the same id"
        assert [letter["entry"]["id"] for letter in await letters(server)] == [ids[2]]

        replayed = await ask(server, "POST", "/webhooks/archive/replay", {"dead_letters": True})
        assert replayed.body["replayed"] == 1
        await eventually(lambda: len(delivered(backend)) >= 2)
        assert [entry["id"] for entry in delivered(backend)] == ids[1:]
        assert await letters(server) == []


async def test_all_dead_letters_are_dropped() -> None:
    async with serving_backend() as backend, telling(backend.endpoint("archive"), queues=1, attempts=1) as server:

        async def refuse(_: web.Request) -> web.Response:
            return web.Response(status=400)

        backend.reply = refuse
        await say(server, "room:1", "a", "b")
        await until_dead(server, 2)
        assert (await ask(server, "POST", "/webhooks/archive/drop", {"dead_letters": True})).body["dropped"] == 2
        assert (await ask(server, "POST", "/webhooks/archive/drop", {"dead_letters": True})).body["dropped"] == 0
        assert await letters(server) == []


async def test_replay_since_a_moment_delivers_again_with_the_same_ids() -> None:
    async with serving_backend() as backend, telling(backend.endpoint("archive"), queues=1) as server:
        await say(server, "room:1", "a", "b")
        await eventually(lambda: len(delivered(backend)) >= 2)
        await until_done(server)
        before = delivered(backend)
        answer = await ask(server, "POST", "/webhooks/archive/replay", {"since": before[0]["at"]})
        assert answer.body["replayed"] == 2
        await eventually(lambda: len(delivered(backend)) >= 4)
        assert delivered(backend)[2:] == before
        late = await ask(server, "POST", "/webhooks/archive/replay", {"since": before[1]["at"] + 60_000})
        assert late.body["replayed"] == 0


async def test_entry_that_is_kept_is_replayed_by_its_id() -> None:
    async with serving_backend() as backend, telling(backend.endpoint("archive"), queues=1) as server:
        await say(server, "room:1", "a", "b")
        await eventually(lambda: len(delivered(backend)) >= 2)
        await until_done(server)
        [_, second] = delivered(backend)
        answer = await ask(server, "POST", "/webhooks/archive/replay", {"ids": [second["id"]]})
        assert answer.body["replayed"] == 1
        await eventually(lambda: len(delivered(backend)) >= 3)
        assert delivered(backend)[2] == second


@pytest.mark.slow
@pytest.mark.parametrize("store", STORES)
async def test_every_store_keeps_what_the_api_reads_and_replays(store: str) -> None:
    accepts = False

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=204 if accepts else 422)

    async with broker_of(store) as broker, serving_backend() as backend:
        backend.reply = answer
        shared = {**broker, "prefix": new_prefix()} if store != "memory" else broker
        endpoint = backend.endpoint("archive")
        async with telling(endpoint, broker=shared, queues=2, attempts=1) as server:
            ids = [*await say(server, "room:1", "a", "b"), *await say(server, "room:2", "c")]
            dead = await until_dead(server, 3)
            assert sorted(letter["entry"]["event"]["id"] for letter in dead) == sorted(ids)
            found = await entries(server, 2)
            assert sorted(entry["event"]["id"] for entry in found) == sorted(ids)
            first = dead[0]["entry"]
            assert (await ask(server, "POST", "/webhooks/archive/drop", {"ids": [first["id"]]})).body["dropped"] == 1
            accepts = True
            backend.questions.clear()
            replay = "/webhooks/archive/replay"
            assert (await ask(server, "POST", replay, {"dead_letters": True})).body["replayed"] == 2
            await eventually(lambda: len(delivered(backend)) >= 2, lambda: delivered(backend))
            assert await letters(server) == []
            await until_done(server)
            assert (await ask(server, "POST", replay, {"ids": [first["id"]]})).body["replayed"] == 1
            await eventually(lambda: len(delivered(backend)) >= 3, lambda: delivered(backend))
            assert sorted(entry["id"] for entry in delivered(backend)) == sorted(
                letter["entry"]["id"] for letter in dead
            )


@pytest.mark.parametrize(
    ("command", "body", "path"),
    [
        ("replay", {}, "$"),
        ("replay", {"since": 1, "dead_letters": True}, "$"),
        ("replay", {"ids": ["wh_q2V0pYH3c0Zl1cXo"], "since": 1}, "$"),
        ("replay", {"ids": []}, "$.ids"),
        ("replay", {"ids": ["m-1"]}, "$.ids[0]"),
        ("replay", {"ids": ["wh_q2V0pYH3c0Zl1cXo"] * 1001}, "$.ids"),
        ("replay", {"since": -1}, "$.since"),
        ("replay", {"dead_letters": False}, "$.dead_letters"),
        ("replay", {"until": 1}, "$.until"),
        ("drop", {}, "$"),
        ("drop", {"ids": ["wh_q2V0pYH3c0Zl1cXo"], "dead_letters": True}, "$"),
        ("drop", {"since": 1}, "$.since"),
    ],
)
async def test_command_with_a_wrong_body_is_refused(command: str, body: dict[str, Any], path: str) -> None:
    async with telling() as server:
        answer = await ask(server, "POST", f"/webhooks/archive/{command}", body)
        assert answer.refused(400, "invalid_message").get("path", "$") == path


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "entries", None),
        ("GET", "dead-letters", None),
        ("POST", "replay", {"dead_letters": True}),
        ("POST", "drop", {"dead_letters": True}),
    ],
)
async def test_unknown_endpoint_is_not_found(method: str, path: str, body: Any) -> None:
    async with telling() as server:
        details = (await ask(server, method, f"/webhooks/nobody/{path}", body)).refused(404, "not_found")
        assert details == {"parameter": "endpoint"}
