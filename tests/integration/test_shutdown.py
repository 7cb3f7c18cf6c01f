"""The drain: each client is told when to reconnect, and nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from service.aio.eager_start import start_eagerly
from service.app import Service, running
from service.core.channel import ChannelKey
from service.protocol.close import CloseCode, CloseConnection
from service.realtime.cluster.messages import INTERNAL_TENANT
from service.realtime.connections.connection import Connection
from service.realtime.session.accept import accept_connection
from service.realtime.session.handler import SessionHandler
from service.realtime.session.handshake import AcceptedUpgrade, authenticate_hello
from service.realtime.session.pre_auth_buffer import PreAuthBuffer
from service.web.ws.websocket import WebSocket
from tests.support.clock import FakeClock
from tests.support.harness import (
    BIT,
    CONTRACT,
    DEADLINE,
    Client,
    Running,
    eventually,
    loaded,
    passes,
    serving,
    settings,
    token,
)
from tests.support.raw import upgraded
from tests.support.shared_broker import Line, SharedBroker
from tests.support.transport import NullTransport


async def test_drain_tells_each_client_its_own_delay_and_closes_with_1012() -> None:
    async with serving(deadlines={"shutdown": 2.0}) as server:
        clients = [await Client.open(server, f"u{number}") for number in range(10)]
        for client in clients:
            await client.subscribe("room:1")
        drain = asyncio.create_task(server.service.node.lifecycle.drain())
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


@asynccontextmanager
async def stopping(clock: FakeClock, **groups: Any) -> AsyncIterator[tuple[Running, asyncio.Event, asyncio.Task[None]]]:
    """A service in the test's time, what stops it, and its life. Requests come on new connections."""
    service = Service(settings(port=0, ops_port=0, **groups), loaded(CONTRACT), clock=clock)
    listening: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def live() -> None:
        async with running(service) as ports:
            listening.set_result(ports)
            await stop.wait()

    life = asyncio.create_task(live())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as http:
        port, ops_port = await listening
        try:
            yield Running(service, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops_port}", http), stop, life
        finally:
            stop.set()
            service.shorten_drain()
            async with asyncio.timeout(DEADLINE):
                await asyncio.wait([life])
    await life


class TestPublicListener:
    async def test_draining_node_serves_http_and_refuses_upgrades(self) -> None:
        clock = FakeClock(time.time())
        async with stopping(clock, rollout={"drain_rate": 0.5}) as (server, stop, life):
            clients = [await Client.open(server, f"u{number}") for number in range(3)]
            for client in clients:
                await client.subscribe("news:1")
            stop.set()
            node = server.service.node
            await eventually(lambda: node.admission.is_draining)
            await passes(clock, 2.0 + BIT)
            assert await clients[0].closed() == 1012, "the first of three has gone"
            await eventually(lambda: node.availability.connections == 2)

            upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Authorization": f"Bearer {token()}"}
            for headers in (upgrade, {}):
                async with server.http.get(f"{server.url}/ws", headers=headers) as response:
                    assert (response.status, response.content_type) == (503, "application/problem+json")
                    assert int(response.headers["Retry-After"]) >= 1
                    assert (await response.json(content_type=None))["code"] == "draining"
            assert (
                await server.metric("upgrade_refusals_total", reason="draining", cause="draining", door="upgrade") == 2
            )

            await server.publish("news:1", {"type": "news.flash", "data": {"text": "still here"}})
            for client in clients[1:]:
                assert (await client.expect("news.flash"))["data"] == {"text": "still here"}
            assert await server.metric("draining") == 1
            assert await server.metric("drain_left") == 2
            async with server.http.get(f"{server.ops_url}/readyz") as response:
                assert response.status == 503
                assert [reason["code"] for reason in (await response.json())["reasons"]] == ["draining"]

            for client in clients[1:]:
                await passes(clock, 2.0)
                assert await client.closed() == 1012
            async with asyncio.timeout(DEADLINE):
                await life
            with pytest.raises(aiohttp.ClientConnectorError):
                await server.http.get(f"{server.url}/ws")

    async def test_draining_node_closes_each_http_connection_with_its_next_response(self) -> None:
        clock = FakeClock(time.time())
        async with (
            stopping(clock, rollout={"drain_rate": 0.5}) as (server, stop, _),
            server.client(),
            aiohttp.ClientSession() as pool,
        ):
            for is_draining in (False, True):
                async with pool.get(f"{server.url}/api/v1/channels") as response:
                    assert response.status == 401
                    assert response.headers.get("Connection", "").lower() == ("close" if is_draining else "")
                stop.set()
                await eventually(lambda: server.service.node.admission.is_draining)

    async def test_draining_worker_closes_a_shared_port_at_once(self) -> None:
        clock = FakeClock(time.time())
        async with stopping(clock, workers=2, rollout={"drain_rate": 0.5}) as (server, stop, life):
            client = await Client.open(server)
            stop.set()
            await eventually(lambda: server.service.node.admission.is_draining)
            with pytest.raises(aiohttp.ClientConnectorError):
                await server.http.get(f"{server.url}/ws")
            await client.silence()
            assert not life.done()
            server.service.node.lifecycle.skip_drain_delays()
            assert await client.closed() == 1012


