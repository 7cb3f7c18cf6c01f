"""Whatever a node holds for a peer counts against its byte budget and shows in one gauge; above it, requests are refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest

from service.adapters.memory.broker import MemoryBroker
from service.core.broker import PublishResult
from service.core.event import Publication
from service.web.http.parse_queue import SLICE_BYTES
from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, OTHER_API_KEY, Running, eventually, passes, serving, token
from tests.support.raw import CONTINUATION, HANDSHAKE, PING, PONG, TEXT, Raw, connected, frame, text, upgraded

NODE_BYTES = 2_000_000
PAGE = 200_000
"""Bytes of a page of history, about."""
GREEDY = 30


async def fill(server: Running, key: str = API_KEY) -> None:
    """History of PAGE bytes in room:1."""
    for _ in range(PAGE // 50_000):
        await server.publish("room:1", {"type": "chat.message", "data": {"text": "x" * 50_000}}, key)


@asynccontextmanager
async def deaf(server: Running, user: str, tenant: str) -> AsyncIterator[Raw]:
    """A client whose kernel takes little, so that what it does not read shows soon."""
    async with connected(server, receive_buffer=4096) as raw:
        await raw.request(headers=HANDSHAKE | {"Authorization": f"Bearer {token(user, tenant=tenant)}"})
        await raw.message()
        yield raw


async def held(server: Running) -> float:
    return await server.metric("outbox_bytes")


async def messages(raw: Raw) -> list[dict[str, Any]]:
    """The messages of the next frame."""
    received: Any = await raw.message()
    return received if isinstance(received, list) else [received]


async def codes(raw: Raw, count: int) -> list[str]:
    """What the next `count` messages are, errors by their code."""
    seen: list[str] = []
    while len(seen) < count:
        seen += [part["code"] if part["type"] == "error" else part["type"] for part in await messages(raw)]
    return seen


@pytest.mark.parametrize("pages", [1, 3])
async def test_unread_history_pages_stay_within_the_byte_budget(pages: int) -> None:
    """One page each lay in the transports' buffers, which no gauge showed; with three the limit was passed."""
    async with (
        serving(outbox={"node_bytes": NODE_BYTES, "send_buffer": 4096}) as server,
        server.client("ben", tenant="other") as ben,
        AsyncExitStack() as stack,
    ):
        await fill(server)
        await fill(server, OTHER_API_KEY)
        greedy = [
            await stack.enter_async_context(deaf(server, f"greedy-{number}", "default")) for number in range(GREEDY)
        ]
        ask = b"".join(text(type="history", id=f"h{page}", channel="room:1") for page in range(pages))
        for raw in greedy:
            raw.write(ask)
        await eventually(lambda: server.service.node.streams.budget.used > NODE_BYTES / 2)
        refused = server.service.metrics.messages.errors.labels(code="overloaded")
        await eventually(lambda: refused.value > 0)
        assert NODE_BYTES / 2 < await held(server) <= NODE_BYTES
        # Another tenant has its share, for what it asks and for coming in.
        page = await ben.ask("history", channel="room:1")
        assert page["type"] == "history", page
        async with server.client("eve", tenant="other") as eve:
            assert (await eve.ask("history", channel="room:1"))["type"] == "history"
        # Who reads gets what it was owed: a page, or a refusal that says when to ask again.
        answers = [await codes(raw, pages) for raw in greedy]
        assert {code for codes in answers for code in codes} == {"history", "overloaded"}
        async with server.client("ann") as ann:
            assert (await ann.ask("history", channel="room:1"))["type"] == "history", "there is room again"
    assert server.service.node.streams.budget.used == 0


async def test_refusal_by_the_byte_budget_has_a_retry_time() -> None:
    async with (
        serving(outbox={"node_bytes": 170_000}) as server,
        server.client() as ann,
    ):
        await fill(server)
        reply = await ann.ask("history", channel="room:1")
        assert (reply["type"], reply["code"], reply["retryable"]) == ("error", "overloaded", True)
        assert 1.0 <= reply["details"]["retry_after"] <= 4.0
        # A snapshot too: nothing is joined then.
        position = {"epoch": (await ann.ask("history", channel="room:1", limit=1))["epoch"], "offset": 0}
        reply = await ann.ask("subscribe", channel="room:1", since=position)
        assert (reply["type"], reply["code"]) == ("error", "overloaded")
        assert not server.service.node.streams.hub.keys()
        async with server.http.get(
            f"{server.url}/api/v1/channels/room:1/history", headers={"Authorization": f"Bearer {API_KEY}"}
        ) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["code"] == "overloaded"


