"""A peer that does not read: what is dropped, when it is closed, and that others get everything."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from tests.support.harness import DEADLINE, Running, eventually, serving, token

BIG = "x" * 20_000


@asynccontextmanager
async def deaf(server: Running, user: str, channel: str) -> AsyncIterator[tuple[asyncio.StreamWriter, dict[str, str]]]:
    """A subscriber that stops reading after `subscribed`, with a receive buffer too small to hide that."""
    port = int(server.url.rpartition(":")[2])
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=raw, limit=4096)
    try:
        writer.write(
            (
                "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: tidewire.v1\r\n"
                f"Authorization: Bearer {token(user)}\r\n\r\n"
            ).encode()
        )
        await reader.readuntil(b"\r\n\r\n")
        await _read_message(reader)  # welcome
        for message in ({"type": "ready"}, {"type": "subscribe", "id": "s", "channel": channel}):
            writer.write(_masked(json.dumps(message).encode()))
        subscribed = json.loads(await _read_message(reader))
        yield writer, {"epoch": subscribed["epoch"], "offset": subscribed["offset"]}
    finally:
        writer.transport.abort()


def _masked(payload: bytes) -> bytes:
    assert len(payload) < 126
    return bytes([0x81, 0x80 | len(payload)]) + b"\0\0\0\0" + payload


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    size = head[1]
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    return await reader.readexactly(size)


async def shout(server: Running, count: int) -> None:
    for _ in range(count):
        await server.publish("room:1", {"type": "chat.message", "data": {"text": BIG}})


async def gone(server: Running, user: str) -> None:
    await eventually(lambda: not server.service.node.streams.registry.of_user("default", user), within=DEADLINE * 3)


async def test_slow_consumer_is_closed_and_resumes() -> None:
    async with serving(outbox={"bytes": 65_536}) as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        async with deaf(server, "ben", "room:1") as (_, position):
            for number in range(1, 41):
                await shout(server, 1)
                assert (await ann.until("chat.message"))["offset"] == number, "other members get everything"
                if not server.service.node.streams.registry.of_user("default", "ben"):
                    break
            await gone(server, "ben")
        metrics = await server.metrics()
        assert metrics["tidewire_slow_consumers_total"] == 1
        assert metrics['tidewire_limit_hits_total{limit="outbox"}'] == 1
        assert metrics['tidewire_closes_total{code="4450"}'] == 1
        assert metrics["tidewire_outbox_bytes"] == 0
        async with server.client("ben") as ben:
            reply = await ben.subscribe("room:1", since=position)
            assert reply["recovered"] is True
            assert [event["offset"] for event in reply["events"]] == list(range(1, reply["offset"] + 1))


async def test_ephemeral_events_for_a_slow_consumer_are_dropped_and_counted() -> None:
    async with serving(outbox={"messages": 5, "send_buffer": 4096}) as server, server.client("ann") as ann:
        await ann.subscribe("wall:1")
        async with deaf(server, "ben", "wall:1"):
            for number in range(60):
                await ann.send(type="wall.wave", channel="wall:1", data={"n": number, "pad": BIG})
                await ann.until("wall.wave")
                await asyncio.sleep(0)
                if (await server.metrics()).get('tidewire_outbox_dropped_total{delivery="ephemeral"}', 0) > 3:
                    break
            assert server.service.node.streams.registry.of_user("default", "ben"), "still connected"
        assert (await server.metrics())['tidewire_outbox_dropped_total{delivery="ephemeral"}'] > 3


async def test_stalled_write_closes_the_connection() -> None:
    async with serving(outbox={"stall": 1.0, "close_grace": 0.2}) as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        async with deaf(server, "ben", "room:1"):
            await shout(server, 12)
            await gone(server, "ben")
        assert (await server.metrics())['tidewire_limit_hits_total{limit="stall"}'] == 1
        assert [(await ann.until("chat.message"))["offset"] for _ in range(12)] == list(range(1, 13))


async def test_node_budget_bounds_all_outboxes() -> None:
    # The backend publishes all the while: it has its own account.
    async with serving(outbox={"node_bytes": 400_000, "stall": 60}) as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        async with deaf(server, "ben", "room:1"), deaf(server, "cat", "room:1"):
            for _ in range(40):
                await shout(server, 1)
                assert server.service.node.streams.budget.used <= 400_000
                await ann.until("chat.message")
                if len(server.service.node.streams.registry) == 1:
                    break
            await gone(server, "ben")
            await gone(server, "cat")
        assert server.service.node.streams.budget.used == 0
        assert await server.metric("limit_hits_total", limit="outbox_node") >= 1


async def test_node_with_a_full_budget_refuses_upgrades() -> None:
    async with serving() as server:
        budget = server.service.node.streams.budget
        budget.used = budget.limit
        async with server.http.get(f"{server.url}/ws") as response:
            assert response.status == 503
            assert (await response.json(content_type=None))["code"] == "overloaded"
            assert 5 <= int(response.headers["Retry-After"]) <= 10
        budget.used = 0


async def test_client_that_reads_no_replies_gets_no_more() -> None:
    async with serving(
        outbox={"stall": 1.0, "close_grace": 0.2}, limits={"connection_rate": {"per_second": 1e6, "burst": 10**6}}
    ) as server:
        await shout(server, 50)
        async with deaf(server, "ben", "room:1") as (writer, _):
            for number in range(200):
                request = json.dumps({"type": "history", "id": f"h{number}", "channel": "room:1", "limit": 50})
                writer.write(_masked(request.encode()))
            await gone(server, "ben")
        assert (await server.metrics())['tidewire_messages_in_total{type="history"}'] < 200


async def test_client_still_gets_the_close_reason() -> None:
    async with serving() as server:
        client = aiohttp.ClientSession()
        async with client, client.ws_connect(f"{server.url}/ws", protocols=("tidewire.v1",)) as ws:
            await ws.send_str('{"type":"ready"}')
            assert (await ws.receive_json())["code"] == "unauthenticated"
            assert (await ws.receive()).type is aiohttp.WSMsgType.CLOSE
            assert ws.close_code == 4400
