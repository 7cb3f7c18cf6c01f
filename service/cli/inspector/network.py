"""A network that breaks on purpose: a TCP proxy on loopback that knows where an HTTP request begins."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

MAX_CONNECTIONS = 32
"""Open connections of one network. A browser needs one WebSocket, or a stream and a few requests."""
MAX_HEAD_BYTES = 16_384
HEAD_TIMEOUT = 10.0
"""Seconds from the start of a connection to the end of its request's header."""
BUFFER_BYTES = 4_096
"""Bytes between node and browser that this network holds, here and in the kernel: a slow reader must show at the node."""
CHUNK_BYTES = 65_536
SLOW_CHUNK_BYTES = 512

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: on, for zero seconds. A close then sends RST in place of FIN."""
_BLOCKED = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 23\r\nConnection: close\r\n\r\n"
    b"WebSockets are blocked\n"
)
_HOP_HEADERS = (b"connection:", b"keep-alive:")


class Network:
    """Forwards each request over a connection of its own. A fault takes effect at once, and lasts until it is set back."""

    def __init__(self, target: Callable[[], int]) -> None:
        """`target` returns the port on loopback to which a new connection goes."""
        self._target = target
        self._server: asyncio.Server | None = None
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._upgraded: set[asyncio.StreamWriter] = set()
        self.is_cut = False
        """Whether new connections are reset."""
        self._blocks_websockets = False
        self.posts = 0
        """Requests with a body: those of a client that uses no WebSocket."""
        self.rate: float | None = None
        """Bytes per second that a browser reads; None: as fast as it can."""

    async def start(self) -> int:
        """Starts to listen, and returns the port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=MAX_HEAD_BYTES)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def close(self) -> None:
        """Ends all connections."""
        if self._server is not None:
            self._server.close()
        self.reset()
        for task in tuple(self._links):
            task.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    @property
    def connections(self) -> int:
        """Open connections from the browser."""
        return len(self._links)

    def reset(self) -> None:
        """Resets all connections (RST)."""
        for writer in self._links.values():
            _abort(writer)

    def cut(self, *, is_cut: bool) -> None:
        """Resets all connections and, until it is set back, each new one."""
        self.is_cut = is_cut
        if is_cut:
            self.reset()

    def block_websockets(self, *, blocks: bool) -> None:
        """Resets all WebSockets and, until it is set back, answers upgrades with 403, as some proxies of companies do."""
        self._blocks_websockets = blocks
        if blocks:
            for writer in tuple(self._upgraded):
                _abort(writer)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or self.is_cut or len(self._links) >= MAX_CONNECTIONS:
            _abort(writer)
            return
        self._links[task] = writer
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            _abort(writer)
        finally:
            del self._links[task]
            self._upgraded.discard(writer)
            writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(HEAD_TIMEOUT):
            head = await reader.readuntil(b"\r\n\r\n")
        if b"\r\nupgrade: websocket" in head.lower():
            if self._blocks_websockets:
                writer.write(_BLOCKED)
                return
            self._upgraded.add(writer)
        else:
            self.posts += head.startswith(b"POST ")
            # The next request of a kept connection would not pass here.
            lines = [line for line in head.split(b"\r\n")[:-2] if not line.lower().startswith(_HOP_HEADERS)]
            head = b"\r\n".join([*lines, b"Connection: close", b"", b""])
        target_reader, target = await _connect(self._target())
        try:
            target.write(head)
            pumps = [
                asyncio.create_task(_pump(reader, target)),
                asyncio.create_task(self._pump_down(target_reader, writer)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            target.close()

    async def _pump_down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forwards to the browser, as fast as it reads."""
        while data := await reader.read(SLOW_CHUNK_BYTES if self.rate else CHUNK_BYTES):
            writer.write(data)
            await writer.drain()
            if self.rate:
                await asyncio.sleep(len(data) / self.rate)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(CHUNK_BYTES):
        writer.write(data)
        await writer.drain()


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connects to a node, with buffers so small that the node notices a slow reader."""
    raw = socket.socket()
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)  # before connect: it sets the window
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        return await asyncio.open_connection(sock=raw, limit=BUFFER_BYTES)
    except BaseException:
        raw.close()
        raise


def _abort(writer: asyncio.StreamWriter) -> None:
    """Closes with RST."""
    with suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
