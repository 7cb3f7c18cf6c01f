"""The native sender in the whole service, over TCP, on both event loops.

No byte is lost or sent twice, frames keep their order, and no file descriptor is used after its connection has ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from service.core.channel import ChannelKey
from service.realtime.connections.connection import Connection
from service.realtime.delivery.broadcast import MAX_SINGLE_WRITES
from service.web.ws import native
from service.web.ws.native import NativeSender
from service.web.ws.websocket import WebSocket
from tests.autobahn.cases import LOOPS
from tests.support.harness import API_KEY, OTHER_API_KEY, Client, Running, eventually, serving, token
from tests.support.raw import CLOSE, HANDSHAKE, Raw, connected, frame, text, upgraded

MANY = MAX_SINGLE_WRITES + 4
ROOM = "room:1"
TENANTS = {"default": API_KEY, "other": OTHER_API_KEY}
Play = Callable[[], Coroutine[Any, Any, None]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("loop", list(LOOPS)),
    pytest.mark.skipif(native.load() is None and not native.LIBRARY.exists(), reason="the native sender is not built"),
]


def play(loop: str, script: Play) -> None:
    with asyncio.Runner(loop_factory=LOOPS[loop], debug=loop == "asyncio") as runner:
        runner.run(script())


async def sent(server: Running) -> tuple[float, float]:
    return (
        await server.metric("native_sends_total", outcome="whole"),
        await server.metric("native_sends_total", outcome="short"),
    )


async def join(raw: Raw) -> None:
    """Subscribes to ROOM, and reads until `subscribed`."""
    raw.write(text(type="ready") + text(type="subscribe", id="s", channel=ROOM))
    while not any(part["type"] == "subscribed" for part in await parts(raw)):
        pass


async def parts(raw: Raw) -> list[dict[str, Any]]:
    message: Any = await raw.message()
    return message if isinstance(message, list) else [message]


async def numbers(raw: Raw, last: int) -> list[int]:
    """The numbers in the messages, up to this one."""
    got: list[int] = []
    while not got or got[-1] != last:
        got += [int(part["data"]["text"].split()[0]) for part in await parts(raw) if part["type"] == "chat.message"]
    return got


def message(number: int, size: int = 0) -> dict[str, Any]:
    return {"type": "chat.message", "data": {"text": f"{number} {'x' * size}"}}


def test_members_get_each_event_once_and_in_order(loop: str) -> None:
    async def script() -> None:
        async with AsyncExitStack() as stack, serving() as server:
            clients = [await stack.enter_async_context(server.client(f"u{number}")) for number in range(MANY)]
            for client in clients:
                await client.subscribe(ROOM)
            for number in range(30):
                await server.publish(ROOM, message(number))
            for client in clients:
                for number in range(30):
                    assert (await client.until("chat.message"))["data"]["text"] == f"{number} "
            whole, _ = await sent(server)
            assert whole >= 30 * MANY, "the native sender wrote them"

    play(loop, script)


@pytest.mark.parametrize("why", ["off", "not built"])
def test_members_get_events_without_the_native_sender(loop: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "not built":
        monkeypatch.setattr("service.app.native.load", lambda: None)

    async def script() -> None:
        async with (
            AsyncExitStack() as stack,
            serving(native_send="off" if why == "off" else "auto") as server,
        ):
            assert server.service.native_send == why
            clients = [await stack.enter_async_context(server.client(f"u{number}")) for number in range(MANY)]
            for client in clients:
                await client.subscribe(ROOM)
            await server.publish(ROOM, message(1))
            for client in clients:
                await client.until("chat.message")
            assert await sent(server) == (0, 0)

    play(loop, script)


def test_replies_and_events_of_one_loop_iteration_keep_their_order(loop: str) -> None:
    """A reply waits for the end of the iteration; an event of the same iteration is written after it."""

    async def script() -> None:
        async with AsyncExitStack() as stack, serving() as server:
            raws = [await stack.enter_async_context(upgraded(server, f"u{number}")) for number in range(MANY)]
            for raw in raws:
                await join(raw)
            writer = raws[0]
            for number in range(20):
                writer.write(
                    text(type="ping", id=f"before-{number}")
                    + text(id=f"p{number}", channel=ROOM, **message(number))
                    + text(type="ping", id=f"after-{number}")
                )
            got: list[str] = []
            while not got or got[-1] != "after-19":
                got += [part["id"] for part in await parts(writer) if part["type"] == "pong"]
            assert got == [f"{when}-{number}" for number in range(20) for when in ("before", "after")]
            for raw in raws[1:]:
                assert await numbers(raw, 19) == list(range(20))

    play(loop, script)


def test_slow_reader_gets_the_rest_of_each_partly_written_frame(loop: str) -> None:
    """Frames are larger than the socket buffer: the sender writes a part of each, and the transport the rest."""

    async def script() -> None:
        async with (
            AsyncExitStack() as stack,
            serving(outbox={"send_buffer": 4096, "bytes": 16 << 20}, limits={"message_bytes": 131_072}) as server,
        ):
            raws = [
                await stack.enter_async_context(connected(server, receive_buffer=2048 if number % 2 else None))
                for number in range(MANY)
            ]
            for number, raw in enumerate(raws):
                await raw.request(headers=HANDSHAKE | {"Authorization": f"Bearer {token(f'u{number}')}"})
                await join(raw)
            for number in range(12):
                await server.publish(ROOM, message(number, 50_000))
            for got in await asyncio.gather(*(numbers(raw, 11) for raw in raws)):
                assert got == list(range(12))
            _, short = await sent(server)
            assert short > 0, "no frame was written in part: the test proves nothing"
            await server.publish(ROOM, message(12))  # members that have read everything are clear again
            for raw in raws:
                assert await numbers(raw, 12) == [12]

    play(loop, script)


def test_reset_peer_does_not_affect_other_members(loop: str) -> None:
    async def script() -> None:
        async with AsyncExitStack() as stack, serving() as server:
            raws = [await stack.enter_async_context(upgraded(server, f"u{number}")) for number in range(MANY + 2)]
            for raw in raws:
                await join(raw)
            for raw in (raws.pop(3), raws.pop(0)):
                await raw.reset()
                for number in range(5):
                    await server.publish(ROOM, message(number))
            for raw in raws:
                assert await numbers(raw, 4) == list(range(5))
                assert await numbers(raw, 4) == list(range(5))
            await eventually(
                lambda: server.service.node.cluster.actions.count_subscribers(ChannelKey("default", ROOM)) == MANY
            )

    play(loop, script)


# --- descriptors ----------------------------------------------------------------------------------------------------------


class DescriptorMonitor:
    """Checks descriptors at each call of the sender, and at the end of each connection.

    It records the inode of each connection's socket, which is unique while the socket exists.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inodes: dict[WebSocket, int] = {}
        self.used: set[int] = set()
        self.reused = 0
        self.calls = 0
        self.ends = 0
        self.faults: list[str] = []
        self.server: Running | None = None
        monitor = self
        library = native.load()
        assert library is not None
        self.sender: NativeSender = library.send
        made, lost = WebSocket.connection_made, WebSocket.connection_lost

        def connection_made(end: WebSocket, transport: asyncio.BaseTransport) -> None:
            made(end, transport)
            monitor.inodes[end] = os.fstat(end.fd).st_ino
            monitor.reused += end.fd in monitor.used
            monitor.used.add(end.fd)

        def connection_lost(end: WebSocket, exc: Exception | None) -> None:
            owner = monitor.owner(end)
            if owner is not None and owner.fd >= 0 and monitor.inode(owner.fd) != monitor.inodes[end]:
                monitor.faults.append("the descriptor was closed before connection_lost")
            lost(end, exc)
            monitor.ends += 1
            del monitor.inodes[end]
            if end.fd != -1 or (owner is not None and (owner.fd != -1 or owner.is_clear)):
                monitor.faults.append("a lost connection has a descriptor")

        monkeypatch.setattr(WebSocket, "connection_made", connection_made)
        monkeypatch.setattr(WebSocket, "connection_lost", connection_lost)
        monkeypatch.setattr("service.app.native.load", lambda: SimpleNamespace(send=self, parse=library.parse))

    def __call__(self, fds: list[int], frame: bytes) -> Sequence[tuple[int, int]]:
        self.calls += 1
        assert self.server is not None
        for fd in fds:
            owners = [connection for connection in self.server.service.node.streams.registry if connection.fd == fd]
            if len(owners) != 1 or self.inodes.get(owners[0].transport) != self.inode(fd):  # type: ignore[call-overload]  # all are
                self.faults.append(f"{fd} is claimed by {len(owners)} connections, or is another's")
        return self.sender(fds, frame)

    def owner(self, end: WebSocket) -> Connection | None:
        assert self.server is not None
        return next((one for one in self.server.service.node.streams.registry if one.transport is end), None)

    @staticmethod
    def inode(fd: int) -> int | None:
        try:
            return os.fstat(fd).st_ino
        except OSError:
            return None


