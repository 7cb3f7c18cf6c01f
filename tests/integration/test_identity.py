"""Who is on a connection: every way to say so, which one counts, and what happens to those who do not."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from service.core.hooks import ClientContext
from service.core.identity import Identity
from service.errors import ErrorCode, ServiceError
from service.web.problem import MAX_RETRY_AFTER
from tests.support.authenticator import StubAuthenticator
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, Client, Running, serving, token
from tests.support.raw import PING, PONG, ask, bearer, frame, new_ticket, upgraded

BAD_TOKENS = {
    "nonsense": "nonsense",
    "three segments of nothing": "x.y.z",
    "another secret": token()[:-6] + "AAAAAA",
    "without a signature": token().rpartition(".")[0] + ".",
    "an API key": API_KEY,
    "another issuer": token(iss="someone"),
    "another audience": token(aud="someone"),
    "no user": token(sub=None),
    "no expiry": token(exp=None),
    "grants that are no list": token(grants="room:*"),  # type: ignore[arg-type]  # that is the fault
    "a tenant that is no name": token(tenant="a/b"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_invalid_token_is_refused_in_every_place(name: str) -> None:
    bad = BAD_TOKENS[name]
    async with serving(origins=("https://app.example",), auth={"cookie": "session"}) as server:
        cookie: dict[str, str | None] = {"Cookie": f"session={bad}", "Origin": "https://app.example"}
        for headers in (bearer(bad), cookie):
            for method, target, upgrade in (("GET", "/ws", True), ("GET", "/ws", False), ("POST", "/tickets", False)):
                answer = await ask(server, target, headers, upgrade=upgrade, method=method)
                assert (answer.status, answer.code) == (401, "invalid_token")
                assert answer.headers["www-authenticate"] == "Bearer"
                assert bad not in answer.body.decode()
        client = await Client.open(server, hello=False)
        await client.send(type="hello", token=bad)
        error = await client.expect("error", code="invalid_token", retryable=False)
        assert bad not in json.dumps(error)
        assert await client.closed() == 4401
        await server.at_rest()
        assert await server.metric("closes_total", code="4401") == 1
        assert await server.metric("errors_total", code="invalid_token") == 1


class KeysAway(StubAuthenticator):
    """An authenticator whose issuer does not give its keys."""

    async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
        raise ServiceError(ErrorCode.OVERLOADED, "the issuer's keys cannot be had right now")


async def test_uncheckable_token_gets_a_retryable_error() -> None:
    async with serving(authenticator=KeysAway()) as server:
        for upgrade in (True, False):
            answer = await ask(server, "/ws", bearer(token()), upgrade=upgrade)
            assert (answer.status, answer.code) == (503, "overloaded")
            assert 1 <= int(answer.headers["retry-after"]) <= MAX_RETRY_AFTER
        client = await Client.open(server, hello=False)
        await client.send(type="hello", token=token())
        await client.expect("error", code="overloaded", retryable=True)
        assert await client.closed() == 1013
        await server.at_rest()


async def test_expired_token_has_its_own_code() -> None:
    expired = token(ttl=-60)
    async with serving() as server:
        for upgrade in (True, False):
            answer = await ask(server, "/ws", bearer(expired), upgrade=upgrade)
            assert (answer.status, answer.code) == (401, "token_expired")
            assert answer.headers["www-authenticate"] == "Bearer"
        client = await Client.open(server, hello=False)
        await client.send(type="hello", token=expired)
        await client.expect("error", code="token_expired")
        assert await client.closed() == 4401
        await server.at_rest()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_bearer_token_authenticates(server: Running, scheme: str) -> None:
    async with server.client(hello=False, headers={"Authorization": f"{scheme}  {token('eve')}"}) as client:
        assert client.welcome["user"] == "eve"
        assert await server.metric("connects_total", credentials="bearer") == 1


class TestTicket:
    async def test_ticket_authenticates_as_its_requester(self, server: Running) -> None:
        ticket = await new_ticket(server, "eve", grants=["room:7"])
        async with server.client(hello=False, query=f"?ticket={ticket}") as client:
            assert client.welcome["user"] == "eve"
            await client.subscribe("room:7")
            assert (await client.ask("subscribe", channel="room:8"))["code"] == "forbidden"
        assert await server.metric("connects_total", credentials="ticket") == 1

    async def test_ticket_is_valid_once(self, server: Running) -> None:
        target = f"/ws?ticket={await new_ticket(server)}"
        assert (await ask(server, target)).status == 101
        answer = await ask(server, target)
        assert (answer.status, answer.code) == (401, "invalid_ticket")
        assert answer.headers["www-authenticate"] == "Bearer"

    async def test_ticket_used_twice_at_once_authenticates_one(self, server: Running) -> None:
        for _ in range(10):
            target = f"/ws?ticket={await new_ticket(server)}"
            answers = await asyncio.gather(*(ask(server, target) for _ in range(5)))
            assert sorted(answer.code for answer in answers) == ["invalid_ticket"] * 4 + ["switched"]
        await server.at_rest()

    @pytest.mark.parametrize("ticket", ["", "unknown", "x" * 5000, "%00", "%C3%BC", API_KEY])
    async def test_unknown_ticket_is_refused(self, server: Running, ticket: str) -> None:
        for upgrade in (True, False):
            answer = await ask(server, f"/ws?ticket={ticket}", upgrade=upgrade)
            assert (answer.status, answer.code) == (401, "invalid_ticket")

    async def test_ticket_past_its_ttl_is_refused(self) -> None:
        clock = FakeClock(time.time())
        async with serving(clock=clock) as server:
            one, two = await new_ticket(server), await new_ticket(server)
            clock.advance(29.9)
            assert (await ask(server, f"/ws?ticket={one}")).status == 101
            clock.advance(0.1)
            for upgrade in (True, False):
                assert (await ask(server, f"/ws?ticket={two}", upgrade=upgrade)).code == "invalid_ticket"

    async def test_ticket_lasts_no_longer_than_its_token(self) -> None:
        clock = FakeClock(time.time())
        async with serving(clock=clock) as server:
            ticket = await new_ticket(server, ttl=10)
            clock.advance(20)
            answer = await ask(server, f"/ws?ticket={ticket}")
            assert (answer.status, answer.code) == (401, "token_expired")

    async def test_ticket_is_not_issued_for_a_ticket(self, server: Running) -> None:
        ticket = await new_ticket(server)
        answer = await ask(server, f"/tickets?ticket={ticket}", upgrade=False, method="POST")
        assert (answer.status, answer.code) == (401, "unauthenticated")
        assert (await ask(server, f"/ws?ticket={ticket}")).status == 101

    async def test_ticket_is_not_issued_by_a_draining_node(self, server: Running) -> None:
        server.service.node.admission.set_draining(draining=True)
        answer = await ask(server, "/tickets", bearer(), upgrade=False, method="POST")
        assert (answer.status, answer.code) == (503, "draining")


class TestPrecedence:
    """The first found counts; one that is bad is not passed over for a good one behind it."""

    @pytest.mark.parametrize(
        ("authorization", "ticket", "cookie", "expected"),
        [
            ("bea", "tim", "coo", "bea"),
            (None, "tim", "coo", "tim"),
            (None, None, "coo", "coo"),
            ("bad", "tim", "coo", "invalid_token"),
            (None, "bad", "coo", "invalid_ticket"),
            (None, None, "bad", "invalid_token"),
        ],
    )
    async def test_bearer_precedes_ticket_and_ticket_precedes_cookie(
        self, authorization: str | None, ticket: str | None, cookie: str | None, expected: str
    ) -> None:
        async with serving(origins=("https://app.example",), auth={"cookie": "session"}) as server:
            headers = {"Origin": "https://app.example"}
            if authorization is not None:
                headers["Authorization"] = f"Bearer {'x.y.z' if authorization == 'bad' else token(authorization)}"
            if cookie is not None:
                headers["Cookie"] = f"session={'x.y.z' if cookie == 'bad' else token(cookie)}"
            given = None
            if ticket is not None:
                given = "bad" if ticket == "bad" else await new_ticket(server, ticket)
            target = "/ws" if given is None else f"/ws?ticket={given}"
            if expected.startswith("invalid"):
                answer = await ask(server, target, dict(headers))
                assert (answer.status, answer.code) == (401, expected)
            else:
                query = target.removeprefix("/ws")
                async with server.client(hello=False, query=query, headers=headers) as client:
                    assert client.welcome["user"] == expected

    async def test_unused_ticket_stays_valid(self, server: Running) -> None:
        target = f"/ws?ticket={await new_ticket(server)}"
        assert (await ask(server, target, bearer())).status == 101
        assert (await ask(server, target)).status == 101

    async def test_hello_after_authenticated_upgrade_is_refused(self, server: Running) -> None:
        async with server.client(hello=False, headers={"Authorization": f"Bearer {token('ann')}"}) as ann:
            await ann.send(type="hello", token=token("eve"))
            error = await ann.expect("error", code="invalid_message")
            assert error["details"]["path"] == "$.type"
            await ann.silence()
            (connection,) = server.service.node.streams.registry
            assert connection.session.identity.user == "ann"

    @pytest.mark.parametrize("place", ["token", "access_token", "authorization", "jwt"])
    async def test_token_in_the_address_is_ignored(self, server: Running, place: str) -> None:
        answer = await ask(server, f"/ws?channels=room:1&{place}={token()}", upgrade=False)
        assert (answer.status, answer.code) == (401, "unauthenticated")

    async def test_token_as_a_subprotocol_is_ignored(self, server: Running) -> None:
        offered = {"Sec-WebSocket-Protocol": f"tidewire.v1, bearer, {token()}"}
        answer = await ask(server, "/ws?channels=room:1", dict(offered))
        assert (answer.status, answer.code) == (401, "unauthenticated")


class TestHello:
    async def test_hello_with_more_messages_in_its_batch_runs_them(self, server: Running) -> None:
        client = await Client.open(server, hello=False)
        batch = [
            {"type": "hello", "token": token("eve")},
            {"type": "subscribe", "id": "s", "channel": "room:1"},
            {"type": "ready"},
            {"type": "chat.message", "id": "m", "channel": "room:1", "data": {"text": "hi"}},
            {"type": "nonsense", "id": "n"},
        ]
        await client.raw(json.dumps(batch))
        assert (await client.expect("welcome"))["user"] == "eve"
        await client.until("subscribed", id="s")
        await client.until("ack", id="m", offset=1)
        await client.until("error", id="n", code="unknown_type")
        await client.close()
        assert await server.metric("connects_total", credentials="hello") == 1

    @pytest.mark.parametrize(
        ("first", "code"),
        [
            ('{"type":"ping","id":"k"}', "unauthenticated"),
            ('{"type":"subscribe","id":"k","channel":"room:1"}', "unauthenticated"),
            ('{"type":"chat.message","id":"k","channel":"news:1","data":{}}', "unauthenticated"),
            ('[{"type":"ping","id":"k"},{"type":"hello"}]', "unauthenticated"),
            ('{"type":"hello","id":"k","tokn":"x"}', "invalid_message"),
            ('{"type":"hello","id":"k","token":7}', "invalid_message"),
            ('{"type":"helo","id":"k"}', "unknown_type"),
            ("{", "malformed"),
            ("[", "malformed"),
            ("", "malformed"),
        ],
    )
    async def test_hello_late_or_invalid_closes_the_connection(self, server: Running, first: str, code: str) -> None:
        client = await Client.open(server, hello=False)
        await client.raw(first)
        error = await client.expect("error", code=code, id="k" if '"k"' in first else None)
        assert "path" in error["details"]
        assert await client.closed() == 4400
        await server.at_rest()
        assert await server.metric("closes_total", code="4400") == 1
        assert await server.metric("messages_in_total", type="chat.message") == 0

    async def test_hello_in_a_binary_frame_is_refused(self, server: Running) -> None:
        client = await Client.open(server, hello=False)
        await client.ws.send_bytes(json.dumps({"type": "hello", "token": token()}).encode())
        await client.expect("error", code="binary_refused")
        assert await client.closed() == 4400

    async def test_second_hello_is_refused_and_changes_nothing(self, server: Running) -> None:
        async with server.client("ann") as ann:
            await ann.send(type="hello", token=token("eve"))
            await ann.expect("error", code="invalid_message")
            await ann.send(type="hello")
            await ann.expect("error", code="invalid_message")
            await ann.silence()
            (connection,) = server.service.node.streams.registry
            assert connection.session.identity.user == "ann"

    async def test_missing_hello_closes_the_connection(self) -> None:
        async with serving(deadlines={"hello": 0.2}) as server:
            client = await Client.open(server, hello=False)
            await client.expect("error", code="deadline", retryable=True)
            assert await client.closed() == 4408
            await server.at_rest()
            assert await server.metric("limit_hits_total", limit="hello_deadline") == 1

    async def test_pings_do_not_put_the_deadline_off(self) -> None:
        free = {"per_second": 1e6, "burst": 1_000_000}
        async with serving(deadlines={"hello": 0.3}, limits={"connection_rate": free}) as server:
            async with upgraded(server, None) as raw:
                opcode, payload, pongs = PONG, b"", 0
                while opcode == PONG:
                    raw.write(frame(PING))
                    opcode, payload = await raw.receive()
                    pongs += opcode == PONG
                assert json.loads(payload)["code"] == "deadline"
                assert await raw.close_code() == 4408
                assert pongs > 0
            await server.at_rest()

    async def test_hello_without_a_token_needs_the_setting(self, server: Running) -> None:
        client = await Client.open(server, hello=False)
        await client.send(type="hello")
        await client.expect("error", code="unauthenticated")
        assert await client.closed() == 4401
        await server.at_rest()


class TestAnonymous:
    async def test_anonymous_client_has_the_rights_of_everyone(self) -> None:
        async with serving(auth={"anonymous": True}) as server:
            client = await Client.open(server, hello=False)
            await client.send(type="hello")
            welcome = await client.expect("welcome")
            assert (welcome["user"], "expires_in" in welcome) == ("", False)
            await client.send(type="ready")
            await client.subscribe("news:1")
            await client.subscribe("wall:1")
            assert (await client.ask("wall.wave", channel="wall:1", data={}))["type"] == "ack"
            for channel in ("room:1", "board:1", "inbox:ann", "inbox:anonymous"):
                assert (await client.ask("subscribe", channel=channel))["code"] == "forbidden"
            assert (await client.ask("news.comment", channel="news:1", data={}))["code"] == "forbidden"
            assert (await client.ask("refresh", token=token()))["code"] == "forbidden", "nobody becomes somebody"
            await client.close()
            assert await server.metric("connects_total", credentials="anonymous") == 1
            await server.at_rest()

    async def test_anonymous_client_has_its_own_tenant_and_tokens_are_still_checked(self) -> None:
        async with serving(auth={"anonymous": True, "anonymous_tenant": "guests"}) as server:
            async with server.client("ann") as ann:
                await ann.subscribe("news:1")
                client = await Client.open(server, hello=False)
                await client.send(type="hello")
                await client.expect("welcome")
                (guest,) = (c for c in server.service.node.streams.registry if c.session.identity.is_anonymous)
                assert guest.session.identity.tenant == "guests"
                bad = await Client.open(server, hello=False)
                await bad.send(type="hello", token="x.y.z")
                await bad.expect("error", code="invalid_token")
                assert await bad.closed() == 4401
                await client.close()
            await server.at_rest()


async def test_upgrades_with_credentials_never_count_as_pending(server: Running) -> None:
    async with upgraded(server, "ann"):
        assert await server.metric("pending_connections") == 0
        assert await server.metric("connections") == 1
    await server.at_rest()
