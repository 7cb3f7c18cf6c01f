"""Channels that the backend fills when they are empty: `when_empty` in the contract (hook `cache_empty`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tests.integration.test_hooks import serving
from tests.stores.nats_server import NatsServer
from tests.stores.redis_server import RedisServer
from tests.support import harness
from tests.support.backend import Backend, serving_backend
from tests.support.clock import FakeClock
from tests.support.harness import Running
from tests.support.streams import Poller, authorization, sse, stream

BOARD = "scores:1"
CONTENT = [
    {"type": "score.team", "data": {"team": "red", "points": 3}},
    {"type": "score.team", "data": {"team": "blue", "points": 1}},
    {"type": "score.note", "data": {"text": "kick-off"}},
]


@asynccontextmanager
async def scene(**groups: Any) -> AsyncIterator[tuple[Running, Backend]]:
    async with serving_backend() as backend, serving(backend.endpoint("content"), **groups) as server:
        backend.reply = {"events": CONTENT, "ttl": 60}
        yield server, backend


def points(subscribed: dict[str, Any]) -> dict[str, int]:
    return {event["key"]: event["data"]["points"] for event in subscribed["state"]}


async def test_first_subscriber_gets_what_the_backend_has() -> None:
    async with scene() as (server, backend), server.client() as ann, server.client("ben") as ben:
        found = await ann.subscribe(BOARD, tail=10)
        assert points(found) == {"red": 3, "blue": 1}
        assert [event["data"] for event in found["tail"]] == [{"text": "kick-off"}]
        assert {event["from"] for event in (*found["state"], *found["tail"])} == {None}
        assert backend.questions == [{"hook": "cache_empty", "tenant": "default", "channel": BOARD}]
        assert points(await ben.subscribe(BOARD)) == {"red": 3, "blue": 1}
        await server.publish(BOARD, {"type": "score.team", "data": {"team": "red", "points": 4}})
        assert (await ben.until("score.team"))["data"]["points"] == 4
        assert len(backend.questions) == 1
        assert await server.metric("hooks_total", endpoint="content", outcome="allowed") == 1


async def test_channel_with_content_is_not_asked_about() -> None:
    async with scene() as (server, backend), server.client() as ann:
        await server.publish(BOARD, {"type": "score.note", "data": {"text": "here"}})
        assert points(await ann.subscribe(BOARD)) == {}
        await ann.subscribe("plain-scores:1")
        assert backend.questions == []


async def test_crowd_of_subscribers_causes_one_question() -> None:
    async with scene() as (server, backend), AsyncExitStack() as stack:
        opens = asyncio.Event()

        async def late(request: web.Request) -> web.Response:
            await opens.wait()
            return web.json_response({"events": CONTENT})

        backend.reply = late
        clients = [await stack.enter_async_context(server.client(f"user{number}")) for number in range(10)]
        asking = [asyncio.create_task(client.subscribe(BOARD)) for client in clients]
        await asyncio.wait_for(backend.asked.wait(), harness.DEADLINE)
        opens.set()
        assert [points(found) for found in await asyncio.gather(*asking)] == [{"red": 3, "blue": 1}] * 10
        assert len(backend.questions) == 1


async def test_every_way_to_subscribe_fills_the_channel() -> None:
    async with scene() as (server, backend):
        async with server.client(hello=False, headers=authorization(), query="?channels=scores:a") as ann:
            assert points(await ann.until("subscribed")) == {"red": 3, "blue": 1}
        async with server.client(channels=["scores:b"]) as ann:
            assert points(await ann.until("subscribed")) == {"red": 3, "blue": 1}
        async with stream(server, "scores:c") as opened:
            assert points(await opened.until("subscribed")) == {"red": 3, "blue": 1}
        async with sse(server, ["scores:d"]) as opened:
            assert points(await opened.until("subscribed")) == {"red": 3, "blue": 1}
        found = await Poller().poll(server, "scores:e", wait=0)
        assert [points(one) for one in found if one["type"] == "subscribed"] == [{"red": 3, "blue": 1}]
        assert [asked["channel"] for asked in backend.questions] == [f"scores:{name}" for name in "abcde"]


async def test_content_counts_as_long_as_the_backend_says() -> None:
    async with scene() as (server, backend), server.client() as ann:
        backend.reply = {"events": [], "ttl": 60}
        for _ in range(3):
            assert points(await ann.subscribe(BOARD)) == {}
            await ann.ask("unsubscribe", channel=BOARD)
        assert len(backend.questions) == 1
        assert await server.metric("hook_answers", kind="cache_empty") == 1


async def test_purged_channel_is_filled_again_with_the_same_content() -> None:
    clock = FakeClock(time.time())
    async with scene(clock=clock) as (server, backend), server.client(iat=None) as ann:
        backend.reply = {"events": CONTENT}
        await ann.subscribe(BOARD)
        await ann.ask("unsubscribe", channel=BOARD)
        headers = {"Authorization": f"Bearer {harness.API_KEY}"}
        async with server.http.delete(f"{server.url}/api/v1/channels/{BOARD}/history", headers=headers) as response:
            assert response.status == 200, await response.text()
        assert points(await ann.subscribe(BOARD)) == {}  # the answer still counts
        await ann.ask("unsubscribe", channel=BOARD)
        clock.advance(2)
        assert points(await ann.subscribe(BOARD)) == {"red": 3, "blue": 1}
        assert len(backend.questions) == 2


BAD_CONTENT = [
    {"events": [{"type": "score.other", "data": {}}]},
    {"events": [CONTENT[0], {"type": "score.team", "data": {"team": "red"}}]},
    {"events": [{"type": "score.team"}]},
    {"events": CONTENT, "ttl": -1},
    {"events": [CONTENT[2]] * 257},
    {"allow": True},
]


async def test_content_that_the_contract_refuses_is_not_published() -> None:
    async with scene() as (server, backend), server.client() as ann:
        for reply in BAD_CONTENT:
            backend.reply = reply
            refused = await ann.ask("subscribe", channel=BOARD)
            assert (refused["code"], refused["details"]["reason"]) == ("hook_unavailable", "bad_reply"), reply
        assert (await ann.ask("history", channel=BOARD))["events"] == []
        backend.reply = {"events": CONTENT}
        assert points(await ann.subscribe(BOARD)) == {"red": 3, "blue": 1}


async def test_without_an_answer_the_contract_decides() -> None:
    async def broken(request: web.Request) -> web.Response:
        return web.Response(status=500)

    async with scene() as (server, backend), server.client() as ann:
        backend.reply = broken
        refused = await ann.ask("subscribe", channel=BOARD)
        assert (refused["code"], refused["retryable"]) == ("hook_unavailable", True)
        assert points(await ann.subscribe("open-scores:1")) == {}
        assert await server.metric("hooks_total", endpoint="content", outcome="status") == 2


async def test_refused_client_causes_no_question() -> None:
    async with scene() as (server, backend), server.client(grants=[]) as ann:
        assert (await ann.ask("subscribe", channel="secret-scores:1"))["code"] == "forbidden"
        assert backend.questions == []


@pytest.mark.parametrize("store", [RedisServer, NatsServer])
async def test_two_nodes_that_ask_at_once_store_the_content_once(store: type[RedisServer | NatsServer]) -> None:
    async with serving_backend() as backend, store() as broker, AsyncExitStack() as stack:
        both = asyncio.Barrier(2)

        async def together(request: web.Request) -> web.Response:
            async with asyncio.timeout(harness.DEADLINE):
                await both.wait()
            return web.json_response({"events": CONTENT})

        backend.reply = together
        settings, clients = {"url": broker.url}, []
        for _ in range(2):
            server = await stack.enter_async_context(
                serving(backend.endpoint("content", timeout=5), broker_settings=settings)
            )
            clients.append(await stack.enter_async_context(server.client()))
        found = await asyncio.gather(*(client.subscribe(BOARD, tail=10) for client in clients))
        assert [points(one) for one in found] == [{"red": 3, "blue": 1}] * 2
        assert [event["data"] for event in (await clients[0].ask("history", channel=BOARD))["events"]] == [
            {"text": "kick-off"}
        ]
        assert len(backend.questions) == 2
