"""The sockets that listen: on which addresses, and what the kernel does for every connection that they accept (tcp(7))."""

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

_ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""What the kernel says of an address family that this machine does not have, or has switched off."""

FREE_PORT_TRIES = 10
"""A port that is free on one address may be taken on another."""


def bound_sockets(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    """Sockets bound to every address of the host, all on one port (a free one for 0); they do not listen yet.

    `::` stands for every address, of IPv4 too: with a socket for each family, so that no client's IPv4 address looks like an
    IPv6 one. A family that the machine lacks is left out where another one is there. `shared`: with the workers' siblings.

    Raises OSError.
    """
    tries = 1 if port else FREE_PORT_TRIES
    while True:
        tries -= 1
        try:
            return _all_bound(host, port, shared=shared)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not tries:
                raise


def _all_bound(host: str, port: int, *, shared: bool) -> list[socket.socket]:
    with ExitStack() as stack:
        bound: list[socket.socket] = []
        absent: OSError | None = None
        for family, address in _addresses(host, port):
            try:
                found = _bound(family, (address[0], port, *address[2:]), shared=shared)
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                absent = error
                continue
            bound.append(stack.enter_context(found))
            port = found.getsockname()[1]
        if not bound:
            raise absent or OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        stack.pop_all()
    return bound


def _addresses(host: str, port: int) -> Iterator[tuple[socket.AddressFamily, tuple[str | int | bytes, ...]]]:
    hosts = ("::", "0.0.0.0") if _is_everywhere(host) else (host,)  # noqa: S104  # what the operator has asked for
    seen = set()
    for name in hosts:
        for family, _, _, _, address in socket.getaddrinfo(
            name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            if (family, address) not in seen:
                seen.add((family, address))
                yield family, address


def _is_everywhere(host: str) -> bool:
    try:
        return IPv6Address(host) == IPv6Address(0)
    except ValueError:
        return False


def _bound(family: socket.AddressFamily, address: tuple[str | int | bytes, ...], *, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, shared)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


@dataclass(frozen=True, slots=True)
class Listener:
    """What listens on one port, on one or several addresses."""

    servers: tuple[asyncio.Server, ...]
    port: int
    sockets: tuple[socket.socket, ...]

    def close(self) -> None:
        """Accepts nobody any more; connections stay. May be called again."""
        for server in self.servers:
            server.close()


async def listen(
    protocol: Callable[[], asyncio.Protocol], host: str, port: int, *, backlog: int, shared: bool = False
) -> Listener:
    """Listens on every address of the host; see `bound_sockets`. Raises OSError."""
    loop = asyncio.get_running_loop()
    sockets = bound_sockets(host, port, shared=shared)
    servers: list[asyncio.Server] = []
    try:
        for sock in sockets:
            servers.append(await loop.create_server(protocol, sock=sock, backlog=backlog))  # noqa: PERF401  # closed below
    except BaseException:
        for server in servers:
            server.close()
        for sock in sockets:
            sock.close()
        raise
    return Listener(tuple(servers), sockets[0].getsockname()[1], tuple(sockets))


RECEIVE_BUFFER = 65_536
"""Bytes of a connection that the kernel keeps until they are read: one read brings no more than about twice as many, however many
connections are read from in one loop iteration. Enough for 1 MB/s over 60 ms."""


def bound_buffers(listeners: Iterable[socket.socket], bounds: Bounds) -> None:
    """What waits in the kernel no delivery class can reach, and what a vanished peer never acknowledges must not stay."""
    for listener in listeners:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, bounds.outbox.send_buffer)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if sys.platform == "linux" and listener.family in (socket.AF_INET, socket.AF_INET6):
            patience = round((bounds.deadlines.heartbeat + bounds.outbox.stall) * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, patience)