@pytest.mark.parametrize("greets", [True, False], ids=["authenticated", "before hello"])
async def test_incomplete_message_is_counted_and_has_a_deadline(greets: bool) -> None:
    """400 connections kept 65 000 bytes each for ever, and answered their pings."""
    clock = FakeClock(wall=time.time())
    async with serving(clock=clock, deadlines={"message": 4.0, "hello": 3600.0}) as server:
        async with upgraded(server, "ann" if greets else None) as raw:
            raw.write(frame(TEXT, b"x" * 60_000, fin=False))
            await eventually(lambda: server.service.node.streams.budget.used >= 60_000)
            assert await held(server) >= 60_000
            await passes(clock, 3.0)
            raw.write(frame(PING, b"still here"))  # no part of a message: its time goes on
            while (await raw.receive())[0] != PONG:
                pass
            await passes(clock, 2.0)
            assert await raw.close_code() == 4408
            assert await server.metric("limit_hits_total", limit="message_deadline") == 1
        await server.at_rest()


async def test_complete_message_restarts_the_message_deadline() -> None:
    clock = FakeClock(wall=time.time())
    async with serving(clock=clock, deadlines={"message": 4.0}) as server, upgraded(server) as raw:
        begun = frame(TEXT, b'{"type":"ping",', fin=False)
        for number in range(3):
            raw.write(begun)
            await eventually(lambda: server.service.node.streams.budget.used > 0)
            await passes(clock, 3.0)
            raw.write(frame(CONTINUATION, f'"id":"p{number}"}}'.encode()) + begun[: number + 1])
            assert (await raw.message())["id"] == f"p{number}"
            raw.write(begun[number + 1 :] + frame(CONTINUATION, b'"id":"q"}'))
            assert (await raw.message())["id"] == "q"
        assert await server.metric("limit_hits_total", limit="message_deadline") == 0


class StalledBroker(MemoryBroker):
    """Accepts no comment until it may."""

    def __init__(self) -> None:
        super().__init__(
            FakeClock(), idempotency_window=60.0, idempotency_entries=1000, channels=1000, max_bytes=100_000_000
        )
        self.may = asyncio.Event()

    def start_publish(self, publication: Publication) -> Any:
        """Waits: None."""

    async def publish(self, publication: Publication) -> PublishResult:
        if publication.type == "news.comment":
            await self.may.wait()
        return await super().publish(publication)


async def test_frames_behind_a_command_are_counted_and_bounded() -> None:
    """Thirty-two messages of 64 kB might wait, and whatever one more read brought."""
    broker = StalledBroker()
    async with serving(broker=broker) as server, upgraded(server) as raw:
        event = {"type": "news.comment", "channel": "news:1", "data": {"text": "x" * 20_000}}
        for number in range(40):
            raw.write(text(id=f"p{number}", **event))
        await eventually(lambda: server.service.node.streams.budget.used > 80_000)
        assert 80_000 < await held(server) < 500_000, "the one in hand, a few behind it, and one read from the kernel"
        broker.may.set()
        acked: list[str] = []
        while len(acked) < 40:
            acked += [part["id"] for part in await messages(raw) if part["type"] == "ack"]
        assert acked == [f"p{number}" for number in range(40)]
        await eventually(lambda: server.service.node.streams.budget.used == 0)


