"""The hook `refresh`: the backend is asked again before a session for which it has vouched expires."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.integration.test_connect_hook import ANN, OPAQUE, OWN, ROOM, greet, outcomes, scene
from tests.support.backend import Backend
from tests.support.clock import FakeClock
from tests.support.exported import exported
from tests.support.harness import Client, Running, eventually, token
from tests.support.streams import stream

LIFE = 1_000
"""Seconds of a session."""
STEP = 5.0
"""Seconds by which the clock moves at once while a question is waited for: as long as the shortest interval between two."""


@asynccontextmanager
async def session(
    token_: str | None = OPAQUE, **options: Any
) -> AsyncIterator[tuple[Running, Backend, Client, FakeClock]]:
    """A client with a session of 1 000 s, and a backend that is asked about it later."""
    clock = FakeClock(time.time())
    async with scene(clock=clock, deadlines={"heartbeat": 100_000}, **options) as (server, backend):
        backend.secrets = []  # the clock leaves the time in which signatures count
        backend.reply = {**ANN, "expires_in": LIFE}
        client = await greet(server, token_)
        await client.expect("welcome")
        await client.send(type="ready")
        yield server, backend, client, clock
        await client.close()


async def until_asked(server: Running, backend: Backend, clock: FakeClock, questions: int) -> None:
    """Advances the clock until the backend has got so many questions, and the service all answers."""
    metrics = server.service.metrics

    def asked() -> bool:
        is_waiting = any(
            exported(metrics, "hooks_waiting", endpoint=one.name) for one in server.service.settings.hooks.endpoints
        )
        if is_waiting:
            return False
        if len(backend.questions) < questions:
            clock.advance(STEP)
            return False
        return True

    await eventually(asked, lambda: backend.questions)


async def renewed(server: Running) -> None:
    """Waits until the session of the only client has a new life."""
    expected = server.service.clock.wall() + LIFE / 2
    (connection,) = server.service.node.streams.registry
    await eventually(lambda: (connection.session.identity.expires_at or 0) > expected)


async def test_session_goes_on_when_the_backend_says_so() -> None:
    async with session(connect={"headers": ["x-device"]}) as (server, backend, ann, clock):
        await ann.subscribe(ROOM)
        for times in range(2, 5):
            clock.advance(LIFE / 2)
            assert len(backend.questions) == times - 1  # not before the second half of its life
            await until_asked(server, backend, clock, times)
            await renewed(server)
        assert backend.questions[-1] == {
            "hook": "refresh",
            "tenant": "default",
            "address": "127.0.0.1",
            "user": "ann",
            "token": OPAQUE,
        }
        await ann.silence()
        await server.publish(ROOM, {"type": "chat.message", "data": {"text": "still here"}})
        assert (await ann.until("chat.message"))["data"] == {"text": "still here"}
        assert await outcomes(server) == {"allowed": 4}
        assert await server.metric("hook_sessions") == 1


async def test_session_gets_the_new_rights() -> None:
    async with session() as (server, backend, ann, clock):
        await ann.subscribe(ROOM)
        backend.reply = {"allow": True, "grants": ["doc:*"], "expires_in": LIFE}
        clock.advance(LIFE / 2)
        await until_asked(server, backend, clock, 2)
        await ann.until("unsubscribed", channel=ROOM, code="forbidden")
        await ann.subscribe("doc:1")
        assert (await ann.ask("subscribe", channel=ROOM))["code"] == "forbidden"


async def test_refused_session_is_closed_as_with_an_expired_token() -> None:
    async with session() as (server, backend, ann, clock):
        backend.reply = {"allow": False, "reason": "logged out"}
        clock.advance(LIFE / 2)
        await until_asked(server, backend, clock, 2)
        assert await ann.closed() == 4401


async def test_client_whose_token_has_expired_sends_a_new_one() -> None:
    async with session() as (server, backend, ann, clock):
        backend.reply = {"allow": False, "error": "token_expired"}
        clock.advance(LIFE / 2)
        await until_asked(server, backend, clock, 2)
        assert 0 < (await ann.until("expiring"))["in"] <= LIFE / 2
        refused = await ann.ask("refresh", token="an old one")
        assert (refused["code"], refused["retryable"]) == ("token_expired", False)
        clock.advance(5)
        backend.reply = {**ANN, "expires_in": LIFE}
        assert (await ann.ask("refresh", token="a new one"))["type"] == "ack"
        assert [asked["token"] for asked in backend.questions] == [OPAQUE, OPAQUE, "an old one", "a new one"]
        assert {(asked["hook"], asked["user"]) for asked in backend.questions[1:]} == {("refresh", "ann")}
        await renewed(server)
        clock.advance(LIFE / 2)
        await until_asked(server, backend, clock, 5)  # by itself, with the new token
        assert backend.questions[-1]["token"] == "a new one"


async def test_client_cannot_make_the_backend_be_asked_all_the_time() -> None:
    async with session() as (server, backend, ann, clock):
        assert (await ann.ask("refresh", token="another"))["type"] == "ack"
        for _ in range(3):
            refused = await ann.ask("refresh", token="another")
            assert (refused["code"], refused["details"]["scope"]) == ("rate_limited", "connection")
        clock.advance(5)
        assert (await ann.ask("refresh", token="another"))["type"] == "ack"
        assert len(backend.questions) == 3
        assert await server.metric("limit_hits_total", limit="hook_refreshes") == 3


@pytest.mark.parametrize("reply", [{**ANN, "user": "eve"}, {"allow": True, "tenant": "other"}, None])
async def test_session_without_an_answer_ends_at_its_expiry(reply: Any) -> None:
    async with session(endpoint={"tenants": ["default", "other"]}) as (server, backend, ann, clock):
        backend.reply = reply if reply is not None else _broken
        clock.advance(LIFE / 2)
        await until_asked(server, backend, clock, 4)  # it is tried again
        await ann.silence()
        clock.advance(LIFE)
        assert await ann.closed() == 4401
        assert set(await outcomes(server)) >= {"allowed", "status" if reply is None else "bad_reply"}


async def _broken(request: web.Request) -> web.Response:
    return web.Response(status=500)


async def test_session_goes_on_when_the_backend_is_back_in_time() -> None:
    async with session() as (server, backend, ann, clock):
        backend.reply = _broken
        clock.advance(LIFE / 2)
        await until_asked(server, backend, clock, 3)
        backend.reply = {**ANN, "expires_in": LIFE}
        await until_asked(server, backend, clock, 4)
        await renewed(server)
        await ann.silence()


async def test_token_of_an_issuer_replaces_the_session_of_the_backend() -> None:
    async with session() as (server, backend, ann, clock):
        other = await ann.ask("refresh", token=token("ben", iat=None))
        assert other["code"] == "forbidden"
        assert (await ann.ask("refresh", token=token(ttl=10 * LIFE, iat=None)))["type"] == "ack"
        assert await server.metric("hook_sessions") == 0
        clock.advance(2 * LIFE)
        await ann.silence()
        assert len(backend.questions) == 1


async def test_session_of_an_issuer_cannot_continue_with_a_token_of_the_backend() -> None:
    async with scene() as (server, backend), server.client() as ann:
        assert (await ann.ask("refresh", token=OPAQUE))["code"] == "invalid_token"
        assert backend.questions == []


async def test_session_without_a_token_is_renewed() -> None:
    async with session(token_=None) as (server, backend, ann, clock):
        clock.advance(LIFE / 2)
        await until_asked(server, backend, clock, 2)
        await renewed(server)
        assert "token" not in backend.questions[-1]
        await ann.silence()


async def test_stream_is_renewed_and_gets_a_receipt() -> None:
    clock = FakeClock(time.time())
    async with scene(clock=clock, deadlines={"heartbeat": 100_000}) as (server, backend):
        backend.secrets = []
        backend.reply = {**ANN, "expires_in": LIFE}
        async with stream(server, ROOM, headers=OWN) as opened:
            await opened.until("subscribed", channel=ROOM)
            clock.advance(LIFE / 2)
            await until_asked(server, backend, clock, 2)
            await renewed(server)
            await opened.until("receipt")


async def test_sessions_that_begin_together_are_asked_about_at_different_times() -> None:
    clock = FakeClock(time.time())
    async with scene(clock=clock, deadlines={"heartbeat": 100_000}) as (server, backend):
        backend.secrets = []
        backend.reply = {**ANN, "expires_in": LIFE, "ttl": 100}
        clients = [await greet(server, OPAQUE) for _ in range(30)]
        for client in clients:
            await client.expect("welcome")
        renewals = server.service.node.lifecycle.renewals
        due = sorted(renewals.due_in(one) for one in server.service.node.streams.registry)
        assert due[0] >= LIFE / 2
        assert due[-1] <= LIFE - 60
        assert due[-1] - due[0] > LIFE / 20  # of the 250 s over which they are spread
        for client in clients:
            await client.close()
