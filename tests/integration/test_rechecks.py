"""Subscriptions that the backend is asked about again and again: `hook: {recheck: …}`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web

from tests.integration.test_hooks import serving
from tests.integration.test_refresh_hook import until_asked
from tests.support import harness
from tests.support.backend import Backend, serving_backend
from tests.support.clock import FakeClock
from tests.support.harness import Client, Running, eventually
from tests.support.streams import Poller

CLUB = "club:1"
INTERVAL = 600
"""Seconds, as the contract says."""


@asynccontextmanager
async def scene(channel: str = CLUB, **groups: Any) -> AsyncIterator[tuple[Running, Backend, Client, FakeClock]]:
    """A client that has subscribed to a channel with `recheck`."""
    clock = FakeClock(time.time())
    async with (
        serving_backend() as backend,
        serving(backend.endpoint("access"), clock=clock, deadlines={"heartbeat": 100_000}, **groups) as server,
        server.client(ttl=100_000, iat=None) as ann,
    ):
        backend.secrets = []  # the clock leaves the time in which signatures count
        await ann.subscribe(channel)
        yield server, backend, ann, clock


async def test_backend_is_asked_once_in_each_interval() -> None:
    async with scene() as (server, backend, ann, clock):
        begin = clock.monotonic()
        asked_at = []
        for questions in range(2, 6):
            await until_asked(server, backend, clock, questions)
            asked_at.append(clock.monotonic())
        assert asked_at[0] - begin <= INTERVAL + 60
        assert all(INTERVAL - 60 < b - a < INTERVAL + 60 for a, b in pairwise(asked_at))
        assert backend.questions[0] == {
            "hook": "read",
            "tenant": "default",
            "user": "ann",
            "channel": CLUB,
            "right": "subscribe",
        }
        assert backend.questions[1:] == [{**backend.questions[0], "recheck": True}] * 4
        await ann.silence()
        assert await server.metric("hook_subscriptions") == 1


async def test_refusal_ends_the_subscription_and_nothing_else() -> None:
    async with scene() as (server, backend, ann, clock):
        await ann.subscribe("hall:1")
        backend.reply = {"allow": False, "reason": "no member any more"}
        await until_asked(server, backend, clock, 3)
        await ann.until("unsubscribed", channel=CLUB, code="forbidden")
        assert await server.metric("hook_subscriptions") == 0
        await server.publish(CLUB, {"type": "chat.message", "data": {"text": "secret"}})
        await server.publish("hall:1", {"type": "chat.message", "data": {"text": "hi"}})
        assert (await ann.until("chat.message"))["channel"] == "hall:1"
        refused = await ann.ask("subscribe", channel=CLUB)
        assert (refused["code"], refused["details"]["reason"]) == ("forbidden", "no member any more")


async def _broken(request: web.Request) -> web.Response:
    return web.Response(status=500)


async def test_subscription_ends_after_three_questions_without_an_answer() -> None:
    async with scene() as (server, backend, ann, clock):
        backend.reply = _broken
        await until_asked(server, backend, clock, 3)
        await ann.silence()
        await until_asked(server, backend, clock, 4)
        await ann.until("unsubscribed", channel=CLUB, code="forbidden")


async def test_subscription_goes_on_without_an_answer_where_the_contract_allows_it() -> None:
    async with scene("open-club:1") as (server, backend, ann, clock):
        backend.reply = _broken
        await until_asked(server, backend, clock, 4)
        await ann.silence()
        backend.reply = {"allow": False}
        await until_asked(server, backend, clock, 5)
        await ann.until("unsubscribed", channel="open-club:1", code="forbidden")


async def test_failure_that_passes_ends_nothing() -> None:
    async with scene() as (server, backend, ann, clock):
        for _ in range(2):
            asked = len(backend.questions)
            backend.reply = _broken
            await until_asked(server, backend, clock, asked + 2)
            backend.reply = {"allow": True}
            await until_asked(server, backend, clock, asked + 3)
            (watched,) = server.service.node.streams.rechecks.watched.values()
            await eventually(lambda watched=watched: watched.failures == 0)  # type: ignore[misc]  # the default binds it
        await ann.silence()


async def test_unsubscribe_ends_the_questions() -> None:
    async with scene() as (server, backend, ann, clock):
        assert (await ann.ask("unsubscribe", channel=CLUB))["type"] == "unsubscribed"
        assert await server.metric("hook_subscriptions") == 0
        clock.advance(2 * INTERVAL)
        await ann.silence()
        assert len(backend.questions) == 1


async def test_subscriptions_of_the_backend_are_not_asked_about() -> None:
    clock = FakeClock(time.time())
    async with (
        serving_backend() as backend,
        serving(backend.endpoint("access"), clock=clock) as server,
        server.client(channels=[CLUB], iat=None) as ann,
    ):
        await ann.until("subscribed", channel=CLUB)
        assert await server.metric("hook_subscriptions") == 0


async def test_session_of_polls_is_asked_about_between_two_polls() -> None:
    clock = FakeClock(time.time())
    async with (
        serving_backend() as backend,
        serving(backend.endpoint("access"), clock=clock, presence={"ttl": 100_000}) as server,
    ):
        backend.secrets = []
        poller = Poller(headers={"Authorization": f"Bearer {harness.token(ttl=100_000, iat=None)}"})
        await poller.poll(server, CLUB, wait=0)
        backend.reply = {"allow": False}
        await until_asked(server, backend, clock, 2)
        (connection,) = server.service.node.streams.registry
        await eventually(lambda: not connection.session.is_subscribed(CLUB))


@pytest.mark.parametrize("minutes", [1, 7])
async def test_questions_about_many_subscriptions_are_spread(minutes: int) -> None:
    async with scene() as (server, backend, ann, clock):
        for number in range(2, 42):
            await ann.subscribe(f"club:{number}")
        asked = len(backend.questions)
        before = clock.monotonic()
        await until_asked(server, backend, clock, asked + 4 * minutes)
        # At an even rate, that takes about a tenth of an interval for each minute: never all at once.
        assert clock.monotonic() - before > minutes * 10
