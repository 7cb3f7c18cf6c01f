"""Two nodes on a Redis that comes back as somebody else, or older: clients are told, those who were away included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.core.channel import ChannelKey
from tests.contract.redis_stage import new_prefix
from tests.contract.test_redis_epochs import Copy, an_address
from tests.integration.test_shared_presence import Nodes, node, two_nodes
from tests.stores import RedisServer
from tests.support.harness import Client, Running

pytestmark = pytest.mark.slow

ROOM = ChannelKey("default", "room:1")


async def publish(node: Running, id: str, channel: str = "room:1") -> dict[str, Any]:
    return await node.publish(channel, {"type": "chat.message", "id": id, "data": {"text": id}})


def position(receipt: dict[str, Any]) -> dict[str, Any]:
    return {name: receipt[name] for name in ("epoch", "offset", "id")}


async def told_anew(client: Client, *epochs: str) -> dict[str, Any]:
    """The announcement of an epoch that is none of those."""
    told = await client.until("subscribed", id=None, recovered=False)
    assert told["epoch"] not in epochs
    return told


async def follows(client: Client, told: dict[str, Any], last: str) -> list[str]:
    """The ids of what comes after an announcement, up to an event, without a hole."""
    ids: list[str] = []
    offset = told["offset"]
    while last not in ids:
        event = await client.until("chat.message")
        assert event["offset"] == offset + 1
        offset = event["offset"]
        ids.append(event["id"])
    return ids


@pytest.mark.parametrize("publisher", ["the same node", "another node", "a new node"])
async def test_channel_that_was_set_back_resyncs_and_continues(publisher: str) -> None:
    """DUMP, 30 events more, RESTORE, and as many events again: no offset means two things in one epoch to anybody."""
    async with RedisServer() as server, two_nodes(server) as (one, two), one.client("ann") as ann:
        await ann.subscribe("room:1")
        first = [await publish(two, f"m-{n}") for n in range(3)]
        copy = await Copy(server, one.service.broker, ROOM).take()  # type: ignore[arg-type]  # it is the one on Redis
        lost = [await publish(two, f"lost-{n}") for n in range(30)]
        await ann.until("chat.message", id="lost-29")
        await copy.put_back()
        by = {"the same node": two, "another node": one, "a new node": None}[publisher]
        if by is None:
            broker = {"url": server.url, "prefix": two.service.settings.broker.prefix}
            async with node(broker=broker) as new:
                await publish_and_check(new, ann, first, lost)
        else:
            await publish_and_check(by, ann, first, lost)


async def publish_and_check(
    node: Running, ann: Client, first: list[dict[str, Any]], lost: list[dict[str, Any]]
) -> None:
    old = first[0]["epoch"]
    receipts = [await publish(node, f"n-{n}") for n in range(30)]
    told = await told_anew(ann, old)
    last = await publish(node, "last")
    assert last["epoch"] == told["epoch"]
    published = [receipt["id"] for receipt in receipts] + ["last"]
    got = await follows(ann, told, "last")
    assert got == published[-len(got) :], "without a hole, and nothing that was lost"
    assert len(got) > sum(receipt["epoch"] == told["epoch"] for receipt in receipts)
    for since in (first[1], first[2], lost[0], lost[29]):
        async with node.client("ben") as ben:
            reply = await ben.subscribe("room:1", since=position(since))
            assert (reply["recovered"], reply["epoch"]) == (False, told["epoch"])


async def test_quiet_channel_that_was_set_back_resyncs_by_the_check() -> None:
    async with RedisServer() as server, two_nodes(server, repair={"check": 0.2}) as nodes:
        one, two = nodes
        async with one.client("ann") as ann, two.client("ben") as ben:
            for client in (ann, ben):
                await client.subscribe("room:1")
            await publish(two, "m-1")
            copy = await Copy(server, one.service.broker, ROOM).take()  # type: ignore[arg-type]  # as above
            top = await publish(two, "m-2")
            for client in (ann, ben):
                await client.until("chat.message", id="m-2")
            await copy.put_back()
            told = [await told_anew(client, top["epoch"]) for client in (ann, ben)]
            assert told[0]["epoch"] == told[1]["epoch"], "both nodes begin one"
            assert [one["offset"] for one in told] == [1, 1]


async def test_state_that_was_set_back_replaces_the_newer_state() -> None:
    async with RedisServer() as server, two_nodes(server, repair={"check": 0.2}) as nodes:
        one, two = nodes
        async with one.client("ann", grants=["board:*"]) as ann:
            await ann.subscribe("board:1")
            await two.publish("board:1", {"type": "ticker.price", "data": {"symbol": "A", "price": 1}})
            board = ChannelKey("default", "board:1")
            copy = await Copy(server, one.service.broker, board).take()  # type: ignore[arg-type]  # as above
            await two.publish("board:1", {"type": "ticker.price", "data": {"symbol": "A", "price": 2}})
            await ann.until("ticker.price", rev=2)
            await copy.put_back()
            told = await ann.until("subscribed", id=None)
            assert "recovered" not in told
            assert [value["data"]["price"] for value in told["state"]] == [1]


async def test_store_replaced_for_a_while_resyncs_everybody() -> None:
    """M, its promoted replica R, M again, which never stopped: rows of clients that stayed and that were away."""
    async with an_address() as address:
        broker = {"url": address.url, "prefix": new_prefix(), "timeout": 2.0, "ping": 0.2, "silence": 0.6}
        async with node(broker=broker) as one, node(broker=broker) as two:
            nodes = Nodes(one, two)
            brokers: Callable[[], list[Any]] = lambda: [each.service.broker for each in nodes]  # noqa: E731  # short
            async with one.client("ann") as ann:
                await ann.subscribe("room:1")
                first = await publish(two, "m-1")
                away = await publish(two, "m-1", "room:2")
                await ann.until("chat.message", id="m-1")
                await address.promote()
                await address.lead_to(address.replica, *brokers())
                lost = [await publish(two, "lost", channel) for channel in ("room:1", "room:2")]
                assert lost[0]["epoch"] != first["epoch"]
                await ann.until("subscribed", id=None, epoch=lost[0]["epoch"], recovered=False)
                await address.lead_to(address.master, *brokers())
                told = await told_anew(ann, first["epoch"], lost[0]["epoch"])
                last = await publish(two, "last")
                assert last["epoch"] == told["epoch"]
                assert await follows(ann, told, "last") == ["last"]
            for since in (away, lost[1]):
                async with one.client("ben") as ben:
                    reply = await ben.subscribe("room:2", since=position(since))
                    assert reply["recovered"] is False
                    assert reply["epoch"] not in (away["epoch"], lost[1]["epoch"])
