"""The backend API: keys and tenants, channels, users, tokens."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import aiohttp
import pytest

from service.adapters.clock import SystemClock
from service.adapters.memory.tickets import MemoryTickets
from service.web.api.operation import Operation
from service.web.api.routes import OPERATIONS
from tests.support.api_client import ask, get, post
from tests.support.harness import API_KEY, DEADLINE, OTHER_API_KEY, Client, Running, serving, token

EVENTS = "/channels/room:1/events"
ALONE = {"nodes": 1, "complete": True}


def message(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "chat.message", "data": {"text": text}, **more}


def pin(slot: str, text: str = "x") -> dict[str, Any]:
    return {"type": "chat.pinned", "data": {"slot": slot, "text": text}}


def path_of(operation: Operation) -> str:
    return operation.path.removeprefix("/api/v1").format(channel="room:1", user="ann", id="m-1", endpoint="archive")


# --- keys and tenants --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
async def test_operation_without_a_key_is_refused(server: Running, operation: Operation) -> None:
    answer = await ask(server, operation.method, path_of(operation), key=None)
    answer.refused(401, "invalid_api_key")
    assert answer.headers["Www-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Bearer {API_KEY}x",
        f"Bearer {API_KEY[:-1]}",
        f"Bearer {API_KEY} {API_KEY}",
        f"Bearer {API_KEY},{OTHER_API_KEY}",
        f"Basic {API_KEY}",
        f"{API_KEY}",
        "Bearer ä",
        f"Bearer {API_KEY.upper()}",
    ],
)
async def test_wrong_key_is_refused(server: Running, authorization: str) -> None:
    answer = await ask(server, "GET", "/channels", key=None, headers={"Authorization": authorization})
    answer.refused(401, "invalid_api_key")
    assert API_KEY not in str(answer.body)


async def test_authorization_scheme_is_case_insensitive(server: Running) -> None:
    answer = await ask(server, "GET", "/channels", key=None, headers={"Authorization": f"bearer  {API_KEY}"})
    assert answer.status == 200


@pytest.mark.parametrize("key", [None, "", "x", API_KEY])
async def test_key_without_configured_keys_is_refused(key: str | None) -> None:
    async with serving(api={"keys": []}) as server:
        (await ask(server, "GET", "/channels", key=key)).refused(401, "invalid_api_key")


async def test_key_is_checked_before_everything_else(server: Running) -> None:
    for path in ("/channels/nowhere:1", "/channels?limit=x", "/channels/no%20name/history"):
        (await ask(server, "GET", path, key="wrong")).refused(401, "invalid_api_key")
    (await ask(server, "POST", EVENTS, data=b"{", key="wrong")).refused(401, "invalid_api_key")


async def test_user_token_is_no_api_key(server: Running) -> None:
    (await ask(server, "GET", "/channels", key=token())).refused(401, "invalid_api_key")


async def test_key_sees_nothing_of_another_tenant(server: Running) -> None:
    async with server.client("ann") as ann:
        await ann.subscribe("room:1")
        await post(server, EVENTS, [message("secret", id="m-1"), pin("top", "secret")])
        await ann.until("chat.pinned")

        theirs = {"key": OTHER_API_KEY}
        assert await get(server, "/channels", **theirs) == {"channels": [], "more": False, "complete": True}
        assert (await get(server, "/channels/room:1/history", **theirs))["events"] == []
        assert (await get(server, "/channels/room:1/state", **theirs))["state"] == []
        assert (await get(server, "/channels/room:1/presence", **theirs))["presence"] == {"count": 0, "members": []}
        shown = await get(server, "/channels/room:1", **theirs)
        assert (shown["offset"], shown["subscribers"]) == (0, 0)
        assert "last" not in shown
        assert await post(server, "/users/ann/disconnect", None, **theirs) == {"connections": 0, **ALONE}
        assert await post(server, "/users/ann/unsubscribe", {"channel": "room:1"}, **theirs) == {
            "subscriptions": 0,
            **ALONE,
        }
        published = await post(server, EVENTS, message("theirs", id="m-1"), **theirs)
        assert (published["offset"], published["duplicate"]) == (1, False)
        await ann.silence()
        own = await get(server, "/channels/room:1/history")
        assert [event["data"]["text"] for event in own["events"]] == ["secret"]


# --- channels ----------------------------------------------------------------------------------------------------------


async def test_list_channels_is_ordered_by_name_with_positions(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:3")
        await post(server, "/channels/room:2/events", [message("a", id="m-1"), message("b", id="m-2")])
        await post(server, "/channels/board:1/events", {"type": "ticker.price", "data": {"symbol": "A", "price": 1}})
        listed = await get(server, "/channels")
        assert [entry["channel"] for entry in listed["channels"]] == ["board:1", "room:2", "room:3"]
        room = listed["channels"][1]
        assert room == {"channel": "room:2", "epoch": room["epoch"], "offset": 2, "last": "m-2", "subscribers": 0}
        assert listed["channels"][2]["subscribers"] == 1
        assert (listed["more"], listed["complete"]) == (False, True)


async def test_list_channels_by_prefix_and_limit(server: Running) -> None:
    for name in ("room:1", "room:2", "room:11", "news:1"):
        kind = "news.flash" if name.startswith("news") else "chat.message"
        await post(server, f"/channels/{name}/events", {"type": kind, "data": {"text": "x"}})
    page = await get(server, "/channels?prefix=room:&limit=2")
    assert ([entry["channel"] for entry in page["channels"]], page["more"]) == (["room:1", "room:11"], True)
    page = await get(server, "/channels?prefix=room:1")
    assert ([entry["channel"] for entry in page["channels"]], page["more"]) == (["room:1", "room:11"], False)


async def test_show_channel_includes_its_contract(server: Running) -> None:
    shown = await get(server, "/channels/room:1")
    assert shown["contract"] == {
        "pattern": "room:{room}",
        "subscribe": "grant",
        "presence": True,
        "history": {"events": 50, "ttl": 3600.0},
        "state": {"keys": 1000, "ttl": 86400.0},
        "events": {
            "chat.message": {"publish": "subscriber", "delivery": "durable"},
            "chat.typing": {"publish": "subscriber", "delivery": "ephemeral"},
            "chat.pinned": {"publish": "server", "delivery": "latest", "key": "/slot"},
        },
    }
    board = await get(server, "/channels/board:1")
    assert "history" not in board["contract"]
    assert board["contract"]["events"]["ticker.price"]["window"] == 0.1
    doc = await get(server, "/channels/doc:1")
    assert doc["contract"]["events"]["doc.cursor"]["ttl"] == 30.0


async def test_show_channel_includes_position_and_subscribers(server: Running) -> None:
    async with server.client() as ann, server.client("ben") as ben:
        await ann.subscribe("room:1")
        joined = await ben.subscribe("room:1")
        await post(server, EVENTS, message("x", id="m-1"))
        shown = await get(server, "/channels/room:1")
        assert (shown["epoch"], shown["offset"], shown["last"]) == (joined["epoch"], 1, "m-1")
        assert (shown["subscribers"], shown["complete"]) == (2, True)


async def test_history_pages_in_both_directions(server: Running) -> None:
    await post(server, EVENTS, [message(str(n)) for n in range(1, 11)])

    async def page(query: str) -> tuple[list[int], bool]:
        found = await get(server, f"/channels/room:1/history{query}")
        assert found["offset"] == 10
        return [event["offset"] for event in found["events"]], found["more"]

    assert await page("") == (list(range(1, 11)), False)
    assert await page("?limit=3") == ([8, 9, 10], True)
    assert await page("?before=8&limit=3") == ([5, 6, 7], True)
    assert await page("?before=3&limit=3") == ([1, 2], False)
    assert await page("?after=3&limit=3") == ([4, 5, 6], True)
    assert await page("?after=8") == ([9, 10], False)
    assert await page("?after=2&before=5") == ([3, 4], False)
    assert await page("?after=10") == ([], False)


async def test_history_has_events_as_subscribers_get_them(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        await post(server, EVENTS, message("hi", id="m-1", **{"from": "ben"}))
        live = await ann.until("chat.message")
        found = await get(server, "/channels/room:1/history")
        assert found == {
            "channel": "room:1",
            "epoch": found["epoch"],
            "offset": 1,
            "last": "m-1",
            "events": [live],
            "more": False,
        }


async def test_history_page_is_cut_to_the_recovery_bytes() -> None:
    async with serving(outbox={"recovery_bytes": 2048}) as server:
        await post(server, EVENTS, [message("x" * 800) for _ in range(4)])
        newest = await get(server, "/channels/room:1/history")
        assert ([event["offset"] for event in newest["events"]], newest["more"]) == ([3, 4], True)
        oldest = await get(server, "/channels/room:1/history?after=0")
        assert ([event["offset"] for event in oldest["events"]], oldest["more"]) == ([1, 2], True)


async def test_state_has_the_newest_event_of_every_key(server: Running) -> None:
    await post(server, EVENTS, [pin("a", "old"), pin("b"), pin("a", "new"), message("x", id="m-1")])
    found = await get(server, "/channels/room:1/state")
    assert [(event["key"], event["rev"], event["data"]["text"]) for event in found["state"]] == [
        ("b", 2, "x"),
        ("a", 3, "new"),
    ]
    assert (found["channel"], found["offset"], found["last"], found["more"]) == ("room:1", 1, "m-1", False)


async def test_state_paged_while_it_changes_misses_no_key() -> None:
    async with serving(outbox={"recovery_bytes": 1024}) as server:
        await post(server, EVENTS, [pin(str(n), "x" * 300) for n in range(9)])
        seen: dict[str, int] = {}
        after, more = 0, True
        while more:
            page = await get(server, f"/channels/room:1/state?after={after}&limit=5")
            assert 1 <= len(page["state"]) <= 2
            seen.update({event["key"]: event["rev"] for event in page["state"]})
            after, more = page["state"][-1]["rev"], page["more"]
            if len(seen) == 4:  # one value that was read and one that was not move ahead
                await post(server, EVENTS, [pin("0", "y"), pin("8", "y")])
        assert seen == {"0": 10, **{str(n): n + 1 for n in range(1, 8)}, "8": 11}


async def test_presence_lists_the_members(server: Running) -> None:
    async with server.client(info={"name": "Ann"}) as ann, server.client() as second, server.client("ben") as ben:
        for client in (ann, second, ben):
            await client.subscribe("room:1")
        found = await get(server, "/channels/room:1/presence")
        assert found["channel"] == "room:1"
        assert found["presence"]["count"] == 2
        assert [(member["user"], member["connections"]) for member in found["presence"]["members"]] == [
            ("ann", 2),
            ("ben", 1),
        ]


async def test_presence_of_a_large_channel_is_a_count() -> None:
    async with serving(presence={"members": 1}) as server, server.client() as ann, server.client("ben") as ben:
        for client in (ann, ben):
            await client.subscribe("room:1")
        assert (await get(server, "/channels/room:1/presence"))["presence"] == {"count": 2}


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/channels/board:1/history", 409, "no_history"),
        ("/channels/board:1/presence", 409, "no_presence"),
        ("/channels/nowhere:1", 404, "unknown_channel"),
        ("/channels/nowhere:1/history", 404, "unknown_channel"),
        ("/channels/nowhere:1/state", 404, "unknown_channel"),
        ("/channels/nowhere:1/presence", 404, "unknown_channel"),
        ("/channels/room:*/history", 400, "invalid_channel"),
        ("/channels/%FF", 400, "invalid_request"),
        ("/channels//history", 404, "not_found"),
        ("/nothing", 404, "not_found"),
        ("/channels/room:1/nothing", 404, "not_found"),
        ("/events", 405, "method_not_allowed"),
    ],
)
async def test_refused_read_has_its_code(server: Running, path: str, status: int, code: str) -> None:
    (await ask(server, "GET", path)).refused(status, code)


async def test_unknown_method_lists_the_allowed_ones(server: Running) -> None:
    answer = await ask(server, "DELETE", "/channels/room:1")
    answer.refused(405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET,HEAD"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("/channels?limit=0", "limit"),
        ("/channels?limit=1001", "limit"),
        ("/channels?limit=", "limit"),
        ("/channels?limit=ten", "limit"),
        ("/channels?limit=5&limit=6", "limit"),
        ("/channels?prefix=room:*", "prefix"),
        ("/channels?prefix=a%0A", "prefix"),
        (f"/channels?prefix={'x' * 129}", "prefix"),
        ("/channels?perfix=a", "perfix"),
        ("/channels/room:1?x=1", "x"),
        ("/channels/room:1/history?after=-1", "after"),
        ("/channels/room:1/history?after=null", "after"),
        ("/channels/room:1/history?before=1.5", "before"),
        (f"/channels/room:1/history?before={2**53}", "before"),
        ("/channels/room:1/state?before=1", "before"),
        ("/channels/room:1/presence?limit=1", "limit"),
    ],
)
async def test_wrong_query_parameter_is_named(server: Running, query: str, parameter: str) -> None:
    assert (await ask(server, "GET", query)).refused(400, "invalid_request")["parameter"] == parameter


async def test_responses_are_not_cached(server: Running) -> None:
    answer = await ask(server, "GET", "/channels")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"].startswith("application/json")


async def test_head_answers_like_get_without_a_body(server: Running) -> None:
    answer = await ask(server, "HEAD", "/channels")
    assert (answer.status, answer.body) == (200, {})
    assert (await ask(server, "HEAD", "/channels", key=None)).status == 401


# --- users -------------------------------------------------------------------------------------------------------------


async def test_disconnect_closes_all_connections_of_the_user_only(server: Running) -> None:
    async with server.client() as first, server.client() as second, server.client("ben") as ben:
        assert await post(server, "/users/ann/disconnect", {"reason": "moved out"}) == {"connections": 2, **ALONE}
        assert await first.closed() == 4403
        assert await second.closed() == 4403
        await ben.silence()
        assert await post(server, "/users/ann/disconnect", None) == {"connections": 0, **ALONE}


@pytest.mark.parametrize(
    ("user", "path"),
    [
        ("a/b", "a%2Fb"),
        ("a/b", "a%2fb"),
        ("100%", "100%25"),
        ("zoë ops", "zo%C3%AB%20ops"),
        ("a?b#c", "a%3Fb%23c"),
        ("..", ".."),
        ("%2F", "%252F"),
    ],
)
async def test_user_in_the_path_is_decoded_once(server: Running, user: str, path: str) -> None:
    async with server.client(user) as client:
        assert await post(server, f"/users/{path}/disconnect", None) == {"connections": 1, **ALONE}
        assert await client.closed() == 4403


@pytest.mark.parametrize("user", ["%0A", "%00", "a%0D%0Ab", "%20a", "x" * 129, "%FF", "%ED%A0%80"])
async def test_user_that_no_token_can_name_is_refused(server: Running, user: str) -> None:
    for action, body in (
        ("disconnect", None),
        ("subscribe", {"channel": "room:1"}),
        ("unsubscribe", {"channel": "room:1"}),
        ("revoke", None),
    ):
        answer = await ask(server, "POST", f"/users/{user}/{action}", body)
        assert answer.refused(400, "invalid_request")["parameter"] == "user"


@pytest.mark.parametrize(
    ("body", "code", "path"),
    [
        (b"{", "malformed", "$"),
        (b"[]", "invalid_message", "$"),
        (b'{"reason": 1}', "invalid_message", "$.reason"),
        (b'{"raeson": ""}', "invalid_message", "$.raeson"),
        (b'{"reason": "' + b"x" * 124 + b'"}', "invalid_message", "$.reason"),
        ('{"reason": "' + "ü" * 62 + '"}', "invalid_message", "$.reason"),
    ],
)
async def test_disconnect_with_a_wrong_reason_closes_nothing(
    server: Running, body: bytes | str, code: str, path: str
) -> None:
    async with server.client() as ann:
        data = body.encode() if isinstance(body, str) else body
        details = (await ask(server, "POST", "/users/ann/disconnect", data=data)).refused(400, code)
        assert details["path"] == path
        await ann.silence()


async def test_disconnect_with_the_longest_reason_sends_it_whole(server: Running) -> None:
    async with server.client() as ann:
        await post(server, "/users/ann/disconnect", {"reason": "ü" * 61 + "!"})
        assert await ann.closed() == 4403


async def test_unsubscribe_ends_the_subscriptions_with_a_reason(server: Running) -> None:
    async with server.client() as first, server.client() as second, server.client("ben") as ben:
        for client in (first, second, ben):
            await client.subscribe("room:1")
        await second.subscribe("room:2")
        assert await post(server, "/users/ann/unsubscribe", {"channel": "room:1"}) == {"subscriptions": 2, **ALONE}
        for client in (first, second):
            await client.until("unsubscribed", channel="room:1", code="removed")
        await post(server, EVENTS, message("after", id="m-1"))
        await ben.until("chat.message", id="m-1")
        await first.silence()
        await second.silence()
        assert (await get(server, "/channels/room:2"))["subscribers"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{}", 400, "invalid_message"),
        (b'{"channel": "nowhere:1"}', 404, "unknown_channel"),
        (b'{"channel": "room:*"}', 400, "invalid_channel"),
        (b'{"channel": null}', 400, "invalid_message"),
    ],
)
async def test_unsubscribe_without_a_channel_is_refused(server: Running, body: bytes, status: int, code: str) -> None:
    (await ask(server, "POST", "/users/ann/unsubscribe", data=body)).refused(status, code)


# --- tokens ------------------------------------------------------------------------------------------------------------


async def test_revoke_user_refuses_old_tokens_and_accepts_newer_ones(server: Running) -> None:
    old, new = token(iat=int(time.time()) - 60), token(iat=int(time.time()) + 3)
    async with server.client(token_=old) as first, server.client(token_=new) as second, server.client("ben") as ben:
        revoked = await post(server, "/users/ann/revoke", {"reason": "the laptop was stolen"})
        assert revoked["until"] == pytest.approx(revoked["before"] + 86_400, abs=1)
        assert revoked["before"] == pytest.approx(time.time(), abs=5)
        assert await first.closed() == 4401
        await second.silence()
        await ben.silence()
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await Client.open(server, hello=False, headers={"Authorization": f"Bearer {old}"})
    async with server.client(token_=new) as ann:
        refused = await ann.ask("refresh", token=old)
        assert (refused["code"], refused["message"]) == ("invalid_token", "the token has been revoked")
        await ann.silence()


async def test_revoke_user_refuses_tokens_without_iat(server: Running) -> None:
    async with server.client(token_=token(iat=None)) as ann:
        await post(server, "/users/ann/revoke", {"before": 1})
        assert await ann.closed() == 4401


async def test_revoke_token_refuses_one_jti_in_its_tenant(server: Running) -> None:
    async with (
        server.client(jti="one") as first,
        server.client(jti="two") as second,
        server.client(tenant="other", jti="one") as third,
    ):
        assert set(await post(server, "/tokens/revoke", {"jti": "one"})) == {"until"}
        assert await first.closed() == 4401
        await second.silence()
        await third.silence()
        await post(server, "/users/ann/revoke", None, key=OTHER_API_KEY)
        assert await third.closed() == 4401
        await second.silence()


async def test_ticket_of_a_token_revoked_later_is_refused(server: Running) -> None:
    bearer = {"Authorization": f"Bearer {token(jti='t')}"}
    async with server.http.post(f"{server.url}/tickets", headers=bearer) as response:
        ticket = (await response.json())["ticket"]
    await post(server, "/tokens/revoke", {"jti": "t"})
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await Client.open(server, hello=False, query=f"?ticket={ticket}")
    async with server.http.post(f"{server.url}/tickets", headers=bearer) as response:
        assert (response.status, (await response.json())["code"]) == (401, "invalid_token")


class SlowTickets(MemoryTickets):
    """Redeems tickets only when the test allows it: this step lies between the token's check and the connection."""

    __slots__ = ("asked", "go_on")

    def __init__(self) -> None:
        super().__init__(SystemClock(), 10)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def redeem(self, ticket: str) -> str | None:
        self.asked.set()
        await self.go_on.wait()
        return await super().redeem(ticket)