async def test_drain_without_delays_closes_all_at_once() -> None:
    clock = FakeClock(time.time())
    async with stopping(clock, rollout={"drain_rate": 0.1}) as (server, stop, life):
        clients = [await Client.open(server, f"u{number}") for number in range(10)]
        stop.set()
        await eventually(lambda: server.service.node.admission.is_draining)
        server.service.node.lifecycle.skip_drain_delays()
        assert [await client.closed() for client in clients] == [1012] * 10
        for client in clients:
            assert [one["reason"] for one in client.received if one["type"] == "reconnect"] == ["shutdown"]
        async with asyncio.timeout(DEADLINE):
            await life


async def test_unread_metrics_response_does_not_delay_the_shutdown(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a scraper whose network is gone: what it asked for waits in the kernel."""
    async with stopping(FakeClock(time.time()), outbox={"close_grace": 0.1}) as (server, stop, life):
        metrics, made = server.service.metrics, 0
        render = metrics.render

        def counting() -> bytes:
            nonlocal made
            made += 1
            return render()

        monkeypatch.setattr(metrics, "render", counting)
        with socket.socket() as end:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            end.connect(("127.0.0.1", int(server.ops_url.rpartition(":")[2])))
            end.sendall(b"GET /metrics HTTP/1.1\r\nHost: service.example\r\n\r\n" * 1_000)
            before = -1
            async with asyncio.timeout(DEADLINE):
                while (
                    made == 0 or made > before
                ):  # the service is in this loop: what does not go on in so many turns, waits
                    before = made
                    for _ in range(50):
                        await asyncio.sleep(0)
            assert made < 1_000
            stop.set()
            async with asyncio.timeout(DEADLINE):
                await asyncio.wait([life])


async def test_connection_that_does_not_close_is_cut() -> None:
    groups: dict[str, Any] = {"deadlines": {"shutdown": 0.5, "last_scrape": 0}, "outbox": {"close_grace": 60.0}}
    async with serving(**groups) as server, upgraded(server):  # which does not answer a close
        await server.service.node.lifecycle.drain()
        await server.at_rest()
        assert await server.metric("drain_timeouts_total") == 1


class TestLastScrape:
    """The counters of a drain that timed out end with the process: the ops listener waits for whoever reads them."""

    CUT: dict[str, Any] = {  # noqa: RUF012  # read only
        "deadlines": {"shutdown": 0.3, "last_scrape": 60.0},
        "outbox": {"close_grace": 1.0},
    }

    async def test_last_scrape_is_awaited_after_cut_connections(self) -> None:
        async with stopping(FakeClock(time.time()), **self.CUT) as (server, stop, life), upgraded(server):
            assert await server.metric("drain_timeouts_total") == 0  # a scrape, as one of many
            stop.set()
            await eventually(lambda: server.service.node.lifecycle.drain_timed_out)
            await eventually(lambda: not server.service.is_listening)
            assert not life.done()
            metrics = await server.metrics()
            assert metrics["tidewire_drain_timeouts_total"] == 1
            assert metrics["tidewire_drain_cut_connections_total"] == 1
            assert metrics["tidewire_ready"] == 0
            async with asyncio.timeout(DEADLINE):
                await life

    async def test_last_scrape_is_not_awaited_without_scrapers(self) -> None:
        async with stopping(FakeClock(time.time()), **self.CUT) as (server, stop, life), upgraded(server):
            stop.set()
            async with asyncio.timeout(DEADLINE):
                await life
            assert server.service.node.lifecycle.drain_timed_out

    async def test_last_scrape_is_not_awaited_after_a_complete_drain(self) -> None:
        groups = self.CUT | {"deadlines": {"shutdown": DEADLINE, "last_scrape": 60.0}}
        async with stopping(FakeClock(time.time()), **groups) as (server, stop, life):
            await server.metrics()
            stop.set()
            async with asyncio.timeout(DEADLINE):
                await life
            assert not server.service.node.lifecycle.drain_timed_out

    async def test_last_scrape_is_awaited_for_the_setting_at_most(self) -> None:
        groups = self.CUT | {"deadlines": {"shutdown": 0.3, "last_scrape": 0.3}}
        async with stopping(FakeClock(time.time()), **groups) as (server, stop, life), upgraded(server):
            await server.metrics()
            stop.set()
            async with asyncio.timeout(DEADLINE):
                await life
            assert server.service.node.lifecycle.drain_timed_out

    async def test_second_signal_ends_the_wait_for_the_last_scrape(self) -> None:
        async with stopping(FakeClock(time.time()), **self.CUT) as (server, stop, life), upgraded(server):
            await server.metrics()
            stop.set()
            await eventually(lambda: server.service.node.lifecycle.drain_timed_out and not server.service.is_listening)
            server.service.shorten_drain()
            async with asyncio.timeout(DEADLINE):
                await life


class Hanging(Line):
    """A line on which subscribing hangs until a test says so."""

    def __init__(self, line: Line) -> None:
        super().__init__(line)
        self.is_asked, self.answers = asyncio.Event(), asyncio.Event()

    async def subscribe(self, channel: ChannelKey) -> None:
        if channel.tenant != INTERNAL_TENANT:
            self.is_asked.set()
            await self.answers.wait()
        await super().subscribe(channel)


async def test_second_drain_after_a_timeout_returns_at_once() -> None:
    """The service's end asks again. A command that hangs at the broker keeps its connection's end waiting."""
    bus = SharedBroker()
    await bus.start()
    line = Hanging(bus.line())
    async with serving(broker=line, deadlines={"shutdown": 0.2, "last_scrape": 0}) as server:
        client = await Client.open(server)
        await client.send(type="subscribe", id="q1", channel="room:1")
        async with asyncio.timeout(DEADLINE):
            await line.is_asked.wait()
        end = asyncio.create_task(client.closed())
        for _ in range(2):
            await server.service.node.lifecycle.drain()
            assert await server.metric("drain_timeouts_total") == 1
        assert await end == 1012
        line.answers.set()
        await server.at_rest()
    await bus.close()


async def test_drain_ends_the_wait_for_hello() -> None:
    async with serving() as server:
        client = await Client.open(server, hello=False)
        await eventually(lambda: len(server.service.node.lifecycle.pending_handshakes) == 1)
        await server.service.node.lifecycle.drain()
        await client.expect("error", code="draining", retryable=True)
        assert await client.closed() == 1012
        await server.at_rest()


class Silent(NullTransport):
    """Its peer says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = False
        self.buffer = PreAuthBuffer(self)
        self.handler = self.buffer
        self.written: list[bytes] = []
        self.write = self.written.append


async def test_drain_skips_a_handshake_that_has_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(deadlines={"hello": 0.01}) as server:
        node, socket = server.service.node, Silent()
        track, timeouts = node.lifecycle.pending_handshakes.track, list[asyncio.Timeout]()

        def tracked(timeout: asyncio.Timeout) -> AbstractContextManager[None]:
            timeouts.append(timeout)
            return track(timeout)

        monkeypatch.setattr(node.lifecycle.pending_handshakes, "track", tracked)
        slot = node.admission.slots.acquire("127.0.0.1")
        greeting = asyncio.create_task(authenticate_hello(node, socket, socket.buffer, AcceptedUpgrade(slot)))
        async with asyncio.timeout(DEADLINE):
            while not any(timeout.expired() for timeout in timeouts):  # noqa: ASYNC110  # it is one turn of the loop
                await asyncio.sleep(0)
        await node.lifecycle.drain()
        with pytest.raises(CloseConnection) as end:
            await greeting
        assert end.value.code is CloseCode.RESTART
        assert b'"draining"' in socket.written[0]
        slot.release()


async def test_drain_before_the_wait_for_hello_ends_it() -> None:
    """An arrival is begun at once and waits for `hello` in a task, a turn later: the drain comes in between."""
    async with serving(deadlines={"hello": 3600.0}) as server:
        node, socket = server.service.node, Silent()
        slot = node.admission.slots.acquire("127.0.0.1")
        waiting = accept_connection(node, socket, socket.buffer, AcceptedUpgrade(slot))
        assert waiting is not None
        rest = start_eagerly(waiting)
        assert rest is not None
        await node.lifecycle.drain()
        async with asyncio.timeout(DEADLINE):
            await asyncio.create_task(rest)
        assert b'"draining"' in socket.written[0]
        await server.at_rest()


async def test_closed_connections_leave_no_state() -> None:
    async with serving(deadlines={"presence_leave": 0.01}) as server:
        for number in range(20):
            async with server.client(f"u{number}") as client:
                await client.subscribe("room:1")
                await client.subscribe("board:1")
        node = server.service.node
        await node.streams.registry.wait_empty()
        metrics = await server.metrics()
        for gauge in ("connections", "pending_connections", "subscriptions", "channels", "outbox_bytes"):
            assert metrics[f"tidewire_{gauge}"] == 0, gauge
        assert not list(node.streams.hub.rooms())


async def test_ended_connection_is_freed_without_the_garbage_collector() -> None:
    """Its collections would have to look at every connection there is, and stop everybody meanwhile."""
    kinds = (Connection, SessionHandler, WebSocket)  # what holds the rest, and all that the collector looks at

    def left() -> list[object]:
        return [thing for thing in gc.get_objects() if isinstance(thing, kinds)]

    async with serving() as server:
        gc.collect()
        gc.freeze()  # so that the list of objects has only those that come now
        gc.disable()
        try:
            for user in ("ann", "ben"):
                async with server.client(user) as client:
                    await client.subscribe("room:1")
                    assert len(left()) == len(kinds)
            closed = await Client.open(server, "cid")
            await server.service.node.cluster.actions.disconnect("default", "cid", "enough")
            assert await closed.closed() == 4403
            await server.at_rest()
            await eventually(lambda: not left(), left)
        finally:
            gc.enable()
            gc.unfreeze()


async def test_disconnect_closes_all_connections_of_a_user() -> None:
    async with serving() as server, server.client("ann") as ann, server.client("ben") as ben:
        assert await server.service.node.cluster.actions.disconnect("default", "ann", "banned") == 1
        assert await ann.closed() == 4403
        await ben.silence()
        assert await server.service.node.cluster.actions.disconnect("other", "ben", "banned") == 0
        await ben.silence()
