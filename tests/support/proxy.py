"""A TCP proxy that is the network: it can be slow, stuck, silent, or gone. For tests of what either side then does."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import Literal

Side = Literal["client", "target"]
_BUFFER = 262_144
"""Bytes on their way in one direction of a connection, beyond which its sender is not read from."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: on, for zero seconds."""


class Proxy:
    """Forwards to a port on loopback, both ways, until told to do otherwise. Everything holds from when a call returns.

    `cut`, `stall` and `black_hole` last until `heal`. What one side closes the other sees closed, after all that was sent.
    """

    def __init__(self, target: int, *, latency: float = 0.0) -> None:
        self._target = target
        self._up = True
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self.latency = latency
        """Seconds that bytes take, each way; a change holds for what comes then."""
        self.stalled = False
        """Whether nothing passes; see `stall`."""
        self.swallowing = False
        """Whether whatever comes is lost; see `black_hole`."""
        self.accepted = 0
        """Connections that were taken."""
        self.refused = 0
        """Connections that came while cut."""
        self.sent = 0
        """Bytes given to the target."""
        self.received = 0
        """Bytes given to the clients."""
        self.swallowed = 0
        """Bytes that were lost."""

    async def start(self) -> int:
        """Listens; gives the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Link(self).client, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def lead_to(self, target: int) -> None:
        """Leads new connections to another port, as an address does that is given to another server. What is open stays."""
        self._target = target

    def cut(self) -> None:
        """Loses the network: resets what is open, and refuses what comes."""
        self._up = False
        for link in tuple(self._links):
            link.abort()

    def heal(self) -> None:
        """Gets it back. Connections that were in a black hole stay there: a stream with a hole in it is nothing that TCP
        delivers."""
        self._up = True
        self.swallowing = False
        self.resume()

    def stall(self) -> None:
        """Takes connections, reads nothing and passes nothing; what is sent waits, at first in the buffers, then at its
        sender."""
        self.stalled = True
        for link in self._links:
            link.hold()

    def resume(self) -> None:
        """Goes on where `stall` left off; nothing is lost."""
        self.stalled = False
        for link in tuple(self._links):
            link.release()

    def black_hole(self) -> None:
        """Loses every byte that comes and tells nobody, also not that a side closed. Connections stay open, new ones are
        taken and reach nobody."""
        self.swallowing = True
        for link in self._links:
            link.swallow()

    def half_open(self, untold: Side) -> None:
        """Resets the other side of what is open; `untold` keeps a connection that leads nowhere. New ones pass."""
        for link in tuple(self._links):
            link.swallow()
            (link.target if untold == "client" else link.client).abort()

    @property
    def open(self) -> int:
        """Connections of clients and to the target that are open."""
        return sum(end.transport is not None for link in self._links for end in (link.client, link.target))

    @property
    def ports(self) -> set[int]:
        """Our ends of the connections to the target, as it sees them."""
        ends = (link.target.transport for link in self._links)
        return {end.get_extra_info("sockname")[1] for end in ends if end is not None}

    async def close(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
        self.cut()
        # An aborted connection is closed at the loop's next turn, a cancelled attempt a few later.
        while self._links:  # noqa: ASYNC110  # every turn ends some
            await asyncio.sleep(0)

    def _came(self, link: _Link) -> None:
        if not self._up:
            self.refused += 1
            link.abort()
            return
        self.accepted += 1
        self._links.add(link)
        if self.swallowing:
            link.swallow()
        else:
            link.connect(self._target)

    def _gone(self, link: _Link) -> None:
        self._links.discard(link)


class _Link:
    """A client's connection and ours to the target."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client = _End(self)
        self.target = _End(self)
        self._connecting: asyncio.Task[None] | None = None
        self._swallows = False

    def other(self, end: _End) -> _End:
        return self.target if end is self.client else self.client

    def connect(self, port: int) -> None:
        self._connecting = asyncio.create_task(self._connect(port))
        self._connecting.add_done_callback(self._connected)

    async def _connect(self, port: int) -> None:
        with suppress(OSError):
            await asyncio.get_running_loop().create_connection(lambda: self.target, "127.0.0.1", port)
            return
        self.client.abort()

    def _connected(self, _: asyncio.Task[None]) -> None:
        self._connecting = None
        self._end_if_over()

    def came(self, end: _End, data: bytes) -> None:
        if self._swallows:
            self.proxy.swallowed += len(data)
        else:
            self.other(end).pass_on(data)

    def passed(self, end: _End, size: int) -> None:
        if end is self.target:
            self.proxy.sent += size
        else:
            self.proxy.received += size

    def lost(self, end: _End) -> None:
        if not self._swallows:
            self.other(end).finish()
        self._end_if_over()

    def hold(self) -> None:
        for end in (self.client, self.target):
            end.read_if_wanted()

    def release(self) -> None:
        for end in (self.client, self.target):
            end.flush()
            end.read_if_wanted()

    def swallow(self) -> None:
        self._swallows = True
        for end in (self.client, self.target):
            self.proxy.swallowed += end.forget()

    def abort(self) -> None:
        for end in (self.client, self.target):
            end.forget()
            end.abort()
        if self._connecting is not None:
            self._connecting.cancel()

    def _end_if_over(self) -> None:
        if self._connecting is None and self.client.transport is None and self.target.transport is None:
            self.proxy._gone(self)


class _End(asyncio.Protocol):
    """One side of a link, with what is on its way to it."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self.transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._full = False
        self._finishing = False
        self._aborted = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # What we hand over must not wait where a stall cannot hold it.
        transport.set_write_buffer_limits(0)
        if self is self._link.client:
            self._link.proxy._came(self._link)
        elif self._aborted:
            self.abort()
        self.flush()
        self.read_if_wanted()

    def data_received(self, data: bytes) -> None:
        self._link.came(self, data)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self.flush()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.forget()
        self._link.lost(self)

    def pass_on(self, data: bytes) -> None:
        """Sends what came from the other end, when its time has come."""
        now = asyncio.get_running_loop().time()
        self._waiting.append((now + self._link.proxy.latency, data))
        self._size += len(data)
        self.flush()
        self._link.other(self).read_if_wanted()

    def finish(self) -> None:
        """Closes, after what waits."""
        self._finishing = True
        self.flush()

    def forget(self) -> int:
        """Drops what waits; gives how much."""
        size, self._size = self._size, 0
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._link.other(self).read_if_wanted()
        return size

    def abort(self) -> None:
        """Resets the connection, as soon as there is one."""
        self._aborted = True
        if self.transport is not None:
            # Without lingering the kernel says RST; else it would take leave as if all were well.
            sock: socket.socket = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.transport.abort()

    def flush(self) -> None:
        """Sends what is due."""
        if self.transport is None or self.transport.is_closing() or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        while self._waiting and not self._full and not self._link.proxy.stalled:
            due, data = self._waiting[0]
            if due > loop.time():
                self._timer = loop.call_at(due, self._due)
                break
            self._waiting.popleft()
            self._size -= len(data)
            self._link.passed(self, len(data))
            self.transport.write(data)
        if self._finishing and not self._waiting and not self._link.proxy.stalled:
            self.transport.close()
        self._link.other(self).read_if_wanted()

    def _due(self) -> None:
        self._timer = None
        self.flush()

    def read_if_wanted(self) -> None:
        """Reads from this side unless the proxy is stalled or the other side has too much before it."""
        if self.transport is None or self.transport.is_closing():
            return
        wanted = not self._link.proxy.stalled and self._link.other(self)._size < _BUFFER
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()