async def test_request_bodies_are_counted_and_refused_above_the_budget() -> None:
    async with serving(outbox={"node_bytes": 200_000}) as server:
        body = json.dumps({"type": "chat.message", "data": {"text": "x" * 50_000}}).encode()
        head = (
            "POST /api/v1/channels/room:1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {API_KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        async with AsyncExitStack() as stack:
            slow = [await stack.enter_async_context(connected(server)) for _ in range(5)]
            for number, raw in enumerate(slow):
                raw.write(head + body[:-1])
                wanted = min(number + 1, 3) * 50_000
                await eventually(partial(lambda wanted: server.service.node.streams.budget.used >= wanted, wanted))
            assert [(await raw.answer()).code for raw in slow[3:]] == ["overloaded"] * 2
            assert 150_000 <= await held(server) <= 200_000
            for raw in slow:
                raw.write(body[-1:])
            for raw in slow[:3]:
                assert (await raw.answer()).status == 200
        await server.at_rest()


@pytest.mark.parametrize("path", ["/stream", "/poll", "/emit", "/call", "/tickets", "/nothing", "/api/v1/events"])
async def test_body_of_a_refused_request_is_freed_with_the_response(path: str) -> None:
    """It was counted and kept until the next request, or until the connection had been idle for `deadlines.keep_alive`."""
    body = b"x" * (SLICE_BYTES // 2)  # arrives with the head, before the refusal
    heads = [f"Content-Length: {len(body)}\r\n\r\n".encode(), b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body)]
    ends = [b"", b"\r\n0\r\n\r\n"]
    async with serving() as server, connected(server) as raw:
        for head, end in zip(heads * 2, ends * 2, strict=True):
            raw.write(f"POST {path} HTTP/1.1\r\nHost: x\r\n".encode() + head + body + end)
            assert (await raw.answer()).status in (401, 404)
            assert server.service.node.streams.budget.used == 0


async def test_unread_response_is_counted_until_it_is_read() -> None:
    async with serving(outbox={"send_buffer": 4096}) as server:
        await fill(server)
        async with connected(server, receive_buffer=4096) as raw:
            raw.write(
                b"GET /api/v1/channels/room:1/history HTTP/1.1\r\nHost: x\r\n"
                + f"Authorization: Bearer {API_KEY}\r\n\r\n".encode()
            )
            await eventually(lambda: server.service.node.streams.budget.used >= PAGE)
            assert len((await raw.answer()).body) >= PAGE
            await eventually(lambda: server.service.node.streams.budget.used == 0)


async def test_small_replies_are_sent_while_the_budget_is_full() -> None:
    """A client that keeps up notices nothing of those who do not read."""
    async with serving(outbox={"node_bytes": 300_000, "send_buffer": 4096}) as server:
        await fill(server)
        async with deaf(server, "ann", "default") as greedy, server.client("ben") as ben:
            await ben.subscribe("news:1")
            # A page, then many small replies, each of which may be sent however little is left.
            greedy.write(text(type="history", id="h", channel="room:1"))
            await eventually(lambda: server.service.node.streams.budget.used >= PAGE)
            for number in range(60):
                greedy.write(text(type="unknown" * 100, id=f"p{number}"))
            for number in range(5):
                await ben.send(type="news.comment", id=f"c{number}", channel="news:1", data={"text": f"{number}"})
                assert {(await ben.receive())["type"] for _ in range(2)} == {"ack", "news.comment"}
            assert server.service.node.streams.budget.used <= 300_000


@pytest.mark.parametrize(
    "start", [b"GET /ws HTTP/1.1\r\n", b"GET /nothing HTTP/1.1\r\n", b"POST /api/v1/events HTTP/1.1\r\n"]
)
async def test_incomplete_request_head_is_counted_and_bounded(start: bytes) -> None:
    """A hundred headers of 8 kB each were kept until the deadline, for each connection."""
    async with serving() as server:
        async with connected(server) as raw:
            raw.write(start + b"Host: x\r\n" + b"X-A: %s\r\n" % (b"y" * 8000))
            await eventually(lambda: server.service.node.streams.budget.used >= 8000)
            assert await held(server) >= 8000
            for _ in range(20):
                raw.write(b"X-A: %s\r\n" % (b"y" * 8000))
            answer = await raw.answer()
            assert (answer.status, answer.code) == (431, "header_too_large")
            await raw.gone()
        await server.at_rest()


@pytest.mark.parametrize("request_", [b"GET /nothing", b"OPTIONS /tickets", b"POST /tickets", b"GET /api/v1/channels"])
async def test_connection_with_only_refused_requests_is_closed(request_: bytes) -> None:
    async with serving(limits={"connection_rate": {"per_second": 0.001, "burst": 10}}) as server:
        async with connected(server) as raw:
            raw.write((request_ + b" HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\n\r\n") * 40)
            answers = 0
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await raw.answer()
                    answers += 1
            assert answers <= 11
            assert await server.metric("rate_limited_total", scope="http") == 1
        await server.at_rest()


async def test_backend_connection_with_successful_requests_stays_open() -> None:
    async with (
        serving(limits={"connection_rate": {"per_second": 0.001, "burst": 1}}) as server,
        connected(server) as raw,
    ):
        for _ in range(20):
            answer = await raw.request("/api/v1/channels", {"Authorization": f"Bearer {API_KEY}"})
            assert answer.status == 200
            assert answer.headers.get("connection") != "close"
