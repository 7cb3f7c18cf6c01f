"""A smoke test of the proxy of the fault tests: what it does to connections, seen from both sides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest

from tests.support.harness import eventually
from tests.support.proxy import Proxy

T = TypeVar("T")
QUIET = 0.1
"""Seconds in which nothing may come where nothing should."""
MUCH = 32 * 1024 * 1024
"""Bytes: more than kernel and proxy keep for a connection."""


async def soon(something: Awaitable[T]) -> T:
    async with asyncio.timeout(5):
        return await something


@dataclass
class Peer:
    """One side of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def receives(self, data: bytes) -> None:
        assert await soon(self.reader.readexactly(len(data))) == data

    async def hears_nothing(self) -> None:
        """No byte, no end. Nothing can be awaited where nothing happens, so it is given a time in which to happen."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET):
                await self.reader.read(1)

    async def is_reset(self) -> None:
        with pytest.raises(ConnectionResetError):
            await soon(self.reader.read(1))

    async def sends_much(self) -> None:
        """Sends `MUCH`; returns when all of it has left."""
        for _ in range(MUCH // 65_536):
            self.writer.write(bytes(65_536))
            await self.writer.drain()


class World:
    """A target behind a proxy."""

    def __init__(self, proxy: Proxy, port: int) -> None:
        self.proxy = proxy
        self.port = port
        self._targets: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self._peers.append(peer)
        self._targets.put_nowait(peer)

    async def client(self) -> Peer:
        """A client whose connection the proxy took, wherever that leads."""
        before = self.proxy.accepted
        peer = Peer(*await soon(asyncio.open_connection("127.0.0.1", self.port)))
        self._peers.append(peer)
        await eventually(lambda: self.proxy.accepted > before)
        return peer

    async def pair(self) -> tuple[Peer, Peer]:
        """A client, and the target's side of its connection."""
        return await self.client(), await self.target()

    async def target(self) -> Peer:
        """The target's side of the next connection that reaches it."""
        return await soon(self._targets.get())

    def nobody_came(self) -> bool:
        return self._targets.empty()

    def close(self) -> None:
        for peer in self._peers:
            transport = peer.writer.transport
            if not transport.is_closing() or transport.get_write_buffer_size():  # asyncio's abort fails after the end
                transport.abort()


@asynccontextmanager
async def proxied(latency: float = 0.0) -> AsyncIterator[World]:
    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.accept(reader, writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1], latency=latency)
    world = World(proxy, await proxy.start())
    try:
        yield world
    finally:
        server.close()
        world.close()
        await soon(proxy.close())
        assert proxy.open == 0


async def test_proxy_passes_and_counts_both_ways() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        client.send(b"ask")
        await target.receives(b"ask")
        target.send(b"answer")
        await client.receives(b"answer")
        assert (world.proxy.sent, world.proxy.received, world.proxy.swallowed) == (3, 6, 0)
        assert world.proxy.open == 2


async def test_cut_resets_open_connections_and_refuses_until_healed() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        world.proxy.cut()
        await client.is_reset()
        await target.is_reset()
        refused = Peer(*await asyncio.open_connection("127.0.0.1", world.port))
        await refused.is_reset()
        refused.writer.transport.abort()
        assert world.proxy.refused == 1
        assert world.nobody_came()
        world.proxy.heal()
        client, target = await world.pair()
        client.send(b"back")
        await target.receives(b"back")


async def test_stall_holds_bytes_and_resume_loses_none() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        world.proxy.stall()
        client.send(b"ask")
        target.send(b"answer")
        later = await world.client()
        later.send(b"me too")
        await target.hears_nothing()
        await client.hears_nothing()
        assert (world.proxy.sent, world.proxy.received) == (0, 0)
        world.proxy.resume()
        await target.receives(b"ask")
        await client.receives(b"answer")
        second = await world.target()
        await second.receives(b"me too")


async def test_black_hole_swallows_both_ways_silently() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        world.proxy.black_hole()
        target.send(b"answer")
        await client.hears_nothing()
        await soon(client.sends_much())
        client.writer.close()
        await target.hears_nothing()
        lost = await world.client()
        lost.send(b"hello?")
        await lost.hears_nothing()
        assert world.nobody_came()
        await eventually(lambda: world.proxy.swallowed == MUCH + len(b"answer" + b"hello?"))
        assert (world.proxy.sent, world.proxy.received) == (0, 0)
        # What was in the hole stays there; who comes now gets through.
        world.proxy.heal()
        target.send(b"more")
        lost.send(b"hello?")
        await lost.hears_nothing()
        client, target = await world.pair()
        client.send(b"back")
        await target.receives(b"back")


async def test_half_open_does_not_close_the_target() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        world.proxy.half_open("target")
        await client.is_reset()
        target.send(b"are you there?")
        await target.hears_nothing()
        assert world.proxy.open == 1
        client, target = await world.pair()
        client.send(b"again")
        await target.receives(b"again")
