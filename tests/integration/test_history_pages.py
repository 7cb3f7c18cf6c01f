"""History over HTTP, and the pages that caches may keep (docs/history-pages.md)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from multidict import CIMultiDict
from yarl import URL

from service.core.page_address import PageAddress, PageSigner
from tests.stores import STORES, broker_of
from tests.support.api_client import ask, get
from tests.support.clock import FakeClock
from tests.support.harness import OTHER_API_KEY, SECRET, Running, eventually, serving, token
from tests.support.raw import ask as ask_raw
from tests.support.streams import stream_ticket

LOG = "log:1"
READER: dict[str, Any] = {"grants": ["log:*"]}
HEADERS = {"Authorization": f"Bearer {token('ann', **READER)}"}
PAGE_SECRET = "a secret of addresses, long enough for HMAC"


@dataclass
class Answer:
    """A response of a page, or of `GET /history`."""

    status: int
    headers: CIMultiDict[str]
    body: dict[str, Any]


async def fetch(server: Running, path: str, method: str = "GET", **headers: str) -> Answer:
    """Requests an address as it is."""
    async with server.http.request(method, URL(server.url + path, encoded=True), headers=headers) as response:
        body = await response.json(content_type=None) if await response.read() else {}
        return Answer(response.status, CIMultiDict(response.headers), body)


async def fill(server: Running, count: int, channel: str = LOG, id: str = "e", **options: Any) -> None:
    """Publishes so many events, each with its number."""
    for start in range(0, count, 1000):
        numbers = range(start + 1, min(count, start + 1000) + 1)
        events = [{"type": "log.entry", "id": f"{id}-{number}", "data": number} for number in numbers]
        await server.publish(channel, events, **options)


async def older_page(server: Running, channel: str = LOG, key: str | None = None) -> str:
    """The address that a reply to `history` brings."""
    options = {} if key is None else {"key": key}
    page = await get(server, f"/channels/{channel}/history?limit=100", **options)
    return str(page["older"])


def offsets(body: dict[str, Any]) -> list[int]:
    return [event["offset"] for event in body["events"]]


async def test_reader_follows_pages_to_the_start_of_the_history(server: Running) -> None:
    await fill(server, 420)
    async with server.client("ann", **READER) as ann:
        page = await ann.ask("history", channel=LOG, limit=10)
        assert (offsets(page)[0], "older" in page) == (411, False), "the page from 401 is not full"
        page = await ann.ask("history", channel=LOG, before=411, limit=10)
    seen = offsets(page)
    while "older" in page:
        page = (await fetch(server, page["older"])).body
        assert len(page["events"]) == 100
        seen = [*offsets(page), *seen]
    assert sorted(set(seen)) == list(range(1, 411))
    forward = [page]
    while "newer" in forward[-1]:
        forward.append((await fetch(server, forward[-1]["newer"])).body)
    assert [offsets(one)[0] for one in forward] == [1, 101, 201, 301], "the last page is not full, so it has no address"


async def test_every_door_gives_the_same_address_within_the_window() -> None:
    async with serving(clock=FakeClock()) as server:
        await fill(server, 200)
        async with server.client("ann", **READER, iat=None) as ann:
            by_socket = (await ann.ask("history", channel=LOG, before=201, limit=100))["older"]
        by_backend = await older_page(server)
        assert by_socket == by_backend
        assert by_backend.startswith("/history/default/log:1/")
        forward = await get(server, f"/channels/{LOG}/history?after=0&limit=100")
        assert forward["newer"].split("/")[5] == "101-200"


async def test_page_is_cacheable_for_everybody(server: Running) -> None:
    await fill(server, 200)
    path = await older_page(server)
    found = await fetch(server, path, Origin="https://anywhere.example", Cookie="a=b", Authorization="Bearer nonsense")
    assert (found.status, offsets(found.body)) == (200, list(range(1, 101)))
    assert found.headers["Cache-Control"] == "public, max-age=300, must-revalidate"
    assert found.headers["Access-Control-Allow-Origin"] == "*"
    assert not {"Vary", "Set-Cookie", "Access-Control-Allow-Credentials"} & found.headers.keys()
    assert set(found.body) == {"channel", "epoch", "events", "newer"}, "nothing of the reader, and nothing that changes"
    again = await fetch(server, path)
    assert (again.body, again.headers["ETag"]) == (found.body, found.headers["ETag"])
    head = await fetch(server, path, "HEAD")
    assert (head.status, head.headers["ETag"], head.body) == (200, found.headers["ETag"], {})


async def test_cache_that_has_the_page_gets_no_body(server: Running) -> None:
    await fill(server, 200)
    path = await older_page(server)
    tag = (await fetch(server, path)).headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        found = await fetch(server, path, **{"If-None-Match": known})
        assert (found.status, found.body, found.headers["ETag"]) == (304, {}, tag), known
        assert found.headers["Cache-Control"].startswith("public, max-age=")
    assert (await fetch(server, path, **{"If-None-Match": '"other"'})).status == 200
    assert await server.metric("history_pages_total", outcome="not_modified") == 4
    assert await server.metric("history_pages_total", outcome="served") == 2


async def test_page_changes_when_an_event_is_taken_back_and_ends_with_its_epoch(server: Running) -> None:
    await fill(server, 200)
    path = await older_page(server)
    before = await fetch(server, path)
    assert (await ask(server, "DELETE", f"/channels/{LOG}/events/e-7?offset=7")).status == 200
    after = await fetch(server, path, **{"If-None-Match": before.headers["ETag"]})
    assert (after.status, after.body["events"][6]["type"]) == (200, "event.removed")
    assert after.headers["ETag"] != before.headers["ETag"]
    assert (await ask(server, "DELETE", f"/channels/{LOG}/history")).status == 200
    await fill(server, 200, id="f")
    gone = await fetch(server, path)
    assert (gone.status, gone.body["code"], gone.headers["Cache-Control"]) == (404, "not_found", "no-store")
    new = await older_page(server)
    assert new.split("/")[4] != path.split("/")[4]
    assert (await fetch(server, new)).status == 200


@pytest.mark.slow
@pytest.mark.parametrize("store", [store for store in STORES if store != "memory"])
async def test_pages_of_a_shared_store_have_every_offset_and_end_with_their_epoch(store: str) -> None:
    async with broker_of(store) as broker, serving(broker_settings=broker) as server:
        await fill(server, 201)
        page = await get(server, f"/channels/{LOG}/history?before=151&limit=50")
        assert (await ask(server, "DELETE", f"/channels/{LOG}/events/e-50?offset=50")).status == 200
        first = (await fetch(server, page["older"])).body
        assert (offsets(first), first["events"][49]["type"]) == (list(range(1, 101)), "event.removed")
        assert not {"more", "older"} & first.keys()
        second = (await fetch(server, first["newer"])).body
        assert (offsets(second), "newer" in second) == (list(range(101, 201)), False)
        assert (await ask(server, "DELETE", f"/channels/{LOG}/history")).status == 200
        assert (await fetch(server, page["older"])).status == 404


async def test_page_that_retention_has_trimmed_has_what_is_left(server: Running) -> None:
    await fill(server, 440)
    second = (await get(server, f"/channels/{LOG}/history?before=201&limit=1"))["older"]
    first = (await fetch(server, second)).body["older"]
    for _ in range(3):
        await fill_more(server)
    assert (await fetch(server, first)).status == 404
    left = (await fetch(server, second)).body
    assert (offsets(left)[-1], "older" in left) == (200, False)
    assert offsets(left)[0] > 101


async def fill_more(server: Running) -> None:
    await server.publish(LOG, [{"type": "log.entry", "data": "more"} for _ in range(50)])


async def test_address_expires_and_no_cache_keeps_the_page_longer() -> None:
    clock = FakeClock()
    async with serving(clock=clock, history_pages={"address_ttl": 120, "max_age": 86_400}) as server:
        await fill(server, 200)
        path = await older_page(server)
        left = int(path.split("/")[6].partition(".")[0]) - clock.wall()
        assert 60 <= left <= 120
        assert (await fetch(server, path)).headers["Cache-Control"] == f"public, max-age={left:.0f}, must-revalidate"
        clock.advance(left - 1)
        assert (await fetch(server, path)).headers["Cache-Control"] == "public, max-age=1, must-revalidate"
        clock.advance(1)
        expired = await fetch(server, path)
        assert (expired.status, expired.body["code"]) == (403, "invalid_address")
        assert (await fetch(server, await older_page(server))).status == 200


async def test_changed_address_is_refused_alike_whatever_it_names(server: Running) -> None:
    await fill(server, 200)
    await fill(server, 200, key=OTHER_API_KEY)
    mine, theirs = await older_page(server), await older_page(server, key=OTHER_API_KEY)
    assert (await fetch(server, theirs)).status == 200
    answers = [
        await fetch(server, path)
        for path in (
            mine.replace("/default/", "/other/"),
            mine.rpartition(".")[0] + "." + theirs.rpartition(".")[2],
            mine.replace("log:1", "log:2"),
            mine.replace("log:1", "nowhere:1"),
            mine.replace("log:1", "log%3A1"),
            mine.replace("/1-100/", "/101-200/"),
            mine + "?bust=1",
            mine + "x",
            "/history/x",
        )
    ]
    assert {(answer.status, answer.body["code"]) for answer in answers} == {(403, "invalid_address")}
    assert len({str(answer.body) for answer in answers}) == 1, "it tells nothing of the channel"
    assert {answer.headers["Cache-Control"] for answer in answers} == {"no-store"}
    assert {answer.headers["Access-Control-Allow-Origin"] for answer in answers} == {"*"}
    assert await server.metric("history_pages_total", outcome="refused") == len(answers)


async def test_channel_that_is_not_cacheable_has_no_addresses() -> None:
    async with serving(auth={"secret": SECRET, "page_secrets": [PAGE_SECRET]}) as server:
        await server.publish("room:1", [{"type": "chat.message", "data": {"text": "x"}} for _ in range(40)])
        page = await get(server, "/channels/room:1/history?before=31&limit=5")
        assert page["more"]
        assert not {"older", "newer"} & page.keys()
        path = PageSigner([PAGE_SECRET.encode()]).sign(
            PageAddress("default", "room:1", page["epoch"], 1, 30, 4_000_000_000)
        )
        refused = await fetch(server, str(path))
        assert (refused.status, refused.body["code"]) == (403, "forbidden")


async def test_address_of_the_former_secret_stays_good() -> None:
    former = "another secret of addresses, long enough"
    async with serving(auth={"secret": SECRET, "page_secrets": [PAGE_SECRET, former]}) as server:
        await fill(server, 200)
        epoch = (await get(server, f"/channels/{LOG}"))["epoch"]
        address = PageAddress("default", LOG, epoch, 1, 100, 4_000_000_000)
        found = await fetch(server, str(PageSigner([former.encode()]).sign(address)))
        assert found.status == 200
        assert PageSigner([PAGE_SECRET.encode()]).verify(found.body["newer"]) is not None, "the new one signs"


async def test_large_page_says_that_it_is_not_whole() -> None:
    async with serving(outbox={"recovery_bytes": 4_096}) as server:
        await fill(server, 200)
        page = (await fetch(server, await older_page(server))).body
        assert (page["more"], offsets(page)[0]) == (True, 101)
        rest = await get(server, f"/channels/{LOG}/history?after={offsets(page)[-1]}&before=201&limit=100")
        assert offsets(rest)[0] == offsets(page)[-1] + 1


async def test_address_has_a_rate_before_its_signature_is_read() -> None:
    async with serving(limits={"ip_rate": {"per_second": 0.001, "burst": 2}}) as server:
        codes = [(await fetch(server, "/history/x")).body["code"] for _ in range(3)]
        assert codes == ["invalid_address", "invalid_address", "rate_limited"]


async def test_target_in_absolute_form_is_the_same_address(server: Running) -> None:
    await fill(server, 200)
    path = await older_page(server)
    reader, writer = await asyncio.open_connection("127.0.0.1", URL(server.url).port)
    writer.write(f"GET http://tests{path} HTTP/1.1\r\nHost: tests\r\nConnection: close\r\n\r\n".encode())
    assert b" 200 " in await reader.readline()
    await reader.read()
    writer.close()


async def test_bytes_of_pages_are_counted_until_they_are_read(server: Running) -> None:
    await fill(server, 200)
    await fetch(server, await older_page(server))
    await eventually(lambda: server.service.node.streams.budget.used == 0)


# --- GET /history -----------------------------------------------------------------------------------------------------


async def test_user_reads_history_over_http(server: Running) -> None:
    await fill(server, 320)
    found = await fetch(server, f"/history?channel={LOG}&before=311&limit=5", Origin=server.url, **HEADERS)
    assert (found.status, offsets(found.body)) == (200, list(range(306, 311)))
    assert (found.body["offset"], found.body["more"]) == (320, True)
    assert found.headers["Cache-Control"] == "private, no-store"
    assert found.headers["Access-Control-Allow-Origin"] == server.url
    assert "older" not in found.body
    found = await fetch(server, f"/history?channel={LOG}&before=301&limit=5", **HEADERS)
    assert (await fetch(server, found.body["older"])).body["events"][-1]["offset"] == 300


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        (f"channel={LOG}", {}, 401, "unauthenticated"),
        (f"channel={LOG}", {"Authorization": "Bearer nonsense"}, 401, "invalid_token"),
        (f"channel={LOG}", {"Authorization": f"Bearer {token('ben')}"}, 403, "forbidden"),
        ("channel=board:1", HEADERS, 409, "no_history"),
        ("channel=nowhere:1", HEADERS, 404, "unknown_channel"),
        ("", HEADERS, 400, "invalid_request"),
        (f"channel={LOG}&limit=0", HEADERS, 400, "invalid_request"),
        (f"channel={LOG}&offset=1", HEADERS, 400, "invalid_request"),
        (f"channel={LOG}&channel={LOG}", HEADERS, 400, "invalid_request"),
        (f"channel={LOG}", {**HEADERS, "Origin": "https://evil.example"}, 403, "origin_refused"),
    ],
)
async def test_user_without_the_right_gets_no_history(
    server: Running, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    found = await fetch(server, f"/history?{query}", **headers)
    assert (found.status, found.body["code"], found.headers["Cache-Control"]) == (status, code, "no-store")


async def test_ticket_of_a_stream_reads_no_history(server: Running) -> None:
    ticket = await stream_ticket(server, "room:1")
    found = await fetch(server, f"/history?channel=room:1&ticket={ticket}")
    assert (found.status, found.body["code"]) == (401, "invalid_ticket")


async def test_preflight_allows_the_authorization_header(server: Running) -> None:
    answer = await ask_raw(server, "/history", upgrade=False, method="OPTIONS")
    assert answer.status == 204
