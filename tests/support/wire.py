"""A cheap WebSocket client on asyncio's transport, for thousands of connections. It can stop reading, vanish, and send
broken frames."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
ABNORMAL = 1006
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455; the service does not check that it is random
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
RETRY_AFTER = re.compile(rb"\r\nretry-after: *([0-9]+)", re.IGNORECASE)

OnText = Callable[[bytes], None]
OnGone = Callable[[int], None]

T = TypeVar("T")


def reader(kind: type[T]) -> Callable[[bytes], Sequence[T]]:
    """Returns a decoder of frames into messages."""
    one, batch = msgspec.json.Decoder(kind), msgspec.json.Decoder(list[kind])  # type: ignore[valid-type]  # known at run time

    def read(frame: bytes) -> Sequence[T]:
        return batch.decode(frame) if frame[:1] == b"[" else (one.decode(frame),)

    return read


class Refused(Exception):  # noqa: N818  # an answer, not an error of the client
    """The response to the upgrade was not 101."""

    def __init__(self, why: str, retry_after: float | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after
        """Seconds that the response asks to wait."""


class Wire(asyncio.Protocol):
    """One WebSocket. Passes each text frame to `on_text` and the close code to `on_gone`; answers pings.

    Frames are masked with the key 0, which leaves the bytes unchanged: masking protects proxies, not the service.
    """

    __slots__ = ("_buffer", "_closing", "_head", "_on_gone", "_on_text", "_open", "code", "gone", "opened", "transport")

    def __init__(self, head: bytes, on_text: OnText, on_gone: OnGone | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.gone: asyncio.Future[int] = loop.create_future()
        self.code = ABNORMAL
        self.transport: asyncio.Transport | None = None
        self._head = head
        self._on_text = on_text
        self._on_gone = on_gone
        self._buffer = bytearray()
        self._open = False
        self._closing = False

    @property
    def is_open(self) -> bool:
        """Whether the connection is open, as far as this end knows."""
        return self._open and not self.gone.done()

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._open or self._upgraded():
            self._frames()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(Refused("the connection ended before the upgrade was answered"))
        if not self.gone.done():
            self.gone.set_result(self.code)
            if self._on_gone is not None:
                self._on_gone(self.code)
        self.transport = None

    def _upgraded(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[:end])
        if not head.startswith(b"HTTP/1.1 101 "):
            if not self.opened.done():
                asked = RETRY_AFTER.search(head)
                wait = float(asked[1]) if asked is not None else None
                self.opened.set_exception(Refused(head.partition(b"\r\n")[0].decode(), wait))
            return False
        assert ACCEPT in head, head
        del self._buffer[: end + 4]
        self._open = True
        self.opened.set_result(None)
        return True

    def _frames(self) -> None:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 2:
            size, start = buffer[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(buffer[at + 2 : at + 10], "big"), at + 10
            if len(buffer) < start + size:  # also if the length itself is incomplete: then `start` is past the end
                break
            self._frame(buffer[at], bytes(buffer[start : start + size]))
            at = start + size
        del buffer[:at]

    def _frame(self, first: int, payload: bytes) -> None:
        if first == 0x80 | TEXT:  # the service fragments nothing
            self._on_text(payload)
        elif first == 0x80 | PING:
            self._write(PONG, payload)
        elif first == 0x80 | CLOSE:
            self.code = int.from_bytes(payload[:2], "big") if payload else ABNORMAL
            if not self._closing:
                self._write(CLOSE, payload[:2])
                self._closing = True
        else:
            assert first == 0x80 | PONG, f"an unexpected frame: {first:#x}"

    # --- what a test does ---------------------------------------------------------------------------------------------

    def send(self, *messages: Mapping[str, Any]) -> None:
        """Sends one message, or several as a batch."""
        self.text(json.dumps(messages[0] if len(messages) == 1 else messages))

    def text(self, frame: str) -> None:
        """Sends a text frame unchanged."""
        self._write(TEXT, frame.encode())

    def binary(self, frame: bytes) -> None:
        """Sends a binary frame."""
        self._write(BINARY, frame)

    def raw(self, octets: bytes) -> None:
        """Sends bytes, which need not be a frame."""
        if self.transport is not None:
            self.transport.write(octets)

    def _write(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        if size < 126:
            head = bytes((0x80 | opcode, 0x80 | size))
        elif size < 65_536:
            head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8, "big")
        self.raw(head + b"\0\0\0\0" + payload)

    def leave(self, code: int = 1000) -> None:
        """Starts the closing handshake; `gone` is set at its end."""
        self._closing = True
        self._write(CLOSE, code.to_bytes(2, "big"))

    def abort(self) -> None:
        """Aborts the connection without a close frame."""
        if self.transport is not None:
            self.transport.abort()

    def read(self, on: bool) -> None:
        """Stops or resumes reading. Bytes that arrive meanwhile wait in the kernel, then in the service."""
        if self.transport is not None and not self.transport.is_closing():
            (self.transport.resume_reading if on else self.transport.pause_reading)()


async def connect(
    port: int,
    on_text: OnText,
    on_gone: OnGone | None = None,
    *,
    bearer: str | None = None,
    query: str = "",
    source: str | None = None,
    receive_buffer: int | None = None,
) -> Wire:
    """Opens a WebSocket on 127.0.0.1, from the address `source`. Raises Refused."""
    lines = [
        f"GET /ws{query} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Protocol: tidewire.v1",
        f"Sec-WebSocket-Key: {KEY}",
        *([f"Authorization: Bearer {bearer}"] if bearer is not None else []),
    ]
    head = ("\r\n".join(lines) + "\r\n\r\n").encode()
    loop = asyncio.get_running_loop()
    raw = socket.socket()
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio does so only for sockets it has made
        if receive_buffer is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)  # must come before connecting
        if source is not None:
            raw.bind((source, 0))
        await loop.sock_connect(raw, ("127.0.0.1", port))
        _, wire = await loop.create_connection(lambda: Wire(head, on_text, on_gone), sock=raw)
    except BaseException:
        raw.close()
        raise
    try:
        await wire.opened
    except BaseException:
        wire.abort()
        raise
    return wire
