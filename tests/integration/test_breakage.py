"""Regressions: peers that vanish or ask for much, and steps that interleave."""

from __future__ import annotations

import asyncio
import gzip
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from service.adapters.memory.presence import MemoryPresence
from service.app import Service, running
from service.contract.load import load
from service.core.channel import ChannelKey
from service.protocol.messages import Pong
from service.realtime.connections.connection import Connection
from service.realtime.delivery.room import Room
from service.web import demo
from tests.support.brokers import SlowBroker
from tests.support.harness import API_KEY, DEADLINE, Running, eventually, serving, settings, token
from tests.support.wire import Wire, connect

UNLIMITED = {"connection_rate": {"per_second": 1e6, "burst": 10**6}}
PAGE = {"type": "history", "channel": "room:1", "limit": 50}


def port_of(server: Running) -> int:
    return int(server.url.rpartition(":")[2])


async def fill(server: Running, channel: str = "room:1", size: int = 20_000) -> None:
    """A history whose pages are cut at a megabyte, or nearly."""
    await server.publish(channel, [{"type": "chat.message", "data": {"text": "x" * size}}] * 50)


async def deaf(server: Running, user: str = "ben") -> tuple[Wire, Connection]:
    """A client that reads nothing after `ready`, and its connection."""
    wire = await connect(port_of(server), lambda _: None, bearer=token(user), receive_buffer=4096)
    wire.read(False)
    wire.send({"type": "ready"})
    of_user = server.service.node.streams.registry.of_user
    await eventually(lambda: any(found.session.is_ready for found in of_user("default", user)))
    return wire, of_user("default", user)[0]


async def test_peer_that_vanishes_with_waiting_replies_leaves_nothing() -> None:
    """Its reader waited for the queue to drain, but the writer that would report this had ended."""
    async with serving(limits=UNLIMITED) as server:
        await fill(server)
        wire, connection = await deaf(server)
        for number in range(5):
            wire.send({**PAGE, "id": f"h{number}"})
        await eventually(lambda: connection.paused_since is not None)
        wire.abort()
        await server.at_rest()


async def test_batch_queues_no_more_replies_than_single_messages() -> None:
    """A frame of 6 KB made 95 MB of replies wait; three of these used up the node's budget."""
    async with serving() as server:
        await fill(server)
        wire, connection = await deaf(server)
        wire.send(*({**PAGE, "id": f"h{number}"} for number in range(90)))
        await eventually(lambda: connection.paused_since is not None)
        await asyncio.sleep(0)
        assert server.service.node.streams.budget.used <= 2 * server.service.settings.outbox.recovery_bytes
        assert await server.metric("messages_in_total", type="history") <= 3
        wire.abort()
        await server.at_rest()


async def test_ready_does_not_queue_the_snapshots_of_all_channels_at_once() -> None:
    async with serving(limits=UNLIMITED) as server:
        channels = [f"room:{number}" for number in range(20)]
        top = {}
        for channel in channels:
            await server.publish(channel, {"type": "chat.message", "id": "0", "data": {"text": "x"}})
            await fill(server, channel, size=15_000)
        wire = await connect(port_of(server), lambda _: None, bearer=token("ben"), receive_buffer=4096)
        (connection,) = await _of_user(server, "ben")
        for channel in channels:
            async with server.http.get(
                f"{server.url}/api/v1/channels/{channel}", headers={"Authorization": f"Bearer {API_KEY}"}
            ) as response:
                top[channel] = (await response.json())["epoch"]
        for channel in channels:
            page = await server.service.broker.history(ChannelKey("default", channel), None, None, 50)
            since = {"epoch": top[channel], "offset": page.events[0].offset, "id": page.events[0].id}
            wire.send({"type": "subscribe", "id": channel, "channel": channel, "since": since})
        await eventually(lambda: len(connection.session.subscriptions) == len(channels))
        wire.read(False)
        wire.send({"type": "ready"})
        await eventually(lambda: connection.paused_since is not None)
        assert server.service.node.streams.budget.used <= 2 * server.service.settings.outbox.recovery_bytes
        wire.abort()
        await server.at_rest()


async def _of_user(server: Running, user: str) -> tuple[Connection, ...]:
    of_user = server.service.node.streams.registry.of_user
    await eventually(lambda: bool(of_user("default", user)))
    return of_user("default", user)


