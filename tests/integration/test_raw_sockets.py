"""Peers that use no WebSocket library: frames out of order, single bytes, vanishing connections."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.clock import FakeClock
from tests.support.harness import Running, eventually, passes, serving, token
from tests.support.raw import (
    BINARY,
    CLOSE,
    CONTINUATION,
    HANDSHAKE,
    PING,
    PONG,
    TEXT,
    connected,
    frame,
    text,
    upgraded,
)

FDS = Path("/proc/self/fd")


def open_fds() -> int:
    return sum(1 for _ in FDS.iterdir())


async def test_conversation_in_segments_of_one_byte_succeeds(server: Running) -> None:
    async with connected(server) as raw:
        fields = HANDSHAKE | {"Host": "x", "Authorization": f"Bearer {token()}"}
        head = "GET /ws HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"
        said = (
            head.encode()
            + text(type="ready")
            + text(type="subscribe", id="s", channel="room:1")
            + frame(TEXT, b'{"type":"chat.message","channel":"room:1","id":"m",', fin=False)
            + frame(PING, b"!")
            + frame(CONTINUATION, '"data":{"text":"é"}}'.encode())
        )
        for byte in said:
            raw.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await raw.answer()).status == 101
        messages = []
        pongs = 0
        while "ack" not in messages:
            opcode, payload = await raw.receive()
            pongs += opcode == PONG
            if opcode == TEXT:
                messages += [
                    kind for kind in ("welcome", "subscribed", "ack") if f'"type":"{kind}"'.encode() in payload
                ]
        assert (messages, pongs) == (["welcome", "subscribed", "ack"], 1)


GARBAGE = {
    "a frame without a mask": (frame(TEXT, b'{"type":"ping","id":"k"}', masked=False), 1002),
    "a ping without a mask": (frame(PING, masked=False), 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"x"), 1002),
    "a new message within a message": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "a binary message within a text": (frame(TEXT, b"x", fin=False) + frame(BINARY, b"y", fin=False), 1002),
    "a fragmented ping": (frame(PING, b"x", fin=False), 1002),
    "a ping that is too long": (frame(PING, b"x" * 126), 1002),
    "a reserved bit": (frame(TEXT, b"x", rsv=4), 1002),
    "another reserved bit": (frame(TEXT, b"x", rsv=1), 1002),
    "an opcode that does not exist": (frame(3, b"x"), 1002),
    "a control opcode that does not exist": (frame(11), 1002),
    "a close of one byte": (frame(CLOSE, b"x"), 1002),
    "a close code that does not exist": (frame(CLOSE, (1005).to_bytes(2, "big")), 1002),
    "text that is no UTF-8": (frame(TEXT, b'"\xff"'), 1007),
    "half a surrogate pair": (frame(TEXT, b'"\xed\xa0\x80"'), 1007),
    "plain HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 1002),
    "a length above 2^63": (bytes([0x81, 0xFF]) + b"\xff" * 8 + b"\0" * 4, 1009),
}


@pytest.mark.parametrize("hello", [True, False], ids=["welcomed", "before hello"])
@pytest.mark.parametrize("name", GARBAGE)
async def test_violation_of_rfc_6455_ends_only_that_connection(server: Running, name: str, hello: bool) -> None:
    garbage, code = GARBAGE[name]
    async with server.client("bystander") as bystander:
        async with upgraded(server, "ann" if hello else None) as raw:
            raw.write(garbage)
            assert await raw.close_code() == code
            await raw.gone()
        await bystander.silence()
    await server.at_rest()
    if hello:
        assert await server.metric("closes_total", code=str(code)) == 1


@pytest.mark.parametrize("before", ["", "a header", "a message", "hello", "a conversation"])
async def test_reset_at_any_point_leaves_nothing_behind(server: Running, before: str) -> None:
    fds = open_fds()
    for _ in range(5):
        async with AsyncExitStack() as stack:
            if before == "":
                raw = await stack.enter_async_context(connected(server))
            elif before == "a header":
                raw = await stack.enter_async_context(connected(server))
                raw.write(b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgr")
            else:
                raw = await stack.enter_async_context(upgraded(server, None if before == "hello" else "ann"))
                if before == "a message":
                    raw.write(frame(TEXT, b'{"type":')[:7])
                elif before == "a conversation":
                    raw.write(text(type="ready") + text(type="subscribe", id="s", channel="room:1"))
                    assert (await raw.message())["type"] == "subscribed"
            await raw.reset()
    await eventually(lambda: open_fds() <= fds, open_fds)
    await server.at_rest()


async def test_reset_during_a_delivery_affects_nobody_else(server: Running) -> None:
    async with server.client("ben") as ben:
        await ben.subscribe("room:1")
        async with AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(upgraded(server, f"user-{number}")) for number in range(10)]
            for raw in crowd:
                raw.write(text(type="ready") + text(type="subscribe", id="s", channel="room:1"))
                assert (await raw.message())["type"] == "subscribed"
            sent = [{"type": "chat.message", "data": {"text": "x" * 10_000}} for _ in range(20)]
            publishing = asyncio.create_task(server.publish("room:1", sent))
            await asyncio.gather(*(raw.reset() for raw in crowd))
            await publishing
        offsets = [(await ben.until("chat.message"))["offset"] for _ in range(20)]
        assert offsets == list(range(1, 21))
    await server.at_rest()


@pytest.mark.parametrize("user", ["ann", None], ids=["welcomed", "before hello"])
async def test_half_close_ends_the_connection(server: Running, user: str | None) -> None:
    fds = open_fds()
    async with upgraded(server, user) as raw:
        raw.writer.write_eof()
        await raw.gone()
    await eventually(lambda: open_fds() <= fds, open_fds)
    await server.at_rest()


async def test_close_is_answered_with_its_code(server: Running) -> None:
    async with upgraded(server) as raw:
        raw.write(frame(CLOSE, (1000).to_bytes(2, "big") + b"bye"))
        assert await raw.close_code() == 1000
        await raw.gone()
    await server.at_rest()
    assert await server.metric("closes_total", code="1000") == 1


async def test_frames_behind_a_close_are_not_read(server: Running) -> None:
    async with server.client("ben") as ben, upgraded(server) as raw:
        await ben.subscribe("news:1")
        publish = {"type": "news.comment", "id": "m", "channel": "news:1", "data": {}}
        raw.write(frame(CLOSE, (1000).to_bytes(2, "big")) + text(**publish))
        assert await raw.close_code() == 1000
        await raw.gone()
        await ben.silence()


HEARTBEAT = 4.0
STEP = HEARTBEAT / 8
"""Advances the clock by one interval of the ConnectionMonitor."""


async def test_peer_that_answers_no_ping_is_cut_and_its_descriptor_freed() -> None:
    clock = FakeClock(time.time())
    async with (
        serving(clock=clock, deadlines={"heartbeat": HEARTBEAT}) as server,
        server.client("bystander") as bystander,
    ):
        fds = open_fds()

        async def step() -> None:
            clock.advance(STEP)
            await bystander.silence()  # aiohttp's client answers a ping while it reads
            await bystander.silence()  # its earlier pongs are read together with this message

        async with AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(upgraded(server)) for _ in range(5)]
            for _ in range(7):
                await step()
            # The first ping comes after half the time at the earliest, so that clients that came together are not
            # pinged together.
            assert open_fds() == fds + 2 * len(crowd), "not before it could have answered"
            for _ in range(7 + round(server.service.settings.outbox.close_grace / STEP)):
                await step()
            await eventually(lambda: open_fds() == fds + len(crowd), open_fds)
            # Each of these clients still has its own end open; the service's end is the one that is freed.
            for raw in crowd:
                assert await raw.receive() == (PING, b"")
                opcode, payload = await raw.receive()
                assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, 4408)
            await bystander.silence()
            assert await server.metric("limit_hits_total", limit="heartbeat") == len(crowd)
            assert await server.metric("closes_total", code="4408") == len(crowd)
        await bystander.close()
        await server.at_rest()


async def test_peer_that_answers_pings_stays() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock, deadlines={"heartbeat": HEARTBEAT}) as server, upgraded(server) as raw:
        (connection,) = server.service.node.streams.registry
        pings = 0
        for _ in range(4 * 8 + 4):
            clock.advance(STEP)
            if connection.awaits_pong and not connection.transport.has_received:
                assert await raw.receive() == (PING, b"")
                raw.write(frame(PONG))
                await eventually(lambda: connection.transport.has_received)
                pings += 1
        assert pings >= 4
        raw.write(text(type="ping", id="k"))
        assert await raw.message() == {"type": "pong", "id": "k"}


async def test_peer_that_neither_reads_nor_answers_is_cut() -> None:
    """Unread messages delay the pings, and a close frame would never get through."""
    clock = FakeClock(time.time())
    async with serving(
        clock=clock,
        deadlines={"heartbeat": HEARTBEAT},
        outbox={"stall": 30, "send_buffer": 4096, "bytes": 1 << 20},
    ) as server:
        event = {"type": "chat.message", "data": {"text": "x" * 50_000}}
        await server.publish("room:1", event)
        fds = open_fds()
        async with connected(server, receive_buffer=4096) as raw:
            await raw.request("/ws", HANDSHAKE | {"Authorization": f"Bearer {token()}"})
            assert (await raw.message())["type"] == "welcome"
            raw.write(text(type="ready") + text(type="subscribe", id="s", channel="room:1"))
            assert (await raw.message())["type"] == "subscribed"
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's transport of a socket has it
            for _ in range(10):
                await server.publish("room:1", event)
            await passes(clock, 7 * STEP)
            assert open_fds() > fds + 1, "not before it could have answered"
            await passes(clock, 7 * STEP + server.service.settings.outbox.close_grace)
            await eventually(lambda: open_fds() <= fds + 1, open_fds)
            assert await server.metric("limit_hits_total", limit="heartbeat") == 1
            assert await server.metric("slow_consumers_total") == 0
        await server.at_rest()


async def test_half_open_connection_frees_its_descriptor_within_45_seconds() -> None:
    """With default settings, and queued events that nobody reads."""
    clock = FakeClock(time.time())
    async with serving(clock=clock, outbox={"stall": 600, "send_buffer": 4096, "bytes": 1 << 20}) as server:
        fds = open_fds()
        async with connected(server, receive_buffer=4096) as raw:
            await raw.request("/ws", HANDSHAKE | {"Authorization": f"Bearer {token()}"})
            assert (await raw.message())["type"] == "welcome"
            raw.write(text(type="ready") + text(type="subscribe", id="s", channel="room:1"))
            assert (await raw.message())["type"] == "subscribed"
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # as above
            for _ in range(10):
                await server.publish("room:1", {"type": "chat.message", "data": {"text": "x" * 50_000}})
            await passes(clock, 45)
            await eventually(lambda: open_fds() <= fds + 1, open_fds)
            assert await server.metric("closes_total", code="4408") == 1
        await server.at_rest()


async def test_peer_that_pings_without_reading_the_pongs_is_cut() -> None:
    free = {"per_second": 1e6, "burst": 1_000_000_000}
    clock = FakeClock(time.time())
    async with serving(
        clock=clock,
        limits={"connection_rate": free},
        outbox={"stall": 5, "send_buffer": 4096},
        deadlines={"heartbeat": 3600},
    ) as server:
        fds = open_fds()
        async with connected(server, receive_buffer=4096) as raw:
            await raw.request("/ws", HANDSHAKE | {"Authorization": f"Bearer {token()}"})
            assert (await raw.message())["type"] == "welcome"
            raw.writer.transport.pause_reading()  # type: ignore[attr-defined]  # as above
            flood = frame(PING, b"x" * 125) * 1000

            def is_cut() -> bool:
                end = raw.writer.transport
                if not end.is_closing() and end.get_write_buffer_size() < len(flood):
                    raw.write(flood)
                clock.advance(0.05)
                return open_fds() <= fds + 1

            await eventually(is_cut, open_fds)
        await server.at_rest()
        assert await server.metric("limit_hits_total", limit="stall") == 1
