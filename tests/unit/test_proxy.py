"""What the proxy of the fault tests does to connections, seen from both sides of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import pytest

from tests.harness import eventually
from tests.proxy import _BUFFER, Proxy

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
        self._port = port
        self._targets: asyncio.Queue[Peer] = asyncio.Queue()
        self._peers: list[Peer] = []

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        self._peers.append(peer)
        self._targets.put_nowait(peer)

    async def client(self) -> Peer:
        """A client whose connection the proxy took, wherever that leads."""
        before = self.proxy.accepted
        peer = Peer(*await soon(asyncio.open_connection("127.0.0.1", self._port)))
        self._peers.append(peer)
        await eventually(lambda: self.proxy.accepted > before)
        return peer

    async def pair(self) -> tuple[Peer, Peer]:
        """A client, and the target's side of its connection."""
        return await self.client(), await self.target()

    async def target(self) -> Peer:
        """The target's side of the next connection that reaches it."""
        return await soon(self._targets.get())

    def waiting(self) -> int:
        """Bytes that the proxy keeps, the fullest direction's."""
        return max(end._size for link in self.proxy._links for end in (link.client, link.target))

    def nobody_came(self) -> bool:
        return self._targets.empty()

    def close(self) -> None:
        for peer in self._peers:
            peer.writer.transport.abort()


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


async def test_it_passes_and_counts_both_ways() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        client.send(b"ask")
        await target.receives(b"ask")
        target.send(b"answer")
        await client.receives(b"answer")
        assert (world.proxy.sent, world.proxy.received, world.proxy.swallowed) == (3, 6, 0)
        assert world.proxy.open == 2


async def test_what_is_sent_before_a_close_arrives_before_it() -> None:
    async with proxied() as world:
        client = await world.client()
        client.send(b"last words")
        client.writer.close()
        target = await world.target()
        assert await soon(target.reader.read()) == b"last words"
        await eventually(lambda: world.proxy.open == 0)


async def test_all_of_much_arrives_and_little_of_it_is_in_between() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        sending = asyncio.create_task(client.sends_much())
        await target.receives(bytes(65_536))
        assert world.waiting() <= 2 * _BUFFER
        await target.receives(bytes(MUCH - 65_536))
        await soon(sending)
        assert world.proxy.sent == MUCH


async def test_a_target_that_is_not_there_is_a_reset() -> None:
    async with proxied() as world:
        gone = await asyncio.start_server(world.accept, "127.0.0.1", 0)
        nobody = Proxy(gone.sockets[0].getsockname()[1])
        gone.close()
        await gone.wait_closed()
        reader, writer = await asyncio.open_connection("127.0.0.1", await nobody.start())
        await Peer(reader, writer).is_reset()
        writer.transport.abort()
        await soon(nobody.close())


async def test_cut_resets_what_is_open_and_refuses_until_healed() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        world.proxy.cut()
        await client.is_reset()
        await target.is_reset()
        refused = Peer(*await asyncio.open_connection("127.0.0.1", world._port))
        await refused.is_reset()
        refused.writer.transport.abort()
        assert world.proxy.refused == 1
        assert world.nobody_came()
        world.proxy.heal()
        client, target = await world.pair()
        client.send(b"back")
        await target.receives(b"back")


async def test_latency_delays_each_way_and_keeps_the_order() -> None:
    async with proxied(latency=0.1) as world:
        clock = asyncio.get_running_loop().time
        client, target = await world.pair()
        start = clock()
        client.send(b"a")
        await target.receives(b"a")
        there = clock() - start
        assert 0.09 <= there < 1
        target.send(b"b")
        await client.receives(b"b")
        assert 0.19 <= clock() - start < 2
        # Bytes under way do not wait for each other, and do not overtake each other when the latency falls.
        client.send(b"1")
        await eventually(lambda: world.waiting() > 0)
        world.proxy.latency = 0.0
        client.send(b"2")
        await target.receives(b"12")


async def test_stall_holds_everything_and_resume_loses_nothing() -> None:
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


async def test_a_stalled_sender_is_stopped_by_full_buffers() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        world.proxy.stall()
        sending = asyncio.create_task(client.sends_much())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(QUIET):
                await asyncio.shield(sending)
        assert world.waiting() == 0
        world.proxy.heal()
        await target.receives(bytes(MUCH))
        await soon(sending)


async def test_a_black_hole_swallows_both_ways_and_tells_nobody() -> None:
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


async def test_half_open_leaves_the_target_untold() -> None:
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


async def test_half_open_leaves_the_client_untold() -> None:
    async with proxied() as world:
        client, target = await world.pair()
        world.proxy.half_open("client")
        await target.is_reset()
        client.send(b"are you there?")
        await client.hears_nothing()
        assert world.proxy.open == 1


async def test_closing_ends_what_is_stalled_swallowed_and_on_its_way() -> None:
    async with proxied(latency=60) as world:
        client, _ = await world.pair()
        client.send(b"slow")
        await eventually(lambda: world.waiting() > 0)
        world.proxy.black_hole()
        await world.client()
        world.proxy.stall()
        await world.client()
