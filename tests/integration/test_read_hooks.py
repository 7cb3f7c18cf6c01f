"""Hooks of the backend about reads: every way to read a channel asks, and the answers count as long as the backend says."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.integration.test_hooks import serving
from tests.support import harness
from tests.support.backend import Backend, serving_backend
from tests.support.clock import FakeClock
from tests.support.harness import Running, eventually, token
from tests.support.streams import Poller, authorization, refusal, sse, stream, stream_ticket

LOBBY = "lobby:1"


@asynccontextmanager
async def scene(**groups: Any) -> AsyncIterator[tuple[Running, Backend]]:
    async with serving_backend() as backend, serving(backend.endpoint("access"), **groups) as server:
        yield server, backend


async def command(server: Running, name: str) -> str | None:
    """The code with which a command is refused; None if it is not."""
    async with server.client() as ann:
        reply = await ann.ask(name, channel=LOBBY)
        return reply.get("code")


def code_of(error: Exception) -> str:
    """The code of a refusal that a helper reports by its text, or by the status of a handshake."""
    found = re.search(r'"code": ?"(\w+)"', str(error))
    return found[1] if found else "forbidden" if getattr(error, "status", 0) == 403 else repr(error)


async def upgrade(server: Running) -> str | None:
    try:
        async with server.client(hello=False, headers=authorization(), query=f"?channels={LOBBY}") as ann:
            await ann.until("subscribed")
    except aiohttp.WSServerHandshakeError as error:
        return code_of(error)
    return None


async def plain_get(server: Running) -> str | None:
    _, problem = await refusal(server, "GET", f"/ws?channels={LOBBY}", headers=authorization())
    return None if problem["code"] == "upgrade_required" else str(problem["code"])


async def post_stream(server: Running) -> str | None:
    try:
        async with stream(server, LOBBY) as opened:
            await opened.until("subscribed")
    except AssertionError as error:
        return code_of(error)
    return None


async def event_source(server: Running) -> str | None:
    try:
        async with sse(server, [LOBBY]) as opened:
            await opened.until("subscribed")
    except AssertionError as error:
        return code_of(error)
    return None


async def poll(server: Running) -> str | None:
    try:
        found = await Poller().poll(server, LOBBY, wait=0)
    except AssertionError as error:
        return code_of(error)
    return None if "subscribed" in {message["type"] for message in found} else "not subscribed"


async def get_history(server: Running) -> str | None:
    async with server.http.get(f"{server.url}/history?channel={LOBBY}", headers=authorization()) as response:
        return None if response.status == 200 else str((await response.json(content_type=None))["code"])


DOORS: dict[str, tuple[str, Callable[[Running], Awaitable[str | None]]]] = {
    "subscribe": ("subscribe", lambda server: command(server, "subscribe")),
    "history": ("history", lambda server: command(server, "history")),
    "presence": ("presence", lambda server: command(server, "presence")),
    "upgrade": ("subscribe", upgrade),
    "plain GET": ("subscribe", plain_get),
    "POST /stream": ("subscribe", post_stream),
    "GET /sse": ("subscribe", event_source),
    "POST /poll": ("subscribe", poll),
    "GET /history": ("history", get_history),
}


@pytest.mark.parametrize("door", DOORS)
async def test_every_way_to_read_asks_the_backend(door: str) -> None:
    right, enter = DOORS[door]
    async with scene() as (server, backend):
        backend.reply = {"allow": False, "reason": "not a member"}
        assert await enter(server) == "forbidden"
        assert backend.questions[0] == {
            "hook": "read",
            "tenant": "default",
            "user": "ann",
            "channel": LOBBY,
            "right": right,
        }
        backend.reply = {"allow": True}
        assert await enter(server) is None
        assert {(asked["channel"], asked["right"]) for asked in backend.questions} == {(LOBBY, right)}


async def test_neither_the_backend_nor_what_it_subscribes_is_asked_about() -> None:
    async with scene() as (server, backend):
        backend.reply = {"allow": False}
        headers = {"Authorization": f"Bearer {harness.API_KEY}"}
        async with server.http.get(f"{server.url}/api/v1/channels/{LOBBY}/history", headers=headers) as response:
            assert response.status == 200
        async with server.client(channels=[LOBBY]) as ann:
            await ann.until("subscribed", channel=LOBBY)
        async with server.client("ben") as ben:
            async with server.http.post(
                f"{server.url}/api/v1/users/ben/subscribe", json={"channel": LOBBY}, headers=headers
            ) as response:
                assert response.status == 200, await response.text()
            await ben.until("subscribed", channel=LOBBY)
        assert backend.questions == []


async def test_ticket_is_asked_about_when_it_opens_a_stream() -> None:
    async with scene() as (server, backend):
        ticket = await stream_ticket(server, LOBBY)
        backend.reply = {"allow": False}
        status, problem = await refusal(server, "GET", f"/sse?channels={LOBBY}&ticket={ticket}")
        assert (status, problem["code"], problem["details"]["channel"]) == (403, "forbidden", LOBBY)
        assert len(backend.questions) == 1


async def test_poll_that_goes_on_is_not_asked_about_again() -> None:
    async with scene() as (server, backend):
        poller = Poller()
        for _ in range(3):
            await poller.poll(server, wait=0) if poller.receipt else await poller.poll(server, LOBBY, wait=0)
        assert len(backend.questions) == 1
        backend.reply = {"allow": False}
        with pytest.raises(AssertionError, match="forbidden"):
            await poller.poll(server, LOBBY, "lobby:2", wait=0)


async def test_answer_counts_as_long_as_the_backend_says_for_the_same_token() -> None:
    clock = FakeClock(time.time())
    async with scene(clock=clock) as (server, backend):
        backend.secrets = []  # the clock leaves the time in which signatures count
        for allow in (True, False):
            clock.advance(7_200)
            backend.reply = {"allow": allow, "ttl": 60, "reason": None if allow else "banned"}
            fresh = [token(ttl=20_000 + allow), token(ttl=20_000 + allow, jti="another")]
            asked = len(backend.questions)
            for token_, questions in ((fresh[0], 1), (fresh[0], 1), (fresh[1], 2)):
                async with server.client(token_=token_) as ann:
                    reply = await ann.ask("subscribe", channel=LOBBY)
                    assert reply.get("code") == (None if allow else "forbidden"), reply
                    assert len(backend.questions) == asked + questions
            clock.advance(60)
            async with server.client(token_=fresh[0]) as ann:
                await ann.ask("subscribe", channel=LOBBY)
            assert len(backend.questions) == asked + 3
        counted = await server.metrics()
        assert counted['tidewire_hooks_total{endpoint="access",outcome="cached"}'] == 2


async def test_answers_without_a_time_and_failures_are_not_remembered() -> None:
    async with scene() as (server, backend):
        for reply in (
            {"allow": True},
            {"allow": True, "ttl": -1},
            {"allow": True, "ttl": "1"},
            {"allow": True, "data": 1},
        ):
            backend.reply = reply
            asked = len(backend.questions)
            for _ in range(2):
                assert await command(server, "presence") == (None if reply == {"allow": True} else "hook_unavailable")
            assert len(backend.questions) == asked + 2


async def test_without_an_answer_the_contract_says_whether_a_client_may_read() -> None:
    async with scene() as (server, backend), server.client() as ann:
        backend.reply = {"allow": "perhaps"}
        refused = await ann.ask("subscribe", channel=LOBBY)
        assert (refused["code"], refused["retryable"], refused["details"]) == (
            "hook_unavailable",
            True,
            {"reason": "bad_reply"},
        )
        assert (await ann.ask("subscribe", channel="hall:1"))["type"] == "subscribed"


async def test_client_that_leaves_during_the_wait_stays_nowhere() -> None:
    async with scene() as (server, backend):
        answer = asyncio.Event()

        async def reply(request: web.Request) -> web.StreamResponse:
            await answer.wait()
            return web.json_response({"allow": True})

        backend.reply = reply
        async with server.client() as ann:
            await ann.send(type="subscribe", id="s", channel=LOBBY)
            await backend.asked.wait()
        answer.set()
        await eventually(lambda: not server.service.node.streams.registry)


async def test_channels_of_an_upgrade_are_asked_about_together() -> None:
    async with scene() as (server, backend):
        answer = asyncio.Event()

        async def reply(request: web.Request) -> web.StreamResponse:
            await answer.wait()
            return web.json_response({"allow": True})

        backend.reply = reply
        names = [f"lobby:{n}" for n in range(20)]
        opening = asyncio.create_task(
            harness.Client.open(server, hello=False, headers=authorization(), query=f"?channels={','.join(names)}")
        )
        await eventually(lambda: len(backend.requests) == len(names))
        answer.set()
        client = await opening
        for _ in names:
            await client.until("subscribed")
        await client.close()