async def test_token_revoked_between_check_and_connection_is_closed(server: Running) -> None:
    """The revocation looks for connections before this one is in the registry."""
    found = await Client.open(server, jti="t")
    node = server.service.node
    node.tickets = tickets = SlowTickets()
    ticket = await tickets.issue(token(jti="t"), 30)
    opening = asyncio.create_task(Client.open(server, hello=False, query=f"?ticket={ticket}"))
    await asyncio.wait_for(tickets.asked.wait(), DEADLINE)
    await post(server, "/tokens/revoke", {"jti": "t"})
    assert await found.closed() == 4401
    tickets.go_on.set()
    assert await (await opening).closed() == 4401


async def test_revoke_user_with_an_earlier_time_takes_nothing_back(server: Running) -> None:
    first = await post(server, "/users/ann/revoke", None)
    again = await post(server, "/users/ann/revoke", {"before": 5})
    assert again["before"] == first["before"]
    assert await server.metric("revocations") == 1
    old = token(iat=int(time.time()) - 60)
    with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
        await Client.open(server, hello=False, headers={"Authorization": f"Bearer {old}"})


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/users/ann/revoke", {"before": "now"}, "$.before"),
        ("/users/ann/revoke", {"before": -1}, "$.before"),
        ("/users/ann/revoke", {"before": 4_000_000_000}, "$.before"),
        ("/users/ann/revoke", {"befoer": 1}, "$.befoer"),
        ("/users/ann/revoke", {"reason": "ü" * 62}, "$.reason"),
        ("/tokens/revoke", {}, "$.jti"),
        ("/tokens/revoke", {"jti": ""}, "$.jti"),
        ("/tokens/revoke", {"jti": "x" * 257}, "$.jti"),
        ("/tokens/revoke", {"jti": "x", "reason": "x" * 124}, "$.reason"),
    ],
)
async def test_wrong_revocation_revokes_nothing(server: Running, path: str, body: Any, where: str) -> None:
    assert (await ask(server, "POST", path, body)).refused(400, "invalid_message")["path"] == where
    assert await server.metric("revocations") == 0


