"""Publishes that wait for Redis: they have no task, keep their order, and outlive neither their client nor the node."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from service.adapters.redis.broker import RedisBroker
from tests.stores import RedisServer
from tests.support.harness import Client, Running, eventually, serving

pytestmark = pytest.mark.slow

CHAT = {"type": "chat.message", "channel": "room:1"}


@asynccontextmanager
async def node_on(server: RedisServer) -> AsyncIterator[tuple[Running, Client]]:
    async with (
        serving(broker_settings={"url": server.url, "timeout": 30.0}, deadlines={"presence_leave": 0.01}) as node,
        node.client("ann") as ann,
    ):
        await ann.subscribe("room:1")
        yield node, ann


async def waits(node: Running) -> None:
    broker = node.service.broker
    assert isinstance(broker, RedisBroker)
    await eventually(lambda: broker.executor.pending == 1)


async def publish(client: Client, *ids: str, text: str = "x") -> None:
    for id in ids:
        await client.send(**CHAT, id=id, data={"text": text})


async def test_publish_that_waits_has_no_task_and_gets_its_ack() -> None:
    async with RedisServer() as server, node_on(server) as (node, ann):
        await publish(ann, "warm")  # lists the channel in its index
        await ann.until("ack", id="warm")
        tasks = node.service.node.runtime.tasks
        before = tasks.running
        await server.command("CLIENT", "PAUSE", "60000", "WRITE")
        await publish(ann, "m-1")
        await waits(node)
        assert tasks.running == before
        await server.command("CLIENT", "UNPAUSE")
        assert await ann.until("ack", id="m-1") == {"type": "ack", "id": "m-1", "offset": 2}


async def test_messages_behind_a_publish_that_waits_keep_their_order() -> None:
    async with RedisServer() as server, node_on(server) as (node, ann):
        await server.command("CLIENT", "PAUSE", "60000", "WRITE")
        await publish(ann, "m-1", text="x" * 2_000)  # large enough to be counted
        await ann.send(type="chat.unknown", channel="room:1", id="m-2", data={})
        await publish(ann, "m-3", "m-4")
        await waits(node)
        await server.command("CLIENT", "UNPAUSE")
        replies: list[tuple[str, int | None]] = []
        while len(replies) < 4:
            message = await ann.receive()
            if message["type"] in ("ack", "error"):
                replies.append((message["id"], message.get("offset")))
        assert replies == [("m-1", 1), ("m-2", None), ("m-3", 2), ("m-4", 3)]


async def test_publish_that_fails_is_refused_and_the_next_one_goes_on() -> None:
    async with RedisServer() as server, node_on(server) as (node, ann):
        await publish(ann, "warm")
        await ann.until("ack", id="warm")
        refused = await node.metric("publishes_total", delivery="durable", outcome="refused")
        await server.command("CONFIG", "SET", "maxmemory", "1")
        await publish(ann, "m-1")
        error = await ann.until("error", id="m-1")
        assert (error["code"], error["retryable"]) == ("broker_unavailable", True)
        assert await node.metric("publishes_total", delivery="durable", outcome="refused") == refused + 1
        await server.command("CONFIG", "SET", "maxmemory", "0")
        await publish(ann, "m-1")
        assert (await ann.until("ack", id="m-1"))["offset"] == 2


@pytest.mark.parametrize("frames", ["one", "more"])
async def test_client_that_leaves_while_its_publish_waits_is_removed(frames: str) -> None:
    async with RedisServer() as server, node_on(server) as (node, ann):
        await server.command("CLIENT", "PAUSE", "60000", "WRITE")
        await publish(ann, "m-1", *(("m-2",) if frames == "more" else ()))
        await waits(node)
        await ann.close()
        await server.command("CLIENT", "UNPAUSE")
        await node.at_rest()
