"""Deadlines for requests: unfinished heads, slow bodies, idle connections."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from tests.support.clock import FakeClock
from tests.support.harness import API_KEY, DEADLINE, Running, eventually, passes, serving
from tests.support.raw import HANDSHAKE, Raw, connected, upgraded


def connections(server: Running) -> int:
    """TCP connections of the public listener that are not WebSockets."""
    return len(server.service.http_connections)


async def drip(raw: Raw, data: bytes, every: float) -> None:
    """Sends single bytes until the peer closes the connection."""
    for byte in data:
        if raw.writer.transport.is_closing():
            return
        raw.write(bytes([byte]))
        await asyncio.sleep(every)


class TestHeaderDeadline:
    """The deadlines go by the service's clock, which the tests move."""

    async def test_unfinished_heads_of_two_hundred_connections_are_cut(self) -> None:
        count = 200
        clock = FakeClock(time.time())
        async with serving(clock=clock, deadlines={"header": 3}) as server, AsyncExitStack() as crowd:
            client = await crowd.enter_async_context(server.client())
            base = connections(server)
            slow = [await crowd.enter_async_context(connected(server)) for _ in range(count)]
            for index, raw in enumerate(slow):
                raw.write((b"GET /ws HTTP/1.1\r\nHost: x\r\nX: ", b"G", b"", b"GET /ws HTTP/1.1\r\nHo")[index % 4])
            await eventually(lambda: connections(server) == base + count)

            async def a_second() -> None:
                for raw in slow[:80:4]:
                    if not raw.writer.transport.is_closing():
                        raw.write(b"a")  # single bytes gain no more time
                clock.advance(1)
                await client.silence()  # the healthy connection is served meanwhile

            for _ in range(2):
                await a_second()
            assert connections(server) == base + count, "they could still have asked"
            for _ in range(3):
                await a_second()
            await eventually(lambda: connections(server) == base, lambda: connections(server))
            await asyncio.gather(*(raw.gone() for raw in slow))
            assert await server.metric("limit_hits_total", limit="header_deadline") == count
            await client.silence()

    async def test_websocket_and_request_in_hand_are_not_cut(self) -> None:
        clock = FakeClock(time.time())
        async with serving(clock=clock, deadlines={"header": 3}) as server, upgraded(server) as raw:
            async with connected(server) as idle:
                await eventually(lambda: connections(server) == 1)
                await passes(clock, 5)
                await idle.gone()
            assert await server.metric("connections") == 1
            assert not raw.reader.at_eof()

    async def test_next_head_on_a_kept_connection_has_a_deadline(self) -> None:
        clock = FakeClock(time.time())
        async with serving(clock=clock, deadlines={"header": 3, "keep_alive": 60}) as server, connected(server) as raw:
            assert (await raw.request("/ws")).status == 426
            raw.write(b"GET /ws HTTP/1.1\r\nHost: x\r\nX: ")
            for _ in range(62):
                raw.write(b"a")
                await passes(clock, 1)
            assert connections(server) == 1, "it could still have asked"
            await passes(clock, 3)
            await raw.gone()
            await eventually(lambda: connections(server) == 0)
            assert await server.metric("limit_hits_total", limit="header_deadline") == 1

    async def test_head_sent_byte_by_byte_in_time_is_answered(self) -> None:
        async with serving() as server, connected(server) as raw:
            head = "GET /ws HTTP/1.1\r\nHost: x\r\n" + "".join(f"{n}: {v}\r\n" for n, v in HANDSHAKE.items()) + "\r\n"
            for byte in head.encode():
                raw.write(bytes([byte]))
                await asyncio.sleep(0)
            assert (await raw.answer()).status == 101


async def test_idle_kept_connection_is_closed_and_usable_before() -> None:
    async with serving(deadlines={"keep_alive": 1}) as server, connected(server) as raw:
        started = 0.0
        for _ in range(3):
            started = time.monotonic()
            assert (await raw.request("/ws")).status == 426
        await raw.gone()
        assert time.monotonic() - started >= 1, "it could still have asked"
        await eventually(lambda: connections(server) == 0)
        assert await server.metric("limit_hits_total", limit="header_deadline") == 0


class TestBody:
    PUBLISH = (
        "POST /api/v1/channels/room:1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {API_KEY}\r\n"
    )

    async def test_slow_body_is_answered_408_in_time(self) -> None:
        async with serving(deadlines={"body": 0.3}) as server, server.client() as ann, connected(server) as raw:
            raw.write((self.PUBLISH + "Content-Length: 1000\r\n\r\n").encode())
            dripping = asyncio.create_task(drip(raw, b" " * 999, 0.05))  # it would take 50 s
            started = time.monotonic()
            answer = await raw.answer()
            assert 0.3 <= time.monotonic() - started <= DEADLINE
            assert (answer.status, answer.code) == (408, "deadline")
            assert int(answer.headers["retry-after"]) >= 1
            assert await server.metric("limit_hits_total", limit="body_deadline") == 1
            await raw.gone()
            await dripping
            await ann.silence()
            await eventually(lambda: connections(server) == 0)

    async def test_body_in_endless_chunks_is_cut_at_its_size(self) -> None:
        async with serving(outbox={"close_grace": 0.1}) as server, connected(server) as raw:
            raw.write((self.PUBLISH + "Transfer-Encoding: chunked\r\n\r\n").encode())
            chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
            for _ in range(17):
                raw.write(chunk)
            answer = await raw.answer()
            assert (answer.status, answer.code) == (413, "too_big")
            await eventually(lambda: connections(server) == 0)

    async def test_body_of_a_refused_request_is_not_awaited(self) -> None:
        async with serving(outbox={"close_grace": 0.1}) as server, connected(server) as raw:
            raw.write(b"POST /tickets HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n ")
            assert (await raw.answer()).status == 401
            await raw.gone()
            await eventually(lambda: connections(server) == 0)


async def test_header_above_the_limit_is_refused() -> None:
    async with serving() as server, connected(server) as raw:
        raw.write(b"GET /ws HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 70_000 + b"\r\n\r\n")
        assert (await raw.answer()).code == "header_too_large"
        await raw.gone()