async def test_revocations_above_the_limit_are_counted() -> None:
    async with serving(auth={"revocations": 2}) as server:
        for name in ("a", "b", "c"):
            await post(server, "/tokens/revoke", {"jti": name})
        assert await server.metric("revocations") == 2
        assert await server.metric("limit_hits_total", limit="revocations") == 1
        async with server.client(jti="a") as again:
            await again.silence()
        refused = await Client.open(server, hello=False)
        await refused.send(type="hello", token=token(jti="c"))
        assert (await refused.expect("error"))["code"] == "invalid_token"
        assert await refused.closed() == 4401


# --- metrics and logs -------------------------------------------------------------------------------------------------


async def test_requests_are_counted_by_route_template(server: Running) -> None:
    await post(server, EVENTS, message("x"))
    await ask(server, "POST", EVENTS, data=b"{")
    await ask(server, "GET", "/channels/room:secret", key="wrong")
    metrics = await server.metrics()
    route = "/api/v1/channels/{channel}/events"
    assert metrics[f'tidewire_api_requests_total{{method="POST",route="{route}",status="200"}}'] == 1
    assert metrics[f'tidewire_api_requests_total{{method="POST",route="{route}",status="400"}}'] == 1
    assert metrics['tidewire_api_requests_total{method="GET",route="/api/v1/channels/{channel}",status="401"}'] == 1
    assert metrics[f'tidewire_api_seconds_count{{route="{route}"}}'] == 2
    assert not any("room:" in name or "secret" in name for name in metrics)


async def test_keys_and_payloads_are_not_logged(
    server: Running, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    await post(server, EVENTS, message("canary-payload"))
    await ask(server, "POST", EVENTS, {"type": "chat.message", "data": {"canary-payload": 1}})
    await ask(server, "GET", "/channels", key="canary-key")
    captured = capsys.readouterr()
    written = caplog.text + captured.out + captured.err
    for secret in (API_KEY, "canary-key", "canary-payload"):
        assert secret not in written