async def test_client_reading_a_large_reply_is_not_a_slow_consumer() -> None:
    """A client with two pages of history and one durable event in between was closed with 4450."""
    async with serving(limits=UNLIMITED) as server, server.client("ann") as ann:
        await fill(server)
        await ann.subscribe("room:2")
        for number in range(4):
            await ann.send(**PAGE, id=f"h{number}")
            await ann.send(type="chat.message", channel="room:2", id=f"m{number}", data={"text": "x"})
        for number in range(4):
            await ann.until("chat.message", offset=number + 1)
        await ann.silence(but="ack")


async def test_hello_during_a_drain_is_refused_as_draining() -> None:
    """It was welcomed, told nothing, and delayed the shutdown for the whole of its deadline."""
    async with (
        serving(deadlines={"shutdown": DEADLINE * 2}) as server,
        server.client("ann"),
        server.client(hello=False) as late,
    ):
        drain = asyncio.create_task(server.service.node.lifecycle.drain())
        await eventually(lambda: server.service.node.admission.is_draining)
        await late.send(type="hello", token=token("late"))
        assert (await late.expect("error", code="draining"))["retryable"] is True
        assert await late.closed() == 1012
        async with asyncio.timeout(DEADLINE):
            await drain


@pytest.mark.parametrize(
    "request_",
    [
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
        b"GET /ws HTTP/1.1\r\nHost: x\r\nExpect: \xff\r\n\r\n",
    ],
    ids=["a body not in its encoding", "an Expect that is no text"],
)
async def test_malformed_requests_do_not_fill_the_log(
    server: Running, caplog: pytest.LogCaptureFixture, request_: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    try:
        writer.write(request_)
        writer.write_eof()
        async with asyncio.timeout(DEADLINE):
            assert (await reader.readline()).startswith(b"HTTP/1.1 4")
            with suppress(ConnectionResetError):
                await reader.read()
    finally:
        writer.transport.abort()
    # The loop's debug mode reports slow steps, which happen on any busy machine.
    told = [record for record in caplog.records if record.levelno >= logging.WARNING and record.name != "asyncio"]
    assert told == []


async def test_content_encoding_in_a_second_header_is_refused(server: Running) -> None:
    async with server.http.post(
        f"{server.url}/api/v1/channels/room:1/events",
        data=gzip.compress(b'{"type": "chat.message", "data": {"text": "x"}}'),
        headers=[
            ("Authorization", f"Bearer {API_KEY}"),
            ("Content-Type", "application/json"),
            ("Content-Encoding", "identity"),
            ("Content-Encoding", "gzip"),
        ],
    ) as response:
        assert response.status == 415


# --- steps that interleave while a broker or a presence store is slow -------------------------------------------------


@pytest.mark.parametrize("step", ["subscribe", "lock", "snapshot"])
async def test_subscription_ended_by_the_backend_while_it_is_made_leaves_nothing(step: str) -> None:
    """It was removed from the session before it was in the room, and stayed in the room and in presence for ever."""
    broker = SlowBroker()
    async with (
        serving(broker=broker, deadlines={"presence_leave": 0.01}) as server,
        server.client("ann") as ann,
        server.client("ben") as ben,
    ):
        node = server.service.node
        gate = "snapshot" if step == "snapshot" else "subscribe"
        broker.gates[gate] = asyncio.Event()
        if step == "lock":  # ben is the first in the room, and ann waits until he is
            await ben.send(type="subscribe", id="s", channel="room:1")
            await eventually(lambda: gate in broker.waiting)
        await ann.send(type="subscribe", id="s", channel="room:1")
        (connection,) = await _of_user(server, "ann")
        await eventually(lambda: connection.session.is_subscribed("room:1") and gate in broker.waiting)
        ended = asyncio.create_task(node.cluster.actions.unsubscribe("default", "ann", "room:1"))
        await eventually(lambda: not connection.session.is_subscribed("room:1"))
        broker.gates.pop(gate).set()
        assert await ended == 1
        await ann.expect("unsubscribed", channel="room:1", code="removed")
        await ann.silence()
        if step == "lock":
            await ben.until("subscribed")
            assert (await ben.ask("unsubscribe", channel="room:1"))["code"] == "requested"
        await eventually(lambda: not list(node.streams.hub.rooms()))
        async with asyncio.timeout(DEADLINE):
            while (await node.streams.presence.view(ChannelKey("default", "room:1"))).count:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.005)
        await ann.subscribe("room:1")


