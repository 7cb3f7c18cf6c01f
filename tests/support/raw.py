"""A client that sends raw bytes: requests and frames that no correct library sends."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.support.harness import DEADLINE, Running, token

HANDSHAKE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "tidewire.v1",
}
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP response. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        """Returns the problem details; fails the test if the response has none."""
        assert self.headers["content-type"].startswith("application/problem+json"), self
        problem: dict[str, Any] = json.loads(self.body)
        assert problem["status"] == self.status
        return problem

    @property
    def code(self) -> str:
        """`switched` for a 101, else the code of the problem."""
        return "switched" if self.status == 101 else str(self.problem["code"])


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, rsv: int = 0) -> bytes:
    """A client's frame."""
    size = len(payload)
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head = bytes([mask_bit | size])
    elif size < 1 << 16:
        head = bytes([mask_bit | 126]) + struct.pack(">H", size)
    else:
        head = bytes([mask_bit | 127]) + struct.pack(">Q", size)
    mask = b"\1\2\3\4" if masked else b""
    if masked:
        payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + head + mask + payload


def text(**message: Any) -> bytes:
    """A message as a client's frame."""
    return frame(TEXT, json.dumps(message).encode())


class Raw:
    """One TCP connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def request(
        self, target: str = "/ws", headers: Mapping[str, str] | Iterable[tuple[str, str]] = (), method: str = "GET"
    ) -> Answer:
        """Sends a request without a body, and reads the response."""
        fields = dict(headers).items() if isinstance(headers, Mapping) else list(headers)
        lines = [f"{method} {target} HTTP/1.1"]
        if not any(name.lower() == "host" for name, _ in fields):
            lines.append("Host: service.example")
        lines += [f"{name}: {value}" for name, value in fields]
        self.write(("\r\n".join(lines) + "\r\n\r\n").encode("utf-8", "surrogateescape"))
        return await self.answer(head_only=method == "HEAD")

    async def answer(self, *, head_only: bool = False) -> Answer:
        """Reads one response."""
        async with asyncio.timeout(DEADLINE):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers: dict[str, str] = {}
            for line in head[1:-2]:
                name, _, value = line.partition(":")
                assert name.lower() not in headers, f"the header {name} comes twice"
                headers[name.lower()] = value.strip()
            status = int(head[0].split(" ")[1])
            has_body = status >= 200 and not head_only
            body = await self.reader.readexactly(int(headers.get("content-length", 0))) if has_body else b""
            return Answer(status, headers, body)

    async def receive(self) -> tuple[int, bytes]:
        """Reads the next frame of the service."""
        async with asyncio.timeout(DEADLINE):
            first, size = await self.reader.readexactly(2)
            assert size < 0x80, "a server never masks"
            if size == 126:
                (size,) = struct.unpack(">H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(size)

    async def message(self) -> dict[str, Any]:
        """Reads the next message; skips pings."""
        while True:
            opcode, payload = await self.receive()
            if opcode == PING:
                continue
            assert opcode == TEXT, (opcode, payload)
            message: dict[str, Any] = json.loads(payload)
            return message

    async def close_code(self) -> int:
        """Reads up to the service's close frame, and returns its code."""
        while True:
            opcode, payload = await self.receive()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2], "big")

    async def gone(self, within: float = DEADLINE) -> None:
        """Waits until the service has ended the TCP connection, and discards what it still sends."""
        async with asyncio.timeout(within):
            with suppress(ConnectionError):
                while await self.reader.read(65_536):
                    pass

    async def reset(self) -> None:
        """Ends the connection with RST."""
        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.close()

    async def close(self) -> None:
        """Closes this end."""
        self.writer.transport.abort()
        with suppress(ConnectionError):
            await self.writer.wait_closed()


@asynccontextmanager
async def connected(
    server: Running, *, source: str = "127.0.0.1", receive_buffer: int | None = None
) -> AsyncIterator[Raw]:
    """A TCP connection to the public listener; optionally from another loopback address, or with a small receive
    buffer, which fills soon if the test does not read."""
    port = int(server.url.rpartition(":")[2])
    end = socket.socket()
    if receive_buffer is not None:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    end.setblocking(False)
    end.bind((source, 0))
    await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", port))
    raw = Raw(*await asyncio.open_connection(sock=end))
    try:
        yield raw
    finally:
        await raw.close()


@asynccontextmanager
async def upgraded(
    server: Running, user: str | None = "ann", *, target: str = "/ws", **headers: str
) -> AsyncIterator[Raw]:
    """A WebSocket that has received `welcome`. With `user=None`, one without credentials, which has received nothing."""
    if user is not None:
        headers["Authorization"] = f"Bearer {token(user)}"
    async with connected(server) as raw:
        answer = await raw.request(target, HANDSHAKE | headers)
        assert answer.status == 101, answer
        if user is not None:
            assert (await raw.message())["type"] == "welcome"
        yield raw


async def ask(
    server: Running,
    target: str = "/ws",
    headers: Mapping[str, str | None] | None = None,
    *,
    upgrade: bool = True,
    method: str = "GET",
    source: str = "127.0.0.1",
) -> Answer:
    """Sends one request on a new connection: a handshake with extra headers (None removes one), or a plain request."""
    fields = {**(HANDSHAKE if upgrade else {}), **(headers or {})}
    async with connected(server, source=source) as raw:
        return await raw.request(target, {name: value for name, value in fields.items() if value is not None}, method)


def bearer(credentials: str | None = None, user: str = "ann", **claims: Any) -> dict[str, str | None]:
    """An Authorization header with these credentials, or with a valid token of the user."""
    return {"Authorization": f"Bearer {token(user, **claims) if credentials is None else credentials}"}


async def new_ticket(server: Running, user: str = "ann", **claims: Any) -> str:
    """A ticket for the user."""
    answer = await ask(server, "/tickets", bearer(user=user, **claims), upgrade=False, method="POST")
    assert answer.status == 201, answer
    return str(json.loads(answer.body)["ticket"])
