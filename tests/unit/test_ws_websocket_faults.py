"""WebSocket with paused reading and after a close frame: nothing is reordered, and late bytes cost nothing."""

from __future__ import annotations

import asyncio
import zlib
from typing import cast

import pytest

from service.protocol import deflate
from service.protocol.framing import BINARY, CLOSE, CONTINUATION, PING, TEXT
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import ByteBudget
from service.realtime.session.pre_auth_buffer import MAX_QUEUED, MAX_QUEUED_BYTES, PreAuthBuffer
from service.telemetry.metrics import Metrics
from service.web.ws.read_scheduler import ReadScheduler
from service.web.ws.websocket import WebSocket, WebSocketContext
from tests.support.clock import FakeClock
from tests.support.raw import frame


class FakeTransport:
    """Stands for a transport, and records the calls."""

    def __init__(self) -> None:
        self.written = b""
        self.reads = True
        self.is_aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def is_closing(self) -> bool:
        return False

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        self.is_aborted = True

    def abort(self) -> None:
        self.is_aborted = True


class PausingHandler:
    """A handler that pauses reading after three messages."""

    def __init__(self, socket: WebSocket) -> None:
        self.socket = socket
        self.got: list[str | bytes] = []
        self.is_lost = False

    def message_received(self, message: str | bytes) -> None:
        self.got.append(message)
        if len(self.got) % 3 == 0:
            self.socket.pause_reading()

    def pause_writing(self) -> None: ...

    def resume_writing(self) -> None: ...

    def eof_received(self) -> bool:
        return False

    def connection_lost(self) -> None:
        self.is_lost = True


def open_socket(*, window_bits: int = 0) -> tuple[WebSocket, FakeTransport]:
    transport = FakeTransport()
    clock, metrics, bounds = FakeClock(), Metrics(), Bounds()
    terms = WebSocketContext(bounds, clock, metrics, ReadScheduler(clock, metrics, bounds.deadlines.message))
    account = ByteBudget(bounds.outbox.node_bytes).account("t")
    return WebSocket(terms, cast(asyncio.Transport, transport), window_bits, account=account), transport


def bomb(size: int = 65_000) -> bytes:
    """A frame of some eighty bytes that inflates to `size`."""
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return frame(TEXT, (encoder.compress(b"x" * size) + encoder.flush(zlib.Z_SYNC_FLUSH))[:-4], rsv=4)


@pytest.mark.parametrize("size", [1, 7, 10_000])
async def test_frames_received_while_paused_are_all_delivered_in_order(size: int) -> None:
    socket, transport = open_socket()
    socket.handler = handler = PausingHandler(socket)
    names = [str(number) for number in range(10)]
    data = b"".join(frame(TEXT, name.encode()) for name in names) + frame(CLOSE, b"\x03\xe8")
    for start in range(0, len(data), size):
        async with asyncio.timeout(5):
            while not transport.reads:
                assert len(handler.got) % 3 == 0, "nothing comes while reading is paused"
                before = len(handler.got)
                socket.resume_reading()
                assert len(handler.got) == before, "nor before whoever resumes is done"
                await asyncio.sleep(0)
        socket.data_received(data[start : start + size])
    async with asyncio.timeout(5):
        while not handler.is_lost:
            socket.resume_reading()
            await asyncio.sleep(0)
    assert handler.got == names


async def test_reading_resumes_only_after_all_waiting_frames() -> None:
    socket, transport = open_socket()
    socket.handler = handler = PausingHandler(socket)
    socket.data_received(b"".join(frame(TEXT, b"x") for _ in range(9)))
    assert (len(handler.got), transport.reads) == (3, False)
    for taken in (6, 9):
        socket.resume_reading()
        await asyncio.sleep(0)
        assert (len(handler.got), transport.reads) == (taken, False)
    socket.resume_reading()
    await asyncio.sleep(0)
    assert transport.reads


async def test_frames_before_hello_are_held_in_a_small_number() -> None:
    socket, transport = open_socket(window_bits=15)
    socket.handler = buffer = PreAuthBuffer(socket)
    socket.data_received(frame(TEXT, b"x") * MAX_QUEUED * 10)
    assert len(buffer.queued or ()) == MAX_QUEUED
    socket, transport = open_socket(window_bits=15)
    socket.handler = buffer = PreAuthBuffer(socket)
    socket.data_received(bomb() * 1000)
    assert sum(map(len, buffer.queued or ())) <= MAX_QUEUED_BYTES + 65_536
    assert not transport.reads


async def test_frames_after_our_close_are_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    socket, _ = open_socket(window_bits=15)
    socket.handler = handler = PausingHandler(socket)
    inflated = 0

    def inflate(data: bytes, most: int) -> bytes:
        nonlocal inflated
        inflated += 1
        return b""

    monkeypatch.setattr(deflate, "inflate", inflate)
    socket.data_received(bomb() * 6)
    assert inflated == len(handler.got) == 3
    socket.close(1011, "enough")
    await asyncio.sleep(0)
    socket.data_received(bomb()[:10])
    socket.data_received(
        bomb()[10:] + frame(BINARY, b"x", fin=False) + frame(PING) + frame(CONTINUATION, b"y") + bomb()
    )
    assert inflated == len(handler.got) == 3
    socket.data_received(frame(CLOSE, b"\x03\xe8"))
    assert handler.is_lost, "the peer's goodbye is heard"


async def test_violation_while_paused_is_read_until_the_peer_closes() -> None:
    socket, transport = open_socket()
    socket.handler = PausingHandler(socket)
    socket.data_received(frame(TEXT, b"x") * 3 + frame(3))
    assert not transport.reads
    socket.resume_reading()
    await asyncio.sleep(0)
    assert socket.close_code == 1002
    assert transport.reads
