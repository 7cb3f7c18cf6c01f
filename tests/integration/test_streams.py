"""`POST /stream` and `GET /sse`: the events of a WebSocket as server-sent events (docs/streams.md)."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, DEADLINE, OTHER_API_KEY, Running, passes, serving, token
from tests.support.raw import connected
from tests.support.streams import Stream, authorization, refusal, sse, stream, stream_ticket

PATHS = ("/stream", "/sse")


def position(message: dict[str, Any]) -> dict[str, Any]:
    """The position in `subscribed`, as `since`."""
    since = {"epoch": message["epoch"], "offset": message["offset"]}
    return since | ({"id": message["last"]} if "last" in message else {})


async def publish(server: Running, text: str, channel: str = "room:1") -> dict[str, Any]:
    return await server.publish(channel, {"type": "chat.message", "data": {"text": text}})


# --- events -----------------------------------------------------------------------------------------------------------


async def test_stream_gets_the_messages_that_a_websocket_gets(server: Running) -> None:
    async with server.client() as client, stream(server, "room:1") as opened:
        await client.subscribe("room:1")
        assert opened.welcome["user"] == "ann"
        await opened.expect("subscribed", channel="room:1", id=None)
        await publish(server, "hi")
        assert await opened.until("chat.message") == await client.until("chat.message")


async def test_stream_in_a_crowd_of_websockets_gets_each_batch(server: Running) -> None:
    async with stream(server, "room:1") as one, stream(server, "room:1") as other, server.client() as client:
        await client.subscribe("room:1")
        await server.publish("room:1", [{"type": "chat.message", "data": {"text": str(n)}} for n in range(50)])
        for opened in (one, other):
            assert [(await opened.until("chat.message"))["data"]["text"] for _ in range(50)] == [
                str(n) for n in range(50)
            ]


async def test_event_with_line_breaks_between_tokens_arrives_whole(server: Running) -> None:
    async with stream(server, "room:1") as opened:
        await opened.until("subscribed")
        body = '{"type": "chat.message", "data": {\r\n"text":\n\r"a\\r\\nb"\r}}'
        async with server.http.post(
            f"{server.url}/api/v1/channels/room:1/events",
            data=body,
            headers={
                "Authorization": f"Bearer {API_KEY}",
                "Content-Type": "application/json",
            },
        ) as response:
            assert response.status == 200
        assert (await opened.until("chat.message"))["data"] == {"text": "a\r\nb"}


async def test_stream_resumes_from_its_position(server: Running) -> None:
    async with stream(server, "room:1") as opened:
        since = position(await opened.until("subscribed"))
    for text in "abc":
        await publish(server, text)
    async with stream(server, {"channel": "room:1", "since": since}) as opened:
        subscribed = await opened.until("subscribed")
        assert subscribed["recovered"] is True
        assert [event["data"]["text"] for event in subscribed["events"]] == ["a", "b", "c"]


async def test_event_source_resumes_with_last_event_id(server: Running) -> None:
    channels = ["room:1", "room:2", "news:x"]
    async with sse(server, channels) as opened:
        for _ in channels:
            await opened.until("subscribed")
        await publish(server, "a")
        await opened.until("chat.message")
        last_id = opened.last_id
    await publish(server, "b")
    await publish(server, "c", "room:2")
    for how in ({"headers": authorization() | {"Last-Event-ID": last_id}}, {"query": f"&last_event_id={last_id}"}):
        async with sse(server, channels, **how) as opened:
            found = {message["channel"]: message for message in [await opened.until("subscribed") for _ in channels]}
            assert {channel: message["recovered"] for channel, message in found.items()} == dict.fromkeys(
                channels, True
            )
            texts = {channel: [event["data"]["text"] for event in found[channel]["events"]] for channel in channels}
            assert texts == {"room:1": ["b"], "room:2": ["c"], "news:x": []}


async def test_latest_and_ephemeral_events_change_no_id(server: Running) -> None:
    async with sse(server, ["room:1"]) as opened:
        await opened.until("subscribed")
        before = opened.last_id
        await server.publish("room:1", {"type": "chat.pinned", "data": {"slot": "a", "text": "x"}, "key": "a"})
        await opened.until("chat.pinned")
        assert opened.last_id == before != ""


async def test_user_of_a_stream_is_present_until_it_ends(server: Running) -> None:
    async with server.client("ben") as client:
        await client.subscribe("room:1")
        async with stream(server, "room:1"):
            await client.until("presence.joined", data={"user": "ann"})
        await client.until("presence.left", data={"user": "ann"})


# --- the response -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
async def test_response_keeps_proxies_from_holding_events_back(server: Running, path: str) -> None:
    opening = stream(server, "room:1") if path == "/stream" else sse(server, ["room:1"])
    async with opening as opened:
        headers = opened.response.headers
        assert headers["Content-Type"] == "text/event-stream"
        assert headers["Cache-Control"] == "no-store, no-transform"
        assert headers["X-Accel-Buffering"] == "no"
        assert opened.retry is not None
        assert 1000 <= opened.retry <= 5000


async def test_stream_gets_a_comment_every_15_to_25_seconds() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock) as server, stream(server, "room:1") as opened:
        await opened.until("subscribed")
        await passes(clock, 21)
        await opened.comment()
        for _ in range(3):
            before = opened.comments
            await passes(clock, 15)
            await passes(clock, 6)
            await opened.comment()
            assert opened.comments == before + 1


async def test_client_that_leaves_ends_its_session(server: Running) -> None:
    async with stream(server, "room:1"):
        assert await server.metric("streams") == 1
        assert await server.metric("connections") == 1
    await server.at_rest()
    assert await server.metric("streams") == 0


@pytest.mark.parametrize("path", PATHS)
async def test_client_that_has_left_before_the_response_gets_no_stream(server: Running, path: str) -> None:
    body = b'{"subscriptions": [{"channel": "room:1"}]}' if path == "/stream" else b""
    request = "POST /stream" if path == "/stream" else "GET /sse?channels=room:1"
    async with connected(server) as raw:
        raw.write(
            f"{request} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        raw.writer.write_eof()
        await raw.gone()
    await server.at_rest()
    assert await server.metric("streams") == 0


async def test_client_that_sends_more_after_its_request_is_cut(server: Running) -> None:
    async with connected(server) as raw:
        raw.write(f"GET /sse?channels=room:1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n\r\n".encode())
        assert (await raw.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK\r\n")
        raw.write(bytes(5000))
        await raw.gone()
    assert await server.metric("limit_hits_total", limit="late_bytes") == 1


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_drain_ends_streams_with_a_short_retry(server: Running) -> None:
    async with stream(server, "room:1") as opened, sse(server, ["room:1"]) as other:
        draining = asyncio.ensure_future(server.service.node.lifecycle.drain())
        for one in (opened, other):
            await one.until("reconnect", reason="shutdown")
            assert (await one.closed())["code"] == 1012
            assert one.retry is not None
            assert 100 <= one.retry <= 1000
        await draining


@pytest.mark.parametrize("path", PATHS)
async def test_draining_node_refuses_streams(server: Running, path: str) -> None:
    server.service.node.admission.set_draining(draining=True)
    method = "POST" if path == "/stream" else "GET"
    status, problem = await refusal(server, method, path, headers=authorization())
    assert (status, problem["code"]) == (503, "draining")


async def test_disconnect_unsubscribe_and_revoke_reach_streams(server: Running) -> None:
    api = {"Authorization": f"Bearer {API_KEY}"}

    async def command(path: str, body: dict[str, Any]) -> None:
        async with server.http.post(f"{server.url}/api/v1/users/ann/{path}", json=body, headers=api) as response:
            assert response.status == 200, await response.text()

    async with stream(server, "room:1", "room:2") as opened:
        await command("unsubscribe", {"channel": "room:1"})
        await opened.until("unsubscribed", channel="room:1", code="removed")
        await command("disconnect", {"reason": "bye"})
        assert await opened.closed() == {"type": "closed", "code": 4403, "reason": "bye"}
    async with stream(server, "room:1") as opened:
        async with asyncio.timeout(2):
            await command("revoke", {})
            assert (await opened.closed())["code"] == 4401


async def test_stream_whose_token_expires_ends() -> None:
    clock = FakeClock(time.time())
    async with (
        serving(clock=clock) as server,
        stream(server, "room:1", headers=authorization(ttl=90)) as opened,
    ):
        await passes(clock, 40)
        await opened.until("expiring")
        await passes(clock, 70)
        assert (await opened.closed())["code"] == 4401


async def test_slow_reader_of_durable_events_ends_with_4450_and_resumes() -> None:
    async with serving(outbox={"bytes": 4096, "messages": 4, "send_buffer": 4096}) as server:
        async with stream(server, "room:1") as opened:
            since = position(await opened.until("subscribed"))
        async with connected(server, receive_buffer=4096) as raw:
            raw.write(
                f"GET /sse?channels=room:1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n\r\n".encode()
            )
            await raw.reader.readuntil(b'"subscribed"')
            count = 0
            while server.service.node.streams.registry.of_user("default", "ann"):
                await publish(server, "x" * 50_000)
                count += 1
            assert (await raw.reader.read()).count(b'"chat.message"') <= count
        assert await server.metric("closes_total", code="4450") == 1
        async with stream(server, {"channel": "room:1", "since": since}) as opened:
            subscribed = await opened.until("subscribed")
            assert subscribed["offset"] == count


async def test_drain_ends_a_stream_that_nobody_reads() -> None:
    outbox = {"send_buffer": 4096, "close_grace": 0.1}
    async with serving(outbox=outbox, rollout={"drain_rate": 100.0}) as server:
        async with connected(server, receive_buffer=4096) as raw:
            raw.write(
                f"GET /sse?channels=room:1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n\r\n".encode()
            )
            await raw.reader.readuntil(b'"subscribed"')
            [slow] = server.service.node.streams.registry
            while not slow.queued_messages:
                await publish(server, "x" * 50_000)
            async with asyncio.timeout(DEADLINE):
                await server.service.node.lifecycle.drain()
        assert await server.metric("drain_timeouts_total") == 0
        await server.at_rest()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "path"),
    [
        (b"", 400, "malformed", "$"),
        (b"{", 400, "malformed", "$"),
        (b'{"subscriptions": {}}', 400, "invalid_message", "$.subscriptions"),
        (b'{"subscriptions": [{"channel": "room:1"}], "extra": 1}', 400, "invalid_message", "$.extra"),
        (
            b'{"subscriptions": [{"channel": "room:1", "channel": "room:2"}]}',
            400,
            "malformed",
            "$.subscriptions[0].channel",
        ),
        (
            b'{"subscriptions": [{"channel": "room:1"}, {"channel": "room:1"}]}',
            400,
            "invalid_message",
            "$.subscriptions[1].channel",
        ),
        (b'{"subscriptions": [{"channel": "nowhere:1"}]}', 404, "unknown_channel", None),
        (b'{"subscriptions": [{"channel": "room:1"}, {"channel": "inbox:ben"}]}', 403, "forbidden", None),
    ],
)
async def test_body_of_a_stream_is_checked(
    server: Running, body: bytes, status: int, code: str, path: str | None
) -> None:
    headers = authorization() | {"Content-Type": "application/json"}
    found, problem = await refusal(server, "POST", "/stream", data=body, headers=headers)
    assert (found, problem["code"]) == (status, code), problem
    if path is not None:
        assert problem["details"]["path"] == path, problem
    else:
        assert problem["details"]["channel"] in ("nowhere:1", "inbox:ben"), "the client can ask for the others"
    await server.at_rest()


@pytest.mark.parametrize("body", [{}, {"subscriptions": []}])
async def test_stream_without_channels_is_welcomed_and_can_publish(server: Running, body: dict[str, Any]) -> None:
    async with server.http.post(f"{server.url}/stream", json=body, headers=authorization()) as response:
        opened = Stream(response)
        await opened.expect("welcome")
        receipt = (await opened.expect("receipt"))["receipt"]
        event = {"type": "ticker.price", "channel": "room:1", "id": "m-1", "data": {}, "receipt": receipt}
        status, problem = await refusal(server, "POST", "/emit", json=event, headers=authorization())
        assert (status, problem["code"]) == (404, "unknown_event")


async def test_body_of_a_stream_is_json_by_its_type(server: Running) -> None:
    body = json.dumps({"subscriptions": [{"channel": "room:1"}]})
    headers = authorization() | {"Content-Type": "text/plain"}
    status, problem = await refusal(server, "POST", "/stream", data=body, headers=headers)
    assert (status, problem["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "query",
    ["", "?channels=", "?channels=" + ",".join(f"room:{n}" for n in range(9)), "?channels=room:1&last_event_id=x"],
)
async def test_address_of_an_event_source_is_checked(server: Running, query: str) -> None:
    status, problem = await refusal(server, "GET", f"/sse{query}", headers=authorization())
    assert (status, problem["code"]) == (400, "invalid_request")
    assert problem["details"]["parameter"] in ("channels", "Last-Event-ID")
    await server.at_rest()


@pytest.mark.parametrize("part", [b"\xff:1:m-1", b"a:1:\xff", "a:1:ü".encode()])
async def test_id_with_other_characters_than_ascii_is_refused(server: Running, part: bytes) -> None:
    async with sse(server, ["room:1"]) as opened:
        await opened.until("subscribed")
        check = opened.last_id.partition(".")[0].encode()
    async with connected(server) as raw:
        raw.write(
            f"GET /sse?channels=room:1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n".encode()
            + b"Last-Event-ID: %b.%b\r\n\r\n" % (check, part)
        )
        assert (await raw.answer()).code == "invalid_request"


async def test_id_of_other_channels_is_refused(server: Running) -> None:
    async with sse(server, ["room:1"]) as opened:
        await opened.until("subscribed")
        headers = authorization() | {"Last-Event-ID": opened.last_id}
    status, problem = await refusal(server, "GET", "/sse?channels=room:2", headers=headers)
    assert (status, problem["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", PATHS)
async def test_stream_without_credentials_is_refused(server: Running, path: str) -> None:
    method = "POST" if path == "/stream" else "GET"
    status, problem = await refusal(server, method, path)
    assert (status, problem["code"]) == (401, "unauthenticated")


async def test_anonymous_stream_gets_what_everyone_may() -> None:
    async with serving(auth={"anonymous": True}) as server:
        async with sse(server, ["news:x"], headers={}) as opened:
            assert opened.welcome["user"] == ""
            await opened.expect("subscribed")
        status, problem = await refusal(server, "GET", "/sse?channels=room:1")
        assert (status, problem["code"]) == (403, "forbidden")


@pytest.mark.parametrize("path", PATHS)
async def test_streams_count_under_the_caps_of_connections(path: str) -> None:
    async with serving(limits={"connections_per_user": 2}) as server:
        async with stream(server, "room:1"), server.client():
            body = {"subscriptions": [{"channel": "room:1"}]}
            request: dict[str, Any] = {"json": body} if path == "/stream" else {"params": {"channels": "room:1"}}
            method = "POST" if path == "/stream" else "GET"
            status, problem = await refusal(server, method, path, headers=authorization(), **request)
            assert (status, problem["code"]) == (429, "too_many_connections")
            assert problem["details"]["scope"] == "connections_per_user"
        await server.at_rest()


async def test_channels_of_a_stream_cost_subscribes() -> None:
    rate = {"per_second": 0.001, "burst": 1}
    limits = {"user_rate": rate, "connections_per_user": 1, "subscriptions": 3}
    async with serving(limits=limits) as server:
        async with stream(server, "room:1", "room:2"):
            pass
        await server.at_rest()
        body = {"subscriptions": [{"channel": "room:1"}, {"channel": "room:2"}]}
        status, problem = await refusal(server, "POST", "/stream", json=body, headers=authorization())
        assert (status, problem["code"], problem["details"]["scope"]) == (429, "rate_limited", "user")


# --- origins and cookies ----------------------------------------------------------------------------------------------

OWN = "https://app.example"


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        ((OWN,), OWN, 200),
        ((OWN,), None, 403),
        ((OWN,), "https://evil.example", 403),
        (("*",), "https://evil.example", 401),
    ],
)
async def test_post_with_a_cookie_needs_a_listed_origin(
    origins: tuple[str, ...], origin: str | None, status: int
) -> None:
    auth = {"cookie": "session"} if origins == (OWN,) else {}
    async with serving(origins=origins, auth=auth) as server:
        headers = {"Cookie": f"session={token()}"} | (
            {"Origin": origin} if origin else {"Sec-Fetch-Site": "same-origin"}
        )
        headers |= {} if origin else {"Host": "app.example"}
        body = {"subscriptions": [{"channel": "room:1"}]}
        async with server.http.post(f"{server.url}/stream", json=body, headers=headers) as response:
            assert response.status == status, await response.text()
            if origin == OWN:
                assert response.headers["Access-Control-Allow-Origin"] == OWN
                assert response.headers["Access-Control-Allow-Credentials"] == "true"


@pytest.mark.parametrize(("path", "method"), [("/stream", "POST"), ("/sse", "GET")])
async def test_preflight_allows_the_headers_of_a_stream(server: Running, path: str, method: str) -> None:
    async with server.http.options(f"{server.url}{path}", headers={"Origin": OWN}) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Methods"] == method
        allowed = response.headers["Access-Control-Allow-Headers"].split(", ")
        assert {"Authorization", "Content-Type", "Last-Event-ID"} <= set(allowed)


# --- tickets ----------------------------------------------------------------------------------------------------------


async def test_stream_ticket_opens_streams_again_and_again(server: Running) -> None:
    ticket = await stream_ticket(server, "room:1", "room:2")
    for channels in (["room:1"], ["room:2"], ["room:1", "room:2"], []):
        async with sse(server, channels, query=f"&ticket={ticket}", headers={}) as opened:
            assert opened.welcome["user"] == "ann"
            for _ in channels or range(2):
                await opened.until("subscribed")


async def test_stream_ticket_opens_no_other_channel_and_no_websocket(server: Running) -> None:
    ticket = await stream_ticket(server, "room:1")
    status, problem = await refusal(server, "GET", f"/sse?channels=room:2&ticket={ticket}")
    assert (status, problem["code"], problem["details"]["channel"]) == (403, "forbidden", "room:2")
    status, problem = await refusal(server, "GET", f"/ws?ticket={ticket}")
    assert (status, problem["code"]) == (401, "invalid_ticket")
    body = {"subscriptions": [{"channel": "room:1"}]}
    status, problem = await refusal(server, "POST", f"/stream?ticket={ticket}", json=body)
    assert (status, problem["code"]) == (401, "invalid_ticket")


async def test_ticket_of_a_websocket_opens_no_stream(server: Running) -> None:
    async with server.http.post(f"{server.url}/tickets", headers=authorization()) as response:
        ticket = (await response.json())["ticket"]
    status, problem = await refusal(server, "GET", f"/sse?channels=room:1&ticket={ticket}")
    assert (status, problem["code"]) == (401, "invalid_ticket")


async def test_stream_ticket_expires_and_ends_with_its_token() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock) as server:
        issued_at = int(clock.wall())  # by the service's clock, which stands still: a later token is not revoked
        expiring, revoked = [await stream_ticket(server, "room:1", user=user, iat=issued_at) for user in ("ann", "ben")]
        api = {"Authorization": f"Bearer {API_KEY}"}
        async with server.http.post(f"{server.url}/api/v1/users/ben/revoke", json={}, headers=api) as response:
            assert response.status == 200
        status, problem = await refusal(server, "GET", f"/sse?channels=room:1&ticket={revoked}")
        assert (status, problem["code"]) == (401, "invalid_token")
        clock.advance(121)
        status, problem = await refusal(server, "GET", f"/sse?channels=room:1&ticket={expiring}")
        assert (status, problem["code"]) == (401, "invalid_ticket")


@pytest.mark.parametrize(
    ("channels", "status", "code"),
    [
        ([], 400, "invalid_message"),
        ([f"room:{n}" for n in range(9)], 400, "invalid_message"),
        (["inbox:ben"], 403, "forbidden"),
    ],
)
async def test_stream_ticket_is_only_for_allowed_channels(
    server: Running, channels: list[str], status: int, code: str
) -> None:
    found, problem = await refusal(server, "POST", "/tickets", json={"channels": channels}, headers=authorization())
    assert (found, problem["code"]) == (status, code)


# --- features ---------------------------------------------------------------------------------------------------------


async def test_stream_tells_the_features_and_counts_the_client(server: Running) -> None:
    announced: dict[str, Any] = {"client": "lib/1.2", "features": ["streams", "tomorrow"]}
    async with stream(server, "room:1", **announced) as opened:
        assert "streams" in opened.welcome["features"]
    async with sse(server, ["room:1"], query="&client=lib/1.2&features=streams"):
        pass
    assert await server.metric("client_versions_total", client="lib", version="1.2") == 2


# --- rights and tenants -----------------------------------------------------------------------------------------------


async def test_stream_shows_neither_history_nor_presence_without_the_rights(server: Running) -> None:
    async with sse(server, ["room:1"]) as opened:
        since = position(await opened.until("subscribed"))
        last_id = opened.last_id
    await publish(server, "secret")
    headers = authorization("ben", grants=[{"channel": "room:*", "rights": ["subscribe"]}])
    for opening in (
        stream(server, {"channel": "room:1", "since": since}, headers=headers),
        sse(server, ["room:1"], headers=headers | {"Last-Event-ID": last_id}),
    ):
        async with opening as opened:
            subscribed = await opened.until("subscribed")
            assert (subscribed["events"], subscribed["recovered"]) == ([], False)
            assert "presence" not in subscribed


async def test_streams_of_two_tenants_share_nothing(server: Running) -> None:
    event = {"type": "chat.message", "data": {"text": "theirs"}}
    async with (
        stream(server, "room:1") as ours,
        stream(server, "room:1", headers=authorization(tenant="other")) as theirs,
    ):
        await ours.until("subscribed")
        await theirs.until("subscribed")
        await server.publish("room:1", event, OTHER_API_KEY)
        await publish(server, "ours")
        assert (await ours.until("chat.message"))["data"]["text"] == "ours"
        assert (await theirs.until("chat.message"))["data"]["text"] == "theirs"
