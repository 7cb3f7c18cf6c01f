"""Going away: everyone is told when to come back, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

import pytest

from service.core.eager import begin
from service.protocol.close import CloseCode, CloseConnection
from service.realtime.arriving import Arriving
from service.realtime.connection import Connection
from service.realtime.handshake import Arrival, greet
from service.realtime.serving import Serving, serve
from service.realtime.socket import Ear
from service.web.websocket import WebSocket
from tests.harness import DEADLINE, Client, eventually, serving


async def test_everyone_is_told_their_own_delay_and_closed_with_1012() -> None:
    async with serving(deadlines={"shutdown": 2.0}) as server:
        clients = [await Client.open(server, f"u{number}") for number in range(10)]
        for client in clients:
            await client.subscribe("room:1")
        drain = asyncio.create_task(server.service.node.drain())
        codes = [await client.closed() for client in clients]
        await drain
        assert set(codes) == {1012}
        delays = []
        for client in clients:
            told = [message for message in client.received if message["type"] == "reconnect"]
            assert [message["reason"] for message in told] == ["shutdown"]
            delays.append(told[0]["after"])
        assert len(set(delays)) > 5, "spread, not all at once"
        assert all(0 < delay <= 1 for delay in delays)
        metrics = await server.metrics()
        assert metrics["tidewire_connections"] == metrics["tidewire_subscriptions"] == metrics["tidewire_channels"] == 0
        async with server.http.get(f"{server.url}/ws") as response:
            assert response.status == 503
            assert (await response.json(content_type=None))["code"] == "draining"
        async with server.http.get(f"{server.ops_url}/readyz") as response:
            assert response.status == 503


async def test_who_has_not_said_hello_is_told_too() -> None:
    async with serving() as server:
        client = await Client.open(server, hello=False)
        await eventually(lambda: len(server.service.node._greeting) == 1)
        await server.service.node.drain()
        await client.expect("error", code="draining", retryable=True)
        assert await client.closed() == 1012
        await server.at_rest()


class Silent:
    """A socket whose peer says nothing."""

    close_code = 1006
    is_paused = False
    heard = False
    is_held = False
    window_bits = 0
    fd = -1

    def __init__(self) -> None:
        self.arriving = Arriving(self)
        self.ear: Ear = self.arriving
        self.written: list[bytes] = []
        self.write: Callable[[bytes], None] = self.written.append

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def ping(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...


async def test_a_drain_passes_over_who_is_being_refused_already() -> None:
    async with serving(deadlines={"hello": 0.01}) as server:
        node, socket = server.service.node, Silent()
        seat = node.admission.take_seat("127.0.0.1")
        greeting = asyncio.create_task(greet(node, socket, socket.arriving, Arrival(seat)))
        async with asyncio.timeout(DEADLINE):
            while not any(patience.expired() for patience in node._greeting):  # noqa: ASYNC110  # it is one turn of the loop
                await asyncio.sleep(0)
        await node.drain()
        with pytest.raises(CloseConnection) as end:
            await greeting
        assert end.value.code is CloseCode.RESTART
        assert b'"draining"' in socket.written[0]
        seat.release()


async def test_who_is_about_to_be_waited_for_is_told_too() -> None:
    """An arrival is begun at once and waits for `hello` in a task, a turn later: the drain comes in between."""
    async with serving(deadlines={"hello": 3600.0}) as server:
        node, socket = server.service.node, Silent()
        rest = begin(serve(node, socket, socket.arriving, Arrival(node.admission.take_seat("127.0.0.1"))))
        assert rest is not None
        await node.drain()
        async with asyncio.timeout(DEADLINE):
            await asyncio.create_task(rest)
        assert b'"draining"' in socket.written[0]
        await server.at_rest()


async def test_nothing_is_left_when_everyone_has_gone() -> None:
    async with serving(deadlines={"presence_leave": 0.01}) as server:
        for number in range(20):
            async with server.client(f"u{number}") as client:
                await client.subscribe("room:1")
                await client.subscribe("board:1")
        node = server.service.node
        await node.roster.emptied()
        metrics = await server.metrics()
        for gauge in ("connections", "pending_connections", "subscriptions", "channels", "outbox_bytes"):
            assert metrics[f"tidewire_{gauge}"] == 0, gauge
        assert not list(node.hub.rooms())


async def test_a_connection_that_is_over_is_freed_without_the_garbage_collector() -> None:
    """Its collections would have to look at every connection there is, and stop everybody meanwhile."""
    kinds = (Connection, Serving, WebSocket)  # what holds the rest, and all that the collector looks at

    def left() -> list[object]:
        return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]

    async with serving() as server:
        gc.collect()
        gc.disable()
        try:
            for user in ("ann", "ben"):
                async with server.client(user) as client:
                    await client.subscribe("room:1")
                    assert len(left()) == len(kinds)
            closed = await Client.open(server, "cid")
            await server.service.node.disconnect("default", "cid", "enough")
            assert await closed.closed() == 4403
            await server.at_rest()
            await eventually(lambda: not left(), left)
        finally:
            gc.enable()


async def test_the_backend_can_disconnect_a_user() -> None:
    async with serving() as server, server.client("ann") as ann, server.client("ben") as ben:
        assert await server.service.node.disconnect("default", "ann", "banned") == 1
        assert await ann.closed() == 4403
        await ben.silence()
        assert await server.service.node.disconnect("other", "ben", "banned") == 0
        await ben.silence()
