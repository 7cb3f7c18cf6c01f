"""A TCP proxy that simulates a bad network: slow, stalled, silent or cut. For tests of what either side then does."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from contextlib import suppress
from typing import Literal

Side = Literal["client", "target"]
_BUFFER = 262_144
"""Bytes in transit in one direction of a connection; above this, its sender is not read."""
_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER: on, for zero seconds."""


class Proxy:
    """Forwards both ways to a TCP port on loopback. A fault takes effect before its method returns.

    `cut`, `stall` and `black_hole` last until `heal`. If one side closes, the other side is closed once it has all
    bytes.
    """

    def __init__(self, target: int, *, latency: float = 0.0) -> None:
        self._target = target
        self._up = True
        self._server: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self.latency = latency
        """Seconds of delay in each direction. A change applies to bytes that arrive later."""
        self.stalled = False
        """Whether no bytes pass; see `stall`."""
        self.swallowing = False
        """Whether all arriving bytes are lost; see `black_hole`."""
        self.accepted = 0
        """Accepted connections."""
        self.refused = 0
        """Connections that were refused during `cut`."""
        self.sent = 0
        """Bytes sent to the target."""
        self.received = 0
        """Bytes sent to the clients."""
        self.swallowed = 0
        """Lost bytes."""

    async def start(self) -> int:
        """Starts to listen, and returns the port."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Link(self).client, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def lead_to(self, target: int) -> None:
        """Forwards new connections to another port, as when an address moves to another server. Open connections
        stay."""
        self._target = target

    def cut(self) -> None:
        """Cuts the network: resets open connections and refuses new ones."""
        self._up = False
        for link in tuple(self._links):
            link.abort()

    def heal(self) -> None:
        """Ends every fault. Connections from a black hole stay lost, because TCP never delivers a stream with missing
        bytes."""
        self._up = True
        self.swallowing = False
        self.resume()

    def stall(self) -> None:
        """Accepts connections, but reads and forwards nothing. Sent bytes wait in the buffers, then at their sender."""
        self.stalled = True
        for link in self._links:
            link.hold()

    def resume(self) -> None:
        """Continues after `stall`; no bytes are lost."""
        self.stalled = False
        for link in tuple(self._links):
            link.release()

    def black_hole(self) -> None:
        """Loses every byte silently, and hides closes. Open connections stay open; new ones are accepted but not
        forwarded."""
        self.swallowing = True
        for link in self._links:
            link.swallow()

    def half_open(self, untold: Side) -> None:
        """Resets one side of each open connection. The side `untold` keeps a connection without a peer. New
        connections pass."""
        for link in tuple(self._links):
            link.swallow()
            (link.target if untold == "client" else link.client).abort()

    @property
    def open(self) -> int:
        """The number of open connections, from clients and to the target."""
        return sum(end.transport is not None for link in self._links for end in (link.client, link.target))

    @property
    def ports(self) -> set[int]:
        """The TCP ports of our connections to the target."""
        ends = (link.target.transport for link in self._links)
        return {end.get_extra_info("sockname")[1] for end in ends if end is not None}

    async def close(self) -> None:
        """Ends everything."""
        if self._server is not None:
            self._server.close()
        self.cut()
        # An aborted connection is closed in the next loop iteration, a cancelled attempt a few iterations later.
        while self._links:  # noqa: ASYNC110  # each iteration ends some
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
    """A client's connection, and our connection to the target."""

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
    """One side of a link, with the bytes in transit to it."""

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
        # Bytes must not wait in the transport, where `stall` could not hold them back.
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
        """Sends bytes from the other end after the delay."""
        now = asyncio.get_running_loop().time()
        self._waiting.append((now + self._link.proxy.latency, data))
        self._size += len(data)
        self.flush()
        self._link.other(self).read_if_wanted()

    def finish(self) -> None:
        """Closes once the waiting bytes are sent."""
        self._finishing = True
        self.flush()

    def forget(self) -> int:
        """Drops the waiting bytes, and returns their number."""
        size, self._size = self._size, 0
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._link.other(self).read_if_wanted()
        return size

    def abort(self) -> None:
        """Resets the connection as soon as it exists."""
        self._aborted = True
        if self.transport is not None:
            # With a linger time of zero the kernel sends RST, otherwise FIN.
            sock: socket.socket = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.transport.abort()

    def flush(self) -> None:
        """Sends the bytes that are due."""
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
        """Reads from this side, unless the proxy is stalled or too many bytes wait for the other side."""
        if self.transport is None or self.transport.is_closing():
            return
        wanted = not self._link.proxy.stalled and self._link.other(self)._size < _BUFFER
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()