def _transport(client: Client) -> asyncio.Transport:
    connection = client.ws._response.connection
    assert connection is not None
    assert connection.transport is not None
    return connection.transport


async def _reset(client: Client, connection: Connection) -> None:
    transport = _transport(client)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _eof(client: Client, connection: Connection) -> None:
    _transport(client).write_eof()


async def _abort(client: Client, connection: Connection) -> None:
    connection.transport.abort()


async def _fail(client: Client, connection: Connection) -> None:
    connection.fail()


async def _close(client: Client, connection: Connection) -> None:
    await client.close()


async def _fault(client: Client, connection: Connection) -> None:
    """Sends a frame that RFC 6455 forbids."""
    _transport(client).write(frame(CLOSE, b"x"))


ENDS = (_reset, _eof, _abort, _fail, _close, _fault)


def test_reused_descriptor_never_gets_bytes_of_another_connection(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients of two tenants, in rooms of the same name, connect and disconnect in every way while both rooms are written to.

    The kernel gives the descriptors of closed connections to new ones.
    """
    monitor = DescriptorMonitor(monkeypatch)

    async def script() -> None:
        rng, serial = random.Random(5), count()
        async with serving() as server:
            monitor.server = server
            clients: dict[str, list[Client]] = {tenant: [] for tenant in TENANTS}

            async def connect(tenant: str) -> None:
                client = await Client.open(server, f"u{next(serial)}", tenant=tenant)
                await client.subscribe(ROOM)
                clients[tenant].append(client)

            for tenant in TENANTS:
                for _ in range(MANY + 2):
                    await connect(tenant)
            stop = False
            published = dict.fromkeys(TENANTS, 0)

            async def publish(tenant: str) -> None:
                while not stop:
                    event = {"type": "chat.message", "data": {"text": f"canary of {tenant}"}}
                    await server.publish(ROOM, event, TENANTS[tenant])
                    published[tenant] += 1

            async with asyncio.TaskGroup() as group:
                for tenant in TENANTS:
                    group.create_task(publish(tenant))
                for number in range(36):
                    tenant, other = rng.sample(list(TENANTS), 2)
                    client = clients[tenant].pop(rng.randrange(len(clients[tenant])))
                    connection = server.service.node.streams.registry.get(client.welcome["connection"])
                    assert connection is not None
                    connecting = group.create_task(connect(other))
                    await ENDS[number % len(ENDS)](client, connection)
                    await connecting
                    if len(clients[tenant]) < MANY:
                        await connect(tenant)
                    assert all("canary of " + tenant in json.dumps(got) for got in client.received if _is_event(got))
                    await client.close()
                stop = True
            for tenant, members in clients.items():
                for client in members:
                    await client.ask("ping")
                    events = [got for got in client.received if _is_event(got)]
                    assert all(got["data"]["text"] == f"canary of {tenant}" for got in events)
                    await client.close()
            assert min(published.values()) > 10
        assert monitor.faults == []
        assert monitor.calls > 20, "the sender was hardly called: the test proves nothing"
        assert monitor.ends >= 36
        assert monitor.reused >= 10, "no descriptor was reused: the test proves nothing"

    play(loop, script)


def _is_event(message: dict[str, Any]) -> bool:
    return str(message["type"]) == "chat.message"
