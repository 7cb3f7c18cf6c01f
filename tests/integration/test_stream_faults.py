"""Faults under streams and polls, beside WebSockets: no durable event is lost, repeated to the application, or out of order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from itertools import cycle
from typing import Any

import aiohttp
import pytest

from tests.integration.cluster import Cluster, Member, cluster
from tests.support.harness import Client, Running, eventually
from tests.support.shared_broker import Bus
from tests.support.streams import Poller, authorization, sse, stream

CHANNEL = "room:1"
EVENTS = 60
LOST = (aiohttp.ClientError, ConnectionError, EOFError, AssertionError, RuntimeError)
"""What a connection that breaks, or is refused, looks like here."""


class Follower:
    """A client that follows docs/protocol.md: it resumes from its position, drops what it has, and comes back after a gap."""

    def __init__(self) -> None:
        self.position: dict[str, Any] | None = None
        self.applied: list[str] = []
        self.connects = 0
        self.poller = Poller()
        self.last_id = ""

    def apply(self, message: dict[str, Any]) -> None:
        """Applies a message. Raises EOFError at a gap or an end, to come back."""
        if message["type"] == "subscribed":
            assert message.get("recovered") is not False, "nothing in these faults loses the stream"
            for event in message["events"]:
                self.apply(event)
            self._move(message["epoch"], message["offset"], message.get("last"))
        elif message["type"] == "chat.message" and self.position is not None:
            offset, last = message["offset"], self.position["offset"]
            if offset > last + 1:
                raise EOFError
            if offset == last + 1:
                self.applied.append(message["data"]["text"])
                self._move(self.position["epoch"], offset, message["id"])
        elif message["type"] == "closed":
            raise EOFError

    def _move(self, epoch: str, offset: int, id: str | None) -> None:
        self.position = {"epoch": epoch, "offset": offset} | ({"id": id} if id is not None else {})

    async def follow(self, kind: str, servers: list[Running]) -> None:
        """Connects again and again, to one server after the other, until it has every event."""
        for server in cycle(servers):
            self.connects += 1
            with suppress(*LOST):
                async with aclosing(MESSAGES[kind](self, server)) as messages:
                    async for message in messages:
                        self.apply(message)
                        if len(self.applied) >= EVENTS:
                            return
            await asyncio.sleep(0.02)  # a client's backoff


async def websocket(follower: Follower, server: Running) -> AsyncGenerator[dict[str, Any], None]:
    client = await Client.open(server)
    try:
        since = {} if follower.position is None else {"since": follower.position}
        await client.send(type="subscribe", id="s", channel=CHANNEL, **since)
        while True:
            yield await client.receive()
    finally:
        await client.close()


async def post_stream(follower: Follower, server: Running) -> AsyncGenerator[dict[str, Any], None]:
    since = {} if follower.position is None else {"since": follower.position}
    async with stream(server, {"channel": CHANNEL, **since}) as opened:
        while True:
            yield await opened.receive()


async def event_source(follower: Follower, server: Running) -> AsyncGenerator[dict[str, Any], None]:
    headers = authorization() | ({"Last-Event-ID": follower.last_id} if follower.last_id else {})
    async with sse(server, [CHANNEL], headers=headers) as opened:
        while True:
            message = await opened.receive()
            follower.last_id = opened.last_id or follower.last_id
            yield message


async def polls(follower: Follower, server: Running) -> AsyncGenerator[dict[str, Any], None]:
    """Every fifth response is lost on its way, so the client asks again with the receipt before it."""
    poller, count = follower.poller, 0
    while True:
        receipt, count = poller.receipt, count + 1
        messages = await poller.poll(server, *([] if receipt else [CHANNEL]), wait=1)
        if receipt is not None and count % 5 == 0:
            poller.receipt = receipt
            continue
        for message in messages:
            yield message


MESSAGES: dict[str, Callable[[Follower, Running], AsyncGenerator[dict[str, Any], None]]] = {
    "websocket": websocket,
    "stream": post_stream,
    "event source": event_source,
    "poll": polls,
}


async def cut_connections(member: Member) -> None:
    for connection in member.server.service.node.streams.registry:
        connection.transport.abort()


async def drain(member: Member) -> None:
    await member.server.service.node.lifecycle.drain()


async def deafen(member: Member) -> None:
    """The node gets no events for a while, and then learns of it."""
    member.line.cut()
    await asyncio.sleep(0.3)  # the length of the fault
    member.line.mend()


FAULTS: dict[str, Callable[[Member], Awaitable[None]]] = {
    "none": lambda member: asyncio.sleep(0),
    "connections cut": cut_connections,
    "drained": drain,
    "broker gone": deafen,
}


async def publish_all(nodes: Cluster, faulty: Member, fault: Callable[[Member], Awaitable[None]]) -> None:
    """Publishes through the other node; the fault comes in the middle."""
    other = nodes.members[1].server
    pending: asyncio.Future[None] | None = None
    for number in range(EVENTS):
        if number == EVENTS // 3:
            pending = asyncio.ensure_future(fault(faulty))
        await other.publish(CHANNEL, {"type": "chat.message", "id": f"m-{number}", "data": {"text": str(number)}})
        await asyncio.sleep(0.01)  # the rate of the publisher
    if pending is not None:
        await pending


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", MESSAGES)
async def test_durable_events_come_once_and_in_order(make_bus: Callable[[], Bus], kind: str, fault: str) -> None:
    limits = {"user_rate": {"per_second": 10_000, "burst": 10_000}}
    async with cluster(make_bus, limits=limits) as nodes, asyncio.timeout(60):
        faulty, other = nodes.members
        follower = Follower()
        following = asyncio.ensure_future(follower.follow(kind, [faulty.server, other.server]))
        await eventually(lambda: follower.position is not None)
        await publish_all(nodes, faulty, FAULTS[fault])
        await following
        assert follower.applied == [str(number) for number in range(EVENTS)]
        if fault in ("connections cut", "drained") and kind != "poll":  # a poll that is cut has an empty response
            assert follower.connects > 1
