"""An HTTP proxy as some companies have it: it refuses upgrades in one of several ways, and may hold streams back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from contextlib import suppress
from typing import Literal

Upgrades = Literal["pass", "strip", "refuse", "hang", "mute", "cut"]
"""What becomes of an upgrade: it passes; its headers are dropped, as nginx does unless told; 403 from the proxy; no answer;
101, and then nothing passes; the connection is cut."""
_REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>"
_HOP_HEADERS = (b"upgrade:", b"connection:")
_OPENED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


class HttpProxy:
    """Forwards each request over a connection of its own to a port on loopback."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.upgrades: Upgrades = "pass"
        self.holds_streams = False
        """Whether responses to `/stream` wait for their end, as in a proxy that buffers."""
        self.paths: list[str] = []
        """The paths of all requests."""
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_up = True

    async def start(self) -> int:
        """Starts to listen, and returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def cut(self) -> None:
        """Resets all connections and refuses new ones, until `heal`."""
        self._is_up = False
        self.reset()

    def reset(self) -> None:
        """Resets all connections."""
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        """Ends `cut`."""
        self._is_up = True

    async def close(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if self._is_up:
                await self._forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode().partition("?")[0]
        self.paths.append(path)
        is_upgrade = b"\r\nupgrade: websocket" in head.lower()
        if is_upgrade and self.upgrades in ("refuse", "hang", "mute", "cut"):
            await self._block(reader, writer, head)
            return
        if not is_upgrade or self.upgrades == "strip":
            lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(_HOP_HEADERS)]
            head = b"\r\n".join([*lines, b"Connection: close", b"", b""])
        target_reader, target = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers.add(target)
        try:
            target.write(head)
            await self._pump_both(reader, writer, target_reader, target, holds=self.holds_streams and path == "/stream")
        finally:
            self._writers.discard(target)
            target.transport.abort()

    async def _block(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        if self.upgrades == "refuse":
            writer.write(_REFUSED)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        elif self.upgrades == "mute":
            writer.write(_OPENED + b"Sec-WebSocket-Protocol: tidewire.v1\r\nSec-WebSocket-Accept: " + _accept(head))
            await reader.read()
        elif self.upgrades == "hang":
            await reader.read()

    async def _pump_both(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        target_reader: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        *,
        holds: bool,
    ) -> None:
        up = asyncio.create_task(_pump(reader, target))
        down = asyncio.create_task(_pump(target_reader, writer, holds=holds))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, holds: bool = False) -> None:
    held = bytearray()
    while data := await reader.read(65_536):
        if holds:
            held += data
        else:
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.write(held)
        writer.write_eof()
        await writer.drain()


def _accept(head: bytes) -> bytes:
    [key] = [
        line.split(b":", 1)[1].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")
    ]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    return base64.b64encode(digest) + b"\r\n\r\n"
