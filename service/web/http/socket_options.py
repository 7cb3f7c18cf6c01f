"""Listening sockets: their addresses, and the options that every accepted connection inherits from them (tcp(7))."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv6Address

from service.realtime.bounds import Bounds

_FAMILY_MISSING = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""The kernel's errors for an address family that the machine lacks or has switched off."""

FREE_PORT_TRIES = 10
"""Attempts to find a free port: one that is free on one address may be taken on another."""

RECEIVE_BUFFER_BYTES = 65_536
"""Bytes of a connection that the kernel keeps until they are read; one read returns at most about twice as many. Enough
for 1 MB/s at a round trip of 60 ms."""

ACCEPTS_PER_ITERATION = 8
"""Connections that uvloop accepts in one loop iteration, from one address of the public listener. libuv accepts one for each
descriptor that it watches, so each socket is watched under so many descriptors.

With one connection in each iteration, hardly anything in the processor's caches serves two connections. More descriptors gain
little, and each of them finds nothing to accept when a client comes alone."""


def bind_sockets(host: str, port: int, *, reuse_port: bool) -> list[socket.socket]:
    """Binds a socket to every address of the host, all on one port (a free one for 0), without listening.

    `::` means every address of IPv6 and IPv4, with a socket for each family: so no IPv4 client's address looks like an
    IPv6 one. A family that the machine lacks is skipped if another one works. `reuse_port`: other workers bind the same
    port.

    Raises OSError.
    """
    tries = 1 if port else FREE_PORT_TRIES
    while True:
        tries -= 1
        try:
            return _bind_all(host, port, reuse_port=reuse_port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries:
                raise


def _bind_all(host: str, port: int, *, reuse_port: bool) -> list[socket.socket]:
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        missing: OSError | None = None
        for family, address in _resolve(host, port):
            try:
                bound = _bind(family, (address[0], port, *address[2:]), reuse_port=reuse_port)
            except OSError as error:
                if error.errno not in _FAMILY_MISSING:
                    raise
                missing = error
                continue
            sockets.append(stack.enter_context(bound))
            port = bound.getsockname()[1]
        if not sockets:
            raise missing or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        stack.pop_all()
    return sockets


def _resolve(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]]:
    hosts = ("::", "0.0.0.0") if _is_any_address(host) else (host,)  # noqa: S104  # the operator configured `::`
    seen = set()
    for name in hosts:
        for family, _, _, _, address in socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            if (family, address) not in seen:
                seen.add((family, address))
                yield family, address


def _is_any_address(host: str) -> bool:
    try:
        return IPv6Address(host) == IPv6Address(0)
    except ValueError:
        return False


def _bind(family: socket.AddressFamily, address: tuple[str | int | bytes, ...], *, reuse_port: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


@dataclass(frozen=True, slots=True)
class Listener:
    """The listening sockets of one port, on one or several addresses."""

    servers: tuple[asyncio.Server, ...]
    port: int
    sockets: tuple[socket.socket, ...]

    def close(self) -> None:
        """Stops accepting connections; accepted ones stay. May be called again."""
        for server in self.servers:
            server.close()


async def listen(
    protocol: Callable[[], asyncio.Protocol],
    host: str,
    port: int,
    *,
    backlog: int,
    reuse_port: bool = False,
    accepts_per_iteration: int = 1,
) -> Listener:
    """Listens on every address of the host, with the sockets of `bind_sockets`. Raises OSError.

    `accepts_per_iteration`: the connections that a loop accepts in one iteration, if it accepts one for each descriptor.
    """
    loop = asyncio.get_running_loop()
    sockets = bind_sockets(host, port, reuse_port=reuse_port)
    servers: list[asyncio.Server] = []
    try:
        for sock in tuple(sockets):
            sockets.extend(sock.dup() for _ in range(1, accepts_per_iteration))
        for sock in sockets:
            servers.append(await loop.create_server(protocol, sock=sock, backlog=backlog))  # noqa: PERF401  # closed below
    except BaseException:
        for server in servers:
            server.close()
        for sock in sockets:
            sock.close()
        raise
    return Listener(tuple(servers), sockets[0].getsockname()[1], tuple(sockets))


def set_socket_options(listeners: Iterable[socket.socket], bounds: Bounds) -> None:
    """Bounds what the kernel buffers for a connection, and how long it waits for a peer to acknowledge.

    Outbox policies cannot reach bytes in the kernel. TCP_USER_TIMEOUT frees the bytes of a peer that has vanished.
    """
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bounds.outbox.send_buffer)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
            user_timeout_ms = round((bounds.deadlines.heartbeat + bounds.outbox.stall) * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
