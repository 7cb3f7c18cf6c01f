"""`POST /emit` and receipts: a client publishes in the session of its stream, at any node (docs/streams.md)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.cluster import cluster
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, OTHER_API_KEY, Running, passes, serving, token
from tests.support.shared_broker import Bus
from tests.support.streams import authorization, refusal, sse, stream

MESSAGE = {"type": "chat.message", "channel": "room:1", "data": {"text": "hi"}, "id": "m-1"}


async def emit(
    server: Running, user: str = "ann", headers: dict[str, str] | None = None, **fields: Any
) -> dict[str, Any]:
    """The response of an accepted emit."""
    async with server.http.post(
        f"{server.url}/emit", json=MESSAGE | fields, headers=authorization(user) if headers is None else headers
    ) as response:
        assert response.status == 200, await response.text()
        body: dict[str, Any] = await response.json()
        return body


async def refused(server: Running, user: str = "ann", headers: dict[str, str] | None = None, **fields: Any) -> str:
    """The code of a refused emit."""
    _, problem = await refusal(
        server, "POST", "/emit", json=MESSAGE | fields, headers=authorization(user) if headers is None else headers
    )
    return str(problem["code"])


async def command(server: Running, path: str, body: dict[str, Any], key: str = API_KEY) -> None:
    async with server.http.post(
        f"{server.url}/api/v1/users/ann/{path}", json=body, headers={"Authorization": f"Bearer {key}"}
    ) as response:
        assert response.status == 200, await response.text()


async def test_emit_publishes_once_as_the_user(server: Running) -> None:
    async with stream(server, "room:1") as opened:
        await opened.until("subscribed")
        first = await emit(server, receipt=opened.receipt)
        assert first == {"type": "ack", "id": "m-1", "offset": 1}
        event = await opened.until("chat.message")
        assert (event["from"], event["id"], event["data"]) == ("ann", "m-1", {"text": "hi"})
        assert await emit(server, receipt=opened.receipt) == first | {"duplicate": True}


async def test_emit_removes_and_replaces_values(server: Running) -> None:
    value: dict[str, Any] = {"type": "doc.cursor", "channel": "doc:1", "data": {"user": "ann"}}
    async with stream(server, "doc:1") as opened:
        shown: dict[str, Any] = {"receipt": opened.receipt, **value}
        assert (await emit(server, **shown, id="c-1", if_rev=0))["rev"] == 1
        assert await refused(server, **shown, id="c-2", if_rev=0) == "conflict"
        assert await refused(server, **shown, id="c-3", key="ann", removed=True) == "invalid_message"
        removal = {**MESSAGE, **shown, "id": "c-4", "key": "ann", "removed": True}
        del removal["data"]
        async with server.http.post(f"{server.url}/emit", json=removal, headers=authorization("ann")) as response:
            assert (response.status, (await response.json())["rev"]) == (200, 2)


async def test_emit_for_subscribers_needs_a_receipt_with_the_channel(server: Running) -> None:
    assert await refused(server) == "not_subscribed"
    async with stream(server, "room:2") as opened:
        assert await refused(server, receipt=opened.receipt) == "not_subscribed"


async def test_emit_without_a_receipt_publishes_what_needs_no_subscription(server: Running) -> None:
    ack = await emit(server, type="news.comment", channel="news:x", data={})
    assert ack["offset"] == 1


async def test_receipt_is_of_one_user_and_one_tenant(server: Running) -> None:
    async with stream(server, "room:1") as opened:
        assert await refused(server, "ben", receipt=opened.receipt) == "invalid_receipt"
        assert await refused(server, headers=authorization(tenant="other"), receipt=opened.receipt) == "invalid_receipt"
        assert await refused(server, receipt=opened.receipt[:-2] + "AA") == "invalid_receipt"
        assert await refused(server, receipt="") == "invalid_receipt"


async def test_receipt_shows_no_more_than_the_newest_token_allows(server: Running) -> None:
    async with stream(server, "room:1") as opened:
        headers = authorization(grants=["room:2"])
        assert await refused(server, headers=headers, receipt=opened.receipt) == "forbidden"


async def test_receipt_expires_with_its_time_or_its_token_and_is_renewed() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock) as server:
        async with stream(server, "room:1", headers=authorization(ttl=60)) as short:
            expired = short.receipt
        async with stream(server, "room:1", headers=authorization(ttl=7200)) as opened:
            first = opened.receipt
            await passes(clock, 120)
            renewed = await opened.until("receipt")
            await passes(clock, 181)
            headers = {"Authorization": f"Bearer {token(ttl=7200, iat=int(clock.wall()))}"}
            assert await refused(server, headers=headers, receipt=expired) == "invalid_receipt"
            assert await refused(server, headers=headers, receipt=first) == "invalid_receipt"
            assert await emit(server, headers=headers, receipt=renewed["receipt"])


async def test_anonymous_client_emits_under_the_name_of_its_session() -> None:
    async with serving(auth={"anonymous": True}) as server:
        wave: dict[str, Any] = {"type": "wall.wave", "channel": "wall:1", "data": {}}
        assert await refused(server, headers={}, **wave) == "invalid_receipt"
        async with sse(server, ["wall:1"], headers={}) as opened:
            await opened.until("subscribed")
            await emit(server, headers={}, receipt=opened.receipt, **wave)
            event = await opened.until("wall.wave")
            assert event["from"] == f"anonymous-{opened.welcome['connection']}"


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"type": "chat.nothing"}, "unknown_event"),
        ({"type": "subscribe"}, "unknown_event"),
        ({"channel": "nowhere:1"}, "unknown_channel"),
        ({"data": {"text": 1}}, "invalid_data"),
        ({"key": "k"}, "invalid_key"),
        ({"id": "a b"}, "invalid_message"),
        ({"extra": 1}, "invalid_message"),
        ({"data": {"text": "x" * 70_000}}, "too_big"),
        ({"type": "chat.pinned", "data": {"slot": "a", "text": "x"}, "key": "a"}, "forbidden"),
    ],
)
async def test_emit_passes_the_gate(server: Running, fields: dict[str, Any], code: str) -> None:
    async with stream(server, "room:1") as opened:
        assert await refused(server, receipt=opened.receipt, **fields) == code


async def test_emit_of_a_page_that_is_not_listed_is_refused() -> None:
    async with serving(origins=["https://app.example"], auth={"cookie": "session"}) as server:
        cookie = {"Cookie": f"session={token()}"}
        news: dict[str, Any] = {"type": "news.comment", "channel": "news:x", "data": {}}
        for origin in ({"Origin": "https://evil.example"}, {"Host": "app.example", "Sec-Fetch-Site": "same-origin"}):
            assert await refused(server, headers=cookie | origin, **news) == "origin_refused"
        assert await emit(server, headers=cookie | {"Origin": "https://app.example"}, **news)


async def test_emits_cost_the_rate_of_the_user() -> None:
    async with serving(limits={"user_rate": {"per_second": 0.001, "burst": 3}}) as server:
        news: dict[str, Any] = {"type": "news.comment", "channel": "news:x", "data": {}}
        for number in range(3):
            await emit(server, id=f"m-{number}", **news)
        assert await refused(server, **news) == "rate_limited"
        assert await emit(server, "ben", **news)


async def test_all_nodes_together_allow_the_rate_of_one_user(make_bus: Callable[[], Bus]) -> None:
    limits = {"user_rate": {"per_second": 0.001, "burst": 6}}
    async with cluster(make_bus, 3, limits=limits) as nodes:
        servers = [member.server for member in nodes.members]
        news: dict[str, Any] = {"type": "news.comment", "channel": "news:x", "data": {}}
        accepted = 0
        for number in range(4):
            for server in servers:
                async with server.http.post(
                    f"{server.url}/emit", json=MESSAGE | news | {"id": f"m-{number}"}, headers=authorization()
                ) as response:
                    accepted += response.status == 200
        assert accepted == 6


async def test_receipt_is_good_at_every_node_until_the_backend_ends_it(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        one, other = [member.server for member in nodes.members]
        async with stream(one, "room:1", "room:2") as opened, stream(one, "room:1", user="ben") as bens:
            await opened.until("subscribed")
            assert (await emit(other, receipt=opened.receipt))["offset"] == 1
            await command(one, "unsubscribe", {"channel": "room:1"})
            await opened.until("unsubscribed")
            assert await refused(other, receipt=opened.receipt) == "not_subscribed"
            assert await emit(other, receipt=opened.receipt, channel="room:2")
            await command(one, "disconnect", {}, OTHER_API_KEY)
            assert await emit(other, receipt=opened.receipt, channel="room:2")
            await command(one, "disconnect", {})
            late = (await nodes.join()).server
            for server in (one, other, late):
                assert await refused(server, receipt=opened.receipt, channel="room:2") == "invalid_receipt"
                assert await emit(server, "ben", receipt=bens.receipt)


async def test_revoked_token_emits_nothing(server: Running) -> None:
    async with stream(server, "room:1") as opened:
        headers = authorization()
        await command(server, "revoke", {"before": int(time.time()) + 60})
        assert (await opened.closed())["code"] == 4401
        assert await refused(server, headers=headers, receipt=opened.receipt) == "invalid_token"
