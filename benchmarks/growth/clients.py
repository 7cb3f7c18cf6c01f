"""WebSocket clients that count what they receive. Their own CPU time is not measured."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Iterable, Sequence
from typing import cast

import jwt

from benchmarks.processes import HOST, START, FailedError
from service.protocol.framing import CLOSE, FIN, MASK, PING, PONG, TEXT

PATIENCE = 150.0
"""Seconds to wait for messages."""
AT_ONCE = 64
"""Connections that are being opened at the same time."""
_TTL = 7_200
_OPCODE, _LENGTH = 0x0F, 0x7F


def token(secret: str, user: str, tenant: str = "default") -> str:
    """Returns a token of a user."""
    claims = {"iss": "tidewire", "aud": "tidewire", "sub": user, "tenant": tenant, "exp": int(time.time()) + _TTL}
    return jwt.encode(claims, secret, algorithm="HS256")


class Tally:
    """Counts the occurrences of some bytes in all messages of the clients that share it."""

    def __init__(self, needle: bytes) -> None:
        self._needle = needle
        self._wanted = 0
        self._reached: asyncio.Future[None] | None = None
        self.count = 0
        self.failure: str | None = None

    def record(self, payload: bytes) -> None:
        """Counts a message."""
        self.count += payload.count(self._needle)
        if self._reached is not None and self.count >= self._wanted and not self._reached.done():
            self._reached.set_result(None)

    def fail(self, reason: str) -> None:
        """Lets the waiting one fail."""
        self.failure = self.failure or reason
        if self._reached is not None and not self._reached.done():
            self._reached.set_exception(FailedError(reason))

    async def reach(self, wanted: int) -> None:
        """Waits until the count is `wanted`. Raises FailedError after PATIENCE, or if a connection ends."""
        if self.failure is not None:
            raise FailedError(self.failure)
        if self.count >= wanted:
            return
        self._wanted, self._reached = wanted, asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(PATIENCE):
                await self._reached
        except TimeoutError:
            raise FailedError(f"{self.count} of {wanted} {self._needle.decode()} after {PATIENCE:g} s") from None
        finally:
            self._reached = None


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.last = b""
        """The last text message."""
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_upgraded = False
        self._is_ended = False

    @classmethod
    async def connect(cls, port: int, bearer: str, tally: Tally) -> Client:
        """Connects, and returns after `welcome`. Raises FailedError if the upgrade is refused."""
        loop = asyncio.get_running_loop()
        try:
            transport, client = await loop.create_connection(lambda: cls(tally), HOST, port)
        except OSError as error:
            raise FailedError(f"a client cannot connect: {error}") from error
        transport.write(
            f"GET /ws HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Protocol: tidewire.v1\r\nAuthorization: Bearer {bearer}\r\n\r\n".encode()
        )
        try:
            async with asyncio.timeout(START):
                await client._open
        except TimeoutError:
            raise FailedError(f"a client was not welcomed within {START:g} s") from None
        client.send('{"type":"ready"}')
        return client

    def send(self, text: str) -> None:
        """Sends a text message."""
        self._send(TEXT, text.encode())

    def end(self) -> None:
        """Ends the connection at once."""
        self._is_ended = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's class is no subclass

    def data_received(self, data: bytes) -> None:
        """Reads whole messages. The service never splits them into fragments."""
        self._buffer += data
        if not self._is_upgraded:
            self._read_head()
        start = 0
        while self._is_upgraded and (frame := self._frame(start)) is not None:
            opcode, payload, start = frame
            self._received(opcode, payload)
        del self._buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """Reports a connection that the service ended."""
        if not self._is_ended:
            self._fail(f"the service ended a connection: {exc}")

    def _read_head(self) -> None:
        head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not end:
            return
        if not head.startswith(b"HTTP/1.1 101 "):
            self._fail(f"an upgrade was refused: {(head + rest)[:400].decode(errors='replace')}")
            return
        self._is_upgraded, self._buffer = True, bytearray(rest)

    def _frame(self, start: int) -> tuple[int, bytes, int] | None:
        """Returns opcode, payload and end of a frame; None if it is not complete."""
        buffer = self._buffer
        if len(buffer) < start + 2:
            return None
        length, body = buffer[start + 1] & _LENGTH, start + 2
        if length > 125:
            wide = length == 127
            body += 8 if wide else 2
            if len(buffer) < body:
                return None
            (length,) = struct.unpack_from("!Q" if wide else "!H", buffer, start + 2)
        if len(buffer) < body + length:
            return None
        return buffer[start] & _OPCODE, bytes(buffer[body : body + length]), body + length

    def _received(self, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            self.last = payload
            if not self._open.done():
                self._open.set_result(None)
            elif payload.startswith(b'{"type":"error"'):
                self._fail(f"the service refused a message: {payload[:400].decode()}")
            else:
                self.tally.record(payload)
        elif opcode == PING:
            self._send(PONG, payload)
        elif opcode == CLOSE:
            self._fail(f"the service closed a connection: {payload!r}")

    def _send(self, opcode: int, payload: bytes) -> None:
        size = len(payload)
        head = (
            struct.pack("!BB", FIN | opcode, MASK | size)
            if size < 126
            else struct.pack("!BBH", FIN | opcode, MASK | 126, size)
        )
        assert self._transport is not None
        self._transport.write(head + b"\0\0\0\0" + payload)  # a mask of zeros changes nothing

    def _fail(self, reason: str) -> None:
        if not self._open.done():
            self._open.set_exception(FailedError(reason))
        self.tally.fail(reason)


async def connect_all(addresses: Iterable[tuple[int, str]], tally: Tally) -> list[Client]:
    """Connects to pairs of TCP port and token, AT_ONCE at a time; returns the clients in the same order."""
    places = list(addresses)
    found: list[Client] = []
    for start in range(0, len(places), AT_ONCE):
        part = places[start : start + AT_ONCE]
        found += await asyncio.gather(*(Client.connect(port, bearer, tally) for port, bearer in part))
    return found


def watch(clients: Sequence[Client], needle: bytes) -> Tally:
    """Returns a new tally, which counts what these clients receive from now on."""
    tally = Tally(needle)
    for client in clients:
        client.tally = tally
    return tally
