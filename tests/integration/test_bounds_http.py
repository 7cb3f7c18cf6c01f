"""Deadlines for requests: headers that never end, bodies that drip, connections that idle."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from service.web.header_deadline import SWEEP_INTERVAL
from tests.harness import API_KEY, Running, eventually, serving
from tests.integration.raw import HANDSHAKE, Raw, connected, upgraded

SWEEPS = 2 * SWEEP_INTERVAL
"""What the watch over headers may add to a deadline."""


def connections(server: Running) -> int:
    """TCP connections of the public listener that are no WebSockets."""
    watched = server.service.deadline._server
    assert watched is not None
    door = server.service.deadline._door
    assert door is not None
    return len(watched.connections) + len(door.waiting)


async def drip(raw: Raw, data: bytes, every: float) -> None:
    """Sends a byte now and then, until the peer has had enough."""
    for byte in data:
        if raw.writer.transport.is_closing():
            return
        raw.write(bytes([byte]))
        await asyncio.sleep(every)


class TestHeaderDeadline:
    async def test_two_hundred_half_sent_headers_are_all_cut(self) -> None:
        count = 200
        header = 1.5  # long enough for all of them to come first
        async with serving(deadlines={"header": header}) as server, AsyncExitStack() as crowd:
            client = await crowd.enter_async_context(server.client())
            base = connections(server)
            started = time.monotonic()
            slow = [await crowd.enter_async_context(connected(server)) for _ in range(count)]
            for index, raw in enumerate(slow):
                raw.write((b"GET /ws HTTP/1.1\r\nHost: x\r\nX: ", b"G", b"", b"GET /ws HTTP/1.1\r\nHo")[index % 4])
            await eventually(lambda: connections(server) == base + count)
            drips = [asyncio.create_task(drip(raw, b"a" * 1000, 0.2)) for raw in slow[:80:4]]
            while connections(server) > base:
                await client.silence()  # the healthy one is served all the while
                await asyncio.sleep(0.05)  # at its rate
            elapsed = time.monotonic() - started
            await asyncio.gather(*(raw.gone(within=1) for raw in slow))
            assert header <= elapsed <= header + SWEEPS + 1.0
            for task in drips:
                task.cancel()
            await asyncio.gather(*drips, return_exceptions=True)
            assert await server.metric("limit_hits_total", limit="header_deadline") == count
            await client.silence()

    async def test_a_socket_and_a_request_in_hand_are_left_alone(self) -> None:
        async with serving(deadlines={"header": 0.1, "keep_alive": 0.1}) as server, upgraded(server) as raw:
            async with connected(server) as idle:
                await idle.gone(within=0.2 + SWEEPS + 1.0)
            assert await server.metric("connections") == 1
            assert not raw.reader.at_eof()

    async def test_the_next_header_on_a_kept_connection_has_its_deadline_too(self) -> None:
        async with serving(deadlines={"header": 0.3, "keep_alive": 0.3}) as server, connected(server) as raw:
            assert (await raw.request("/ws")).status == 426
            raw.write(b"GET /ws HTT")
            dripping = asyncio.create_task(drip(raw, b"a" * 1000, 0.1))
            await raw.gone(within=0.6 + SWEEPS + 1.0)
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            await eventually(lambda: connections(server) == 0)

    async def test_a_header_that_comes_in_time_is_answered_byte_by_byte(self) -> None:
        async with serving() as server, connected(server) as raw:
            head = "GET /ws HTTP/1.1\r\nHost: x\r\n" + "".join(f"{n}: {v}\r\n" for n, v in HANDSHAKE.items()) + "\r\n"
            for byte in head.encode():
                raw.write(bytes([byte]))
                await asyncio.sleep(0)
            assert (await raw.answer()).status == 101


async def test_a_kept_connection_that_idles_is_closed_and_may_be_used_before() -> None:
    async with serving(deadlines={"keep_alive": 0.3}) as server, connected(server) as raw:
        for _ in range(3):
            assert (await raw.request("/ws")).status == 426
        started = time.monotonic()
        await raw.gone(within=2)
        assert 0.2 <= time.monotonic() - started <= 1.5
        await eventually(lambda: connections(server) == 0)
        assert await server.metric("limit_hits_total", limit="header_deadline") == 0


class TestBody:
    PUBLISH = (
        "POST /api/v1/channels/room:1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {API_KEY}\r\n"
    )

    async def test_that_drips_is_answered_408_in_time(self) -> None:
        async with serving(deadlines={"body": 0.3}) as server, server.client() as ann, connected(server) as raw:
            raw.write((self.PUBLISH + "Content-Length: 1000\r\n\r\n").encode())
            dripping = asyncio.create_task(drip(raw, b" " * 999, 0.05))
            started = time.monotonic()
            answer = await raw.answer()
            assert 0.3 <= time.monotonic() - started <= 1.5
            assert (answer.status, answer.code) == (408, "deadline")
            assert int(answer.headers["retry-after"]) >= 1
            assert await server.metric("limit_hits_total", limit="body_deadline") == 1
            await raw.gone(within=3)
            await dripping
            await ann.silence()
            await eventually(lambda: connections(server) == 0)

    async def test_in_endless_chunks_is_cut_at_its_size(self) -> None:
        async with serving(outbox={"close_grace": 0.1}) as server, connected(server) as raw:
            raw.write((self.PUBLISH + "Transfer-Encoding: chunked\r\n\r\n").encode())
            chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
            for _ in range(17):
                raw.write(chunk)
            answer = await raw.answer()
            assert (answer.status, answer.code) == (413, "too_big")
            await eventually(lambda: connections(server) == 0)

    async def test_that_a_refused_request_has_yet_to_send_is_not_waited_for(self) -> None:
        async with serving(outbox={"close_grace": 0.1}) as server, connected(server) as raw:
            raw.write(b"POST /tickets HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n ")
            assert (await raw.answer()).status == 401
            await raw.gone(within=1)
            await eventually(lambda: connections(server) == 0)


async def test_a_header_that_is_too_large_is_refused() -> None:
    async with serving() as server, connected(server) as raw:
        raw.write(b"GET /ws HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 70_000 + b"\r\n\r\n")
        assert (await raw.answer()).status == 400
        await raw.gone()
