"""The hook `connect`: the backend says who a client is, at every place that authenticates. Nothing is open without its answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import jwt
import pytest
from aiohttp import web

from service.adapters.http_hooks.breaker import MAX_FAILURES
from tests.support import harness
from tests.support.backend import Backend, serving_backend
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, Client, Running, token
from tests.support.streams import Poller, refusal, sse, stream

OPAQUE = "s3ss10n-of-ann"
OWN = {"Authorization": f"Bearer {OPAQUE}"}
ROOM = "room:1"
ANN = {"allow": True, "user": "ann", "grants": ["room:*"]}
NO = {"allow": False, "reason": "banned"}


@asynccontextmanager
async def scene(endpoint: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[tuple[Running, Backend]]:
    """A backend that says who clients are, and a service that asks it."""
    connect = {"endpoint": "auth", **options.pop("connect", {})}
    more = options.pop("hooks", {})
    async with serving_backend() as backend:
        hooks = {"endpoints": [backend.endpoint("auth", **(endpoint or {}))], "connect": connect, **more}
        backend.reply = ANN
        async with harness.serving(hooks=hooks, **options) as server:
            yield server, backend
            await server.at_rest()


async def outcomes(server: Running) -> dict[str, float]:
    """The outcomes that were counted."""
    prefix = 'tidewire_hooks_total{endpoint="auth",outcome="'
    return {name[len(prefix) : -2]: n for name, n in (await server.metrics()).items() if name.startswith(prefix) and n}


async def greet(server: Running, token_: str | None = None, **options: Any) -> Client:
    """A client that sends `hello`, without a token unless one is given."""
    client = await Client.open(server, hello=False, **options)
    await client.send(type="hello", **({} if token_ is None else {"token": token_}))
    return client


# --- every place that authenticates -----------------------------------------------------------------------------------


def code_of(error: Exception) -> str:
    """The code of a refusal that a helper reports by its text, or by the status of a handshake."""
    found = re.search(r'"code": ?"(\w+)"', str(error))
    statuses = {403: "forbidden", 503: "hook_unavailable"}
    return found[1] if found else statuses.get(getattr(error, "status", 0), repr(error))


async def hello(server: Running) -> str:
    client = await greet(server, OPAQUE)
    try:
        message = await client.receive()
        return str(message.get("user") or message["code"])
    finally:
        await client.close()


async def upgrade(server: Running) -> str:
    try:
        client = await Client.open(server, hello=False, headers=OWN, query=f"?channels={ROOM}")
    except aiohttp.WSServerHandshakeError as error:
        return code_of(error)
    await client.until("subscribed", channel=ROOM)
    await client.close()
    return str(client.welcome["user"])


async def plain_get(server: Running) -> str:
    _, problem = await refusal(server, "GET", "/ws", headers=OWN)
    return "ann" if problem["code"] == "upgrade_required" else str(problem["code"])


async def ticket(server: Running) -> str:
    async with server.http.post(f"{server.url}/tickets", headers=OWN) as response:
        body = await response.json(content_type=None)
        if response.status != 201:
            return str(body["code"])
    client = await Client.open(server, hello=False, query=f"?ticket={body['ticket']}")
    await client.close()
    return str(client.welcome["user"])


async def stream_ticket(server: Running) -> str:
    async with server.http.post(f"{server.url}/tickets", json={"channels": [ROOM]}, headers=OWN) as response:
        body = await response.json(content_type=None)
        if response.status != 201:
            return str(body["code"])
    async with sse(server, [ROOM], f"&ticket={body['ticket']}", headers={}) as opened:
        return str(opened.welcome["user"])


async def post_stream(server: Running) -> str:
    try:
        async with stream(server, ROOM, headers=OWN) as opened:
            return str(opened.welcome["user"])
    except AssertionError as error:
        return code_of(error)


async def event_source(server: Running) -> str:
    try:
        async with sse(server, [ROOM], headers=OWN) as opened:
            return str(opened.welcome["user"])
    except AssertionError as error:
        return code_of(error)


async def poll(server: Running) -> str:
    try:
        found = await Poller(headers=OWN).poll(server, ROOM, wait=0)
    except AssertionError as error:
        return code_of(error)
    return str(found[0]["user"])


async def emit(server: Running) -> str:
    event = {"channel": ROOM, "type": "chat.message", "data": {"text": "hi"}, "id": "e-1"}
    async with server.http.post(f"{server.url}/emit", json=event, headers=OWN) as response:
        body = await response.json(content_type=None)
        # Without the receipt of a subscription, the gate refuses the event of a user who is let in.
        return "ann" if response.status == 200 or body["code"] == "not_subscribed" else str(body["code"])


async def get_history(server: Running) -> str:
    async with server.http.get(f"{server.url}/history?channel={ROOM}", headers=OWN) as response:
        return "ann" if response.status == 200 else str((await response.json(content_type=None))["code"])


DOORS: dict[str, Callable[[Running], Awaitable[str]]] = {
    "hello": hello,
    "upgrade": upgrade,
    "plain GET": plain_get,
    "ticket": ticket,
    "stream ticket": stream_ticket,
    "POST /stream": post_stream,
    "GET /sse": event_source,
    "POST /poll": poll,
    "POST /emit": emit,
    "GET /history": get_history,
}


async def test_backend_authenticates_at_every_place() -> None:
    async with scene() as (server, backend):
        for door, enter in DOORS.items():
            backend.questions.clear()
            backend.reply = ANN
            assert await enter(server) == "ann", door
            first = backend.questions[0]
            assert (first["hook"], first["tenant"], first["token"]) == ("connect", "default", OPAQUE), door
            backend.reply = NO
            assert await enter(server) == "forbidden", door
            backend.reply = lambda request: _status(500)
            assert await enter(server) == "hook_unavailable", door


async def _status(status: int) -> web.Response:
    return web.Response(status=status)


async def _text(text: str) -> web.Response:
    return web.Response(text=text, content_type="application/json")


# --- what is asked ----------------------------------------------------------------------------------------------------


async def test_question_has_the_listed_headers_and_never_a_cookie() -> None:
    async with scene(connect={"headers": ["X-Device", "x-missing"]}, origins=("https://app.example",)) as (
        server,
        backend,
    ):
        headers = {
            **OWN,
            "Origin": "https://app.example",
            "Cookie": "session=private",
            "X-Device": "phone",
            "X-Other": "private",
        }
        client = await Client.open(server, hello=False, headers=headers, query="?client=app/1.2")
        assert client.welcome["user"] == "ann"
        await client.close()
        assert backend.questions == [
            {
                "hook": "connect",
                "tenant": "default",
                "address": "127.0.0.1",
                "token": OPAQUE,
                "origin": "https://app.example",
                "client": "app/1.2",
                "headers": {"x-device": "phone"},
            }
        ]
        assert not {"Cookie", "Authorization", "X-Device"} & set(backend.requests[0].headers)


@pytest.mark.parametrize("name", ["Cookie", "AUTHORIZATION", "proxy-authorization", "set-cookie", "not a name", ""])
def test_headers_with_credentials_are_refused_in_the_settings(name: str) -> None:
    with pytest.raises(ValueError, match="header"):
        harness.settings(hooks={"connect": {"headers": [name]}})


async def test_client_without_a_token_is_asked_about_unless_the_settings_say_otherwise() -> None:
    async with scene(connect={"headers": ["x-user"]}, auth={"anonymous": True}) as (server, backend):
        for headers in ({}, {"X-User": "ann"}):
            client = Client(
                await server.http.ws_connect(f"{server.url}/ws", protocols=("tidewire.v1",), headers=headers)
            )
            await client.send(type="hello")
            assert (await client.expect("welcome"))["user"] == "ann"
            await client.close()
        question = {"hook": "connect", "tenant": "default", "address": "127.0.0.1"}
        assert backend.questions == [question, {**question, "headers": {"x-user": "ann"}}]
        async with stream(server, ROOM, headers={"X-User": "ann"}) as opened:
            assert opened.welcome["user"] == "ann"
        assert backend.questions[-1]["headers"] == {"x-user": "ann"}
        assert await server.metric("connects_total", credentials="hook") == 3
    async with scene(connect={"without_token": False}, auth={"anonymous": True}) as (server, backend):
        client = await greet(server)
        assert (await client.expect("welcome"))["user"] == ""
        await client.close()
        assert backend.questions == []


async def test_token_of_a_known_issuer_is_never_asked_about() -> None:
    async with scene() as (server, backend):
        backend.reply = NO
        async with server.client("ben") as ben:
            assert ben.welcome["user"] == "ben"
        for bad, code in ((token(ttl=-60), "token_expired"), (token(aud="another"), "invalid_token")):
            client = await greet(server, bad)
            await client.expect("error", code=code)
            assert await client.closed() == 4401
        assert backend.questions == []
        foreign = jwt.encode({"iss": "another", "sub": "eve"}, "x" * 40, algorithm="HS256")
        client = await greet(server, foreign)
        await client.expect("error", code="forbidden")
        assert [asked["token"] for asked in backend.questions] == [foreign]


async def test_each_poll_is_asked_about_unless_the_answer_counts_for_longer() -> None:
    async with scene() as (server, backend):
        poller = Poller(headers=OWN)
        await poller.poll(server, ROOM, wait=0)
        for expected in (2, 3):
            await poller.poll(server, wait=0)
            assert len(backend.questions) == expected
        backend.reply = {**ANN, "ttl": 60}
        await poller.poll(server, wait=0)
        asked = len(backend.questions)
        for _ in range(3):
            await poller.poll(server, wait=0)
        assert len(backend.questions) == asked
        assert (await outcomes(server))["cached"] == 3


async def test_backend_that_answers_rubbish_about_clients_is_left_alone_and_bounds_concern_one_client() -> None:
    for reply, is_open in ((lambda _: _text("<html>"), 1), ({**ANN, "user": " ann "}, 0)):
        async with scene() as (server, backend):
            backend.reply = reply
            for _ in range(MAX_FAILURES):
                client = await greet(server, OPAQUE)
                assert (await client.expect("error"))["details"]["reason"] == "bad_reply"
                await client.closed()
            assert await server.metric("hook_breaker_open", endpoint="auth") == is_open


async def test_cookie_is_never_asked_about() -> None:
    async with scene(origins=("https://app.example",), auth={"cookie": "session"}) as (server, backend):
        headers = {"Cookie": f"session={OPAQUE}", "Origin": "https://app.example"}
        for method, path in (
            ("GET", "/ws"),
            ("POST", "/tickets"),
            ("POST", "/stream"),
            ("GET", f"/sse?channels={ROOM}"),
        ):
            status, problem = await refusal(server, method, path, headers=headers)
            assert (status, problem["code"]) == (401, "invalid_token"), path
        client = await Client.open(
            server, hello=False, headers={"Cookie": f"session={token()}", "Origin": "https://app.example"}
        )
        await client.close()
        assert backend.questions == []


async def test_what_is_no_token_is_not_asked_about() -> None:
    async with scene() as (server, backend):
        for bad in ("x" * 9_000, "two words\x7f"):
            client = await greet(server, bad)
            assert (await client.expect("error"))["code"] in ("invalid_token", "invalid_message")
            await client.closed()
        assert backend.questions == []


# --- what the answer does ---------------------------------------------------------------------------------------------


async def test_answer_gives_user_rights_info_channels_and_data() -> None:
    async with scene() as (server, backend):
        backend.reply = {
            "allow": True,
            "user": "zoe",
            "grants": ["shelf:7", {"channel": ROOM, "rights": ["subscribe"]}],
            "info": {"name": "Zoe"},
            "channels": [ROOM, "shelf:8"],
            "data": {"plan": "free"},
            "expires_in": 600,
            "later": "a field of a later version",
        }
        client = await greet(server, OPAQUE)
        welcome = await client.expect("welcome")
        assert (welcome["user"], welcome["data"]) == ("zoe", {"plan": "free"})
        assert 590 <= welcome["expires_in"] <= 600
        assert "connect_data" in welcome["features"]
        await client.send(type="ready")
        await client.until("error", code="forbidden")  # the grants do not cover it, although the backend has named it
        await client.until("subscribed", channel=ROOM)
        assert (await client.ask("history", channel=ROOM))["code"] == "forbidden"
        assert (await client.ask("subscribe", channel="shelf:7"))["type"] == "subscribed"
        await client.close()


async def test_clients_without_data_from_the_backend_get_none() -> None:
    async with scene() as (server, _), server.client() as ann:
        assert "data" not in ann.welcome


BAD_REPLIES: dict[str, Any] = {
    "no user": {"allow": True},
    "user too long": {**ANN, "user": "x" * 129},
    "user with spaces": {**ANN, "user": " ann"},
    "user of another type": {**ANN, "user": 7},
    "grants of another form": {**ANN, "grants": [{"channel": "room:*"}]},
    "grants no list": {**ANN, "grants": "room:*"},
    "unknown right": {**ANN, "grants": [{"channel": "room:*", "rights": ["all"]}]},
    "another tenant": {**ANN, "tenant": "other"},
    "info too large": {**ANN, "info": {"n": "x" * 1_024}},
    "info no object": {**ANN, "info": "ann"},
    "too many channels": {**ANN, "channels": [f"room:{n}" for n in range(33)]},
    "data too large": {**ANN, "data": "x" * 4_096},
    "expired": {**ANN, "expires_in": 0},
    "negative ttl": {**ANN, "ttl": -1},
    "unknown error": {"allow": False, "error": "teapot"},
    "no answer": {"user": "ann"},
    "another shape": ["ann"],
}


async def test_answer_beyond_what_a_token_may_say_opens_nothing() -> None:
    async with scene() as (server, backend):
        for reply in BAD_REPLIES.values():
            backend.reply = ANN  # so that no circuit breaker opens
            assert await plain_get(server) == "ann"
            backend.reply = reply
            client = await greet(server, OPAQUE)
            error = await client.expect("error", code="hook_unavailable", retryable=True)
            assert error["details"]["reason"] == "bad_reply", reply
            assert error["details"]["retry_after"] >= 1
            assert await client.closed() == 1013
        assert await outcomes(server) == {"bad_reply": len(BAD_REPLIES), "allowed": len(BAD_REPLIES)}


async def _hang() -> web.Response:
    await asyncio.Event().wait()
    raise AssertionError


FAULTS: list[tuple[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
    ("status", lambda request: _status(500)),
    ("status", lambda request: _status(204)),
    ("bad_reply", lambda request: _text("allow")),
    ("timeout", lambda request: _hang()),
]


async def test_no_answer_opens_nothing() -> None:
    async with scene({"timeout": 0.5}) as (server, backend):
        for reason, reply in FAULTS:
            backend.reply = reply
            client = await greet(server, OPAQUE)
            error = await client.expect("error", code="hook_unavailable", retryable=True)
            assert error["details"]["reason"] == reason
            assert await client.closed() == 1013
            status, problem = await refusal(server, "GET", "/ws", headers=OWN)
            assert (status, problem["code"]) == (503, "hook_unavailable")


async def test_redirect_is_not_followed() -> None:
    async with serving_backend() as target, scene() as (server, backend):

        async def redirect(request: web.Request) -> web.Response:
            return web.Response(status=307, headers={"Location": target.url})

        backend.reply = redirect
        client = await greet(server, OPAQUE)
        assert (await client.expect("error", code="hook_unavailable"))["details"]["reason"] == "status"
        await client.closed()
        assert target.questions == []


async def test_nothing_that_a_client_sends_chooses_whom_to_ask() -> None:
    async with (
        serving_backend() as target,
        scene(connect={"headers": ["host", "x-forwarded-host", "forwarded"]}) as (
            server,
            backend,
        ),
    ):
        host = target.url.removeprefix("http://").partition("/")[0]
        for token_ in (target.url, f"//{host}/hooks", f"\\\\{host}", f"@{host}", f"x?url={target.url}#{host}"):
            headers = {
                "Authorization": f"Bearer {token_}",
                "Host": host,
                "X-Forwarded-Host": host,
                "Forwarded": f"host={host}",
                "Origin": f"http://{host}",
                "X-Forwarded-For": host,
                "Referer": target.url,
            }
            await refusal(
                server, "GET", f"/ws?client={host}/1&channels=http://{host}&url={target.url}", headers=headers
            )
            client = await greet(server, token_)
            assert (await client.expect("welcome"))["user"] == "ann"
            await client.close()
        assert target.questions == []
        assert {request.host for request in backend.requests} == {backend.url.split("/")[2]}
        assert len(backend.questions) == 10


async def test_refusal_has_the_code_and_the_reason_that_the_backend_gives() -> None:
    async with scene() as (server, backend):
        for error, status, close in (
            (None, 403, 4403),
            ("forbidden", 403, 4403),
            ("invalid_token", 401, 4401),
            ("token_expired", 401, 4401),
        ):
            backend.reply = {"allow": False, "reason": "banned", **({} if error is None else {"error": error})}
            client = await greet(server, OPAQUE)
            refused = await client.expect("error", code=error or "forbidden", retryable=False)
            assert refused["details"] == {"reason": "banned"}
            assert await client.closed() == close
            found, problem = await refusal(server, "GET", "/ws", headers=OWN)
            assert (found, problem["code"], problem["details"]) == (status, error or "forbidden", {"reason": "banned"})
        assert await outcomes(server) == {"denied": 8}


async def test_answer_names_another_tenant_of_the_endpoint() -> None:
    async with scene({"tenants": ["default", "other"]}) as (server, backend):
        backend.reply = {**ANN, "tenant": "other"}
        client = await greet(server, OPAQUE)
        await client.expect("welcome")
        await client.send(type="ready")
        await client.subscribe(ROOM)
        await server.publish(ROOM, {"type": "chat.message", "data": {"text": "default"}})
        await server.publish(ROOM, {"type": "chat.message", "data": {"text": "other"}}, key=harness.OTHER_API_KEY)
        assert (await client.until("chat.message"))["data"] == {"text": "other"}
        await client.close()


# --- bounds -----------------------------------------------------------------------------------------------------------


async def test_crowd_without_valid_tokens_causes_at_most_the_configured_questions() -> None:
    clock = FakeClock(time.time())
    options: dict[str, Any] = {
        "connect": {"rate": {"per_second": 5, "burst": 20}},
        "limits": {"connect_rate_per_ip": {"per_second": 10_000, "burst": 10_000}},
    }
    async with scene(clock=clock, **options) as (server, backend):
        backend.reply = {"allow": False, "error": "invalid_token"}

        async def knock(number: int) -> tuple[int, str, bool]:
            headers = {"Authorization": f"Bearer guess-{number}"}
            async with server.http.get(f"{server.url}/ws", headers=headers) as response:
                problem = await response.json(content_type=None)
                return response.status, problem["code"], "Retry-After" in response.headers

        found = await asyncio.gather(*(knock(number) for number in range(300)))
        assert sorted(set(found)) == [(401, "invalid_token", False), (503, "overloaded", True)]
        assert len(backend.questions) == 20
        assert await outcomes(server) == {"denied": 20, "limited": 280}
        assert await server.metric("limit_hits_total", limit="hook_connects") == 280
        clock.advance(2)
        found = await asyncio.gather(*(knock(number) for number in range(50)))
        assert len(backend.questions) == 30
        async with server.client("ben", iat=None) as ben:  # a token of an issuer needs no question
            assert ben.welcome["user"] == "ben"
        client = await greet(server, OPAQUE)
        error = await client.expect("error", code="overloaded", retryable=True)
        assert error["details"]["retry_after"] > 0
        assert await client.closed() == 1013


async def test_answer_counts_only_as_long_as_the_backend_says_and_for_the_same_question() -> None:
    clock = FakeClock(time.time())
    async with scene(clock=clock, connect={"headers": ["x-device"]}) as (server, backend):
        backend.secrets = []  # the clock leaves the time in which signatures count

        async def knock(device: str = "phone", token_: str = OPAQUE) -> str:
            headers = {"Authorization": f"Bearer {token_}", "X-Device": device}
            _, problem = await refusal(server, "GET", "/ws", headers=headers)
            return str(problem["code"])

        for reply, code in ((ANN, "upgrade_required"), (NO, "forbidden")):
            backend.reply = reply
            asked = len(backend.questions)
            assert [await knock(), await knock()] == [code, code]
            assert len(backend.questions) == asked + 2  # without `ttl`, nothing is remembered
            backend.reply = {**reply, "ttl": 60}
            assert [await knock() for _ in range(3)] == [code] * 3
            assert len(backend.questions) == asked + 3
            assert await server.metric("hook_answers", kind="connect") >= 1
            assert [await knock("tablet"), await knock(token_="another")] == [code, code]
            assert len(backend.questions) == asked + 5
            clock.advance(61)
            assert await knock() == code
            assert len(backend.questions) == asked + 6
            clock.advance(61)
        assert (await outcomes(server))["cached"] == 4


async def test_no_more_answers_are_remembered_than_the_setting_says() -> None:
    async with scene(hooks={"remembered_answers": 2}) as (server, backend):
        backend.reply = {**ANN, "ttl": 60}
        for name in ("one", "two", "three", "two"):
            await refusal(server, "GET", "/ws", headers={"Authorization": f"Bearer {name}"})
        assert len(backend.questions) == 3
        assert await server.metric("hook_answers", kind="connect") == 2
        assert await server.metric("limit_hits_total", limit="hook_answers") == 1


async def test_revocation_closes_the_session_and_outlasts_a_remembered_answer() -> None:
    async with scene() as (server, backend):
        backend.reply = {**ANN, "ttl": 600}
        client = await greet(server, OPAQUE)
        await client.expect("welcome")
        async with server.http.post(
            f"{server.url}/api/v1/users/ann/revoke", json={}, headers={"Authorization": f"Bearer {API_KEY}"}
        ) as response:
            assert response.status == 200, await response.text()
        assert await client.closed() == 4401
        backend.reply = NO
        client = await greet(server, OPAQUE)
        await client.expect("error", code="forbidden")
        await client.closed()
        assert len(backend.questions) == 2