async def test_fault_while_leaving_a_channel_keeps_nobody_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member of the room stayed in the registry for ever, and its slot was never released."""
    async with serving(limits={"connections_per_user": 1}) as server:
        async with server.client("ann") as ann:
            await ann.subscribe("room:1")
            await ann.subscribe("room:2")

            async def broken(channel: ChannelKey) -> None:
                raise RuntimeError("a bug")

            monkeypatch.setattr(server.service.broker, "unsubscribe", broken)
        await eventually(lambda: not len(server.service.node.streams.registry))
        monkeypatch.undo()
        async with server.client("ann") as ann:
            await ann.subscribe("room:1")
        await server.at_rest()


async def test_member_that_joins_while_presence_is_read_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list was read before the buffer for concurrent changes existed."""
    async with serving() as server, server.client("ann") as ann, server.client("ben") as ben:
        entered, gate = asyncio.Event(), asyncio.Event()
        members = MemoryPresence.members

        async def slow(store: MemoryPresence, channel: ChannelKey, limit: int) -> Any:
            found = await members(store, channel, limit)
            if not entered.is_set():
                entered.set()
                await gate.wait()
            return found

        monkeypatch.setattr(MemoryPresence, "members", slow)
        await ann.send(type="subscribe", id="s", channel="room:1")
        await entered.wait()
        await ben.subscribe("room:1")
        gate.set()
        listed = (await ann.until("subscribed"))["presence"]["members"]
        if "ben" not in [member["user"] for member in listed]:
            await ann.until("presence.joined", key="ben")


async def test_messages_for_a_closed_connection_are_not_counted_as_waiting(server: Running) -> None:
    async with server.client("ann"):
        (connection,) = await _of_user(server, "ann")
    await server.at_rest()
    connection.reply(Pong(id="late"))
    assert (connection.queued_messages, server.service.node.streams.budget.used) == (0, 0)


# --- the demo's pages -------------------------------------------------------------------------------------------------


async def test_demo_pages_have_their_headers_and_serve_no_other_path(tmp_path: Path) -> None:
    """Its assets lacked the headers, so the same page could be framed at another address; a long name was a fault of
    ours."""
    pages, client = tmp_path / "demo" / "pages", tmp_path / "client"
    files = (pages / "start" / "index.html", pages / "board" / "index.html", pages / "board" / "parts" / "main.js")
    contract = tmp_path / "demo" / "contract.yaml"
    for file in (*files, contract, client / "client.js", tmp_path / "demo" / "secret"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("served")
    config = settings()
    assert config.contract is not None
    routes = demo.routes(tmp_path / "demo", client, lambda user: f"a token for {user}")
    service = Service(config, load(config.contract), extra_routes=routes)
    async with running(service) as (port, _), aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        for path in (
            "/",
            "/demo/board/",
            "/demo/board",
            "/demo/board/parts/main.js",
            "/demo/contract.yaml",
            "/client/client.js",
        ):
            async with http.get(path) as response:
                assert (response.status, await response.text()) == (200, "served"), path
                assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"], path
                assert response.headers["X-Content-Type-Options"] == "nosniff", path
                assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin", path
                assert not any(name.startswith("Access-Control") for name in response.headers), path
        for path in (
            "/demo/../secret",
            "/demo/%2e%2e%2fsecret",
            "/demo//etc/passwd",
            "/demo/%00",
            f"/demo/{'a' * 3000}",
        ):
            async with http.get(URL(path, encoded=True)) as response:
                assert response.status == 404, path


async def test_fault_in_a_subscribe_that_does_not_wait_leaves_no_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the client was told of a fault, but could not subscribe again: the subscription stayed, without deliveries."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    async with serving() as server, server.client("ann") as ann, server.client("ben") as ben:
        await ann.subscribe("news:1")
        with monkeypatch.context() as patch:
            patch.setattr(Room, "make_live", broken)
            assert (await ben.ask("subscribe", channel="news:1"))["code"] == "internal"
        await ben.subscribe("news:1")
