"""A node of either age reads what the other has written to their store, as docs/store-keys.md says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.compatibility.revisions import CHECKOUT
from tests.compatibility.test_clients_and_servers import CONTRACT
from tests.faults.node import Node
from tests.faults.tokens import token
from tests.stores.nats_server import NatsServer
from tests.stores.redis_server import RedisServer
from tests.support.harness import DEADLINE, Client

pytestmark = pytest.mark.slow

CHANNEL = "hall:1"
TENANT = "red"
TTL = 3_600_000
"""Milliseconds: the `ttl` of talk.mood in the contract of new nodes."""


STORES: dict[str, Callable[[], RedisServer | NatsServer]] = {
    "redis": lambda: RedisServer("redis"),
    "valkey": lambda: RedisServer("valkey"),
    "nats": NatsServer,
}


@asynccontextmanager
async def pair(old_checkout: Path, folder: Path, kind: str = "redis") -> AsyncIterator[dict[str, Node]]:
    """An old and a new node with one store. The contract of the new one has what old nodes cannot read."""
    contract = folder / "contract.yaml"
    plain = CONTRACT.read_text(encoding="utf-8")
    newer = plain.replace("key: /who}", "key: /who, ttl: 1h, removable: true}")
    newer = newer.replace("delivery: durable}", "delivery: durable, echo: false}")
    newer = newer.replace("presence: true", "presence: {update: {publish: subscriber, schema: true}}")
    contract.write_text(newer, encoding="utf-8")
    async with STORES[kind]() as store:
        old = Node("old", store.url, {"CONTRACT": str(CONTRACT)}, checkout=old_checkout)
        new = Node("new", store.url, {"CONTRACT": str(contract)}, checkout=CHECKOUT)
        try:
            await asyncio.gather(old.start(), new.start())
            yield {"old": old, "new": new}
        finally:
            await old.close()
            await new.close()


@asynccontextmanager
async def subscribed(
    node: Node, user: str, query: str = "", channel: str = CHANNEL, **since: Any
) -> AsyncIterator[tuple[Client, dict[str, Any]]]:
    """A client on the node in the channel, and the `subscribed` that it got."""
    async with (
        aiohttp.ClientSession() as http,
        http.ws_connect(f"http://127.0.0.1:{node.port}/ws{query}", protocols=("tidewire.v1",)) as socket,
    ):
        client = Client(socket)
        await client.send(type="hello", token=token(user, TENANT))
        client.welcome = await client.expect("welcome")
        await client.send(type="ready")
        yield client, await client.subscribe(channel, **since)


async def publish(node: Node, *events: dict[str, Any]) -> dict[str, Any]:
    """Publishes as the backend, and returns the result of the last event."""
    status, body = await node.api(TENANT, "POST", f"channels/{CHANNEL}/events", list(events))
    assert status == 200, body
    last: dict[str, Any] = body["results"][-1]
    return last


def line(number: int) -> dict[str, Any]:
    return {"type": "talk.line", "id": f"m-{number}", "data": {"line": number}}


def mood(who: str, text: str) -> dict[str, Any]:
    return {"type": "talk.mood", "data": {"who": who, "mood": text}, "key": who}


@pytest.mark.parametrize(
    ("kind", "writer", "reader"), [("redis", "old", "new"), ("redis", "new", "old"), ("nats", "new", "old")]
)
async def test_value_with_ttl_is_read_by_other_age(
    kind: str, writer: str, reader: str, old_checkout: Path, tmp_path: Path
) -> None:
    async with pair(old_checkout, tmp_path, kind) as nodes, subscribed(nodes[reader], "ann") as (ann, _):
        await publish(nodes[writer], mood("ben", "calm"))
        event = await ann.expect("talk.mood", key="ben", data={"who": "ben", "mood": "calm"})
        assert "ttl" not in event or event["ttl"] <= TTL
        for node in nodes.values():
            async with subscribed(node, "cat") as (_, found):
                assert [(value["key"], value["data"]) for value in found["state"]] == [("ben", event["data"])]
        # The other age replaces the value.
        await publish(nodes[reader], mood("ben", "angry"))
        for node in nodes.values():
            async with subscribed(node, "dan") as (_, found):
                assert [value["data"]["mood"] for value in found["state"]] == ["angry"]


@pytest.mark.parametrize("kind", STORES)
async def test_removed_value_is_gone_on_nodes_of_both_ages(kind: str, old_checkout: Path, tmp_path: Path) -> None:
    async with (
        pair(old_checkout, tmp_path, kind) as nodes,
        subscribed(nodes["old"], "ann") as (ann, _),
        subscribed(nodes["new"], "ben") as (ben, _),
        subscribed(nodes["new"], "eve", query="?features=removal") as (eve, _),
    ):
        await publish(nodes["old"], mood("cat", "calm"))
        await publish(nodes["old"], mood("dan", "calm"))
        await publish(nodes["new"], {"type": "talk.mood", "key": "cat", "removed": True})
        for node in nodes.values():
            async with subscribed(node, "fay") as (_, found):
                assert [value["key"] for value in found["state"]] == ["dan"]
        await publish(nodes["old"], mood("cat", "angry"))
        # To a client of an old node, a removal is an event of a type that no contract declares.
        for client, kinds in ((ann, ["value.removed"]), (ben, []), (eve, ["talk.mood"])):
            got = [await client.receive() for _ in range(3 + len(kinds))]
            assert [event["type"] for event in got] == ["talk.mood"] * 2 + kinds + ["talk.mood"]
            assert [event["rev"] for event in got] == ([1, 2, 3, 4] if kinds else [1, 2, 4])
            await client.silence()
        for node in nodes.values():
            async with subscribed(node, "gus") as (_, found):
                assert [value["data"]["mood"] for value in found["state"]] == ["calm", "angry"]


@pytest.mark.parametrize("kind", STORES)
async def test_removed_event_is_told_on_nodes_of_both_ages(kind: str, old_checkout: Path, tmp_path: Path) -> None:
    async with (
        pair(old_checkout, tmp_path, kind) as nodes,
        subscribed(nodes["old"], "ann") as (ann, start),
        subscribed(nodes["new"], "ben") as (ben, _),
    ):
        await publish(nodes["old"], line(1), line(2))
        await publish(nodes["new"], line(3))
        status, body = await nodes["new"].api(TENANT, "DELETE", f"channels/{CHANNEL}/events/m-2")
        assert status == 200, body
        last = await publish(nodes["old"], line(5))
        assert last["offset"] == 5
        for client in (ann, ben):
            got = [await client.receive() for _ in range(5)]
            assert [event["offset"] for event in got] == [1, 2, 3, 4, 5]
            assert [event["type"] for event in got] == ["talk.line"] * 3 + ["event.removed", "talk.line"]
            assert got[3]["data"]["id"] == "m-2"
        since = {"epoch": start["epoch"], "offset": 1, "id": "m-1"}
        async with subscribed(nodes["new"], "cat", since=since) as (_, found):
            assert found["recovered"] is True
            assert [event["offset"] for event in found["events"]] == [2, 3, 4, 5]
            assert found["events"][0]["type"] == "event.removed"
        async with subscribed(nodes["old"], "dan", since=since) as (_, found):
            assert found["offset"] == 5
            # An old node does not find the tombstone in Redis; in NATS it stands in the stream.
            assert found["recovered"] is (kind == "nats")
            assert all(event["type"] == "event.removed" for event in found["events"] if event["id"] == "m-2")


@pytest.mark.parametrize("kind", STORES)
async def test_info_of_a_client_is_shown_and_kept_by_nodes_of_both_ages(
    kind: str, old_checkout: Path, tmp_path: Path
) -> None:
    room = "room:1"
    async with (
        pair(old_checkout, tmp_path, kind) as nodes,
        subscribed(nodes["old"], "ann", channel=room) as (ann, _),
        subscribed(nodes["new"], "ben", channel=room) as (ben, _),
    ):
        await ann.until("presence.joined", key="ben")
        assert (await ben.ask("presence.update", channel=room, data={"status": "busy"}))["type"] == "ack"
        joined = await ann.expect("presence.joined", key="ben")
        assert joined["data"] == {"user": "ben", "info": {"status": "busy"}, "updated": True}
        # An old node knows no such message. Its clients ask only if `welcome` lists the feature.
        refused = await ann.ask("presence.update", channel=room, data={"status": "busy"})
        assert (refused["type"], refused["code"]) == ("error", "unknown_event")
        # A connection at an old node whose token has no info changes nothing, and both nodes show the info.
        async with subscribed(nodes["old"], "ben", channel=room) as (tab, found):
            for presence in (
                found["presence"],
                (await ben.ask("presence", channel=room))["presence"],
                (await ann.ask("presence", channel=room))["presence"],
            ):
                [member] = [one for one in presence["members"] if one["user"] == "ben"]
                assert (member["connections"], member["info"]) == (2, {"status": "busy"})
            await ben.ask("unsubscribe", channel=room)
            await tab.silence()
        left = await ann.until("presence.left")
        assert left["key"] == "ben"


async def say(client: Client, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Publishes over a WebSocket. Returns the event as its publisher gets it, and the ack; they come in any order."""
    await client.send(**line(number), channel=CHANNEL)
    event, ack = sorted([await client.receive() for _ in range(2)], key=lambda message: message["type"] == "ack")
    assert (event["type"], ack["type"]) == ("talk.line", "ack")
    return event, ack


async def test_event_without_echo_reaches_clients_of_both_ages(old_checkout: Path, tmp_path: Path) -> None:
    async with (
        pair(old_checkout, tmp_path) as nodes,
        subscribed(nodes["old"], "ann") as (ann, _),
        subscribed(nodes["new"], "ben", query="?features=echo") as (ben, _),
    ):
        mine = ben.welcome["connection"]
        event, ack = await say(ben, 1)
        assert (ack["offset"], event["exclude"]) == (1, mine)
        await publish(nodes["new"], {**line(2), "from": "ben", "exclude": mine})
        assert (await ben.expect("talk.line", offset=2))["exclude"] == mine
        # An old node leaves the field out, so its clients show the event.
        for offset in (1, 2):
            assert "exclude" not in await ann.expect("talk.line", offset=offset)
        # A client of an old node gets its own event back, and so does everybody else.
        event, ack = await say(ann, 3)
        assert (ack["offset"], "exclude" in event) == (3, False)
        assert "exclude" not in await ben.expect("talk.line", offset=3)


async def request(node: Node, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """A request of ann."""
    status, answer = await node.post(path, token("ann", TENANT), body)
    return status, answer


@pytest.mark.parametrize("kind", STORES)
async def test_poll_goes_on_at_a_new_node_after_an_old_one_refused_it(
    kind: str, old_checkout: Path, tmp_path: Path
) -> None:
    async with pair(old_checkout, tmp_path, kind) as nodes:
        status, first = await request(nodes["new"], "poll", {"subscriptions": [{"channel": CHANNEL}]})
        assert status == 200
        await publish(nodes["old"], line(1))
        await publish(nodes["new"], line(2))
        again = {"receipt": first["receipt"]}
        status, refused = await request(nodes["old"], "poll", again)
        assert (status, refused["code"]) == (404, "not_found")
        status, second = await request(nodes["new"], "poll", again)
        assert status == 200
        [found] = second["messages"]
        assert (found["type"], found["recovered"]) == ("subscribed", True)
        assert [event["id"] for event in found["events"]] == ["m-1", "m-2"]
        # Where only old nodes are left, a WebSocket goes on from the position of the poll.
        since = {"epoch": found["epoch"], "offset": 1, "id": "m-1"}
        async with subscribed(nodes["old"], "ann", since=since) as (_, resumed):
            assert (resumed["recovered"], [event["id"] for event in resumed["events"]]) == (True, ["m-2"])


@pytest.mark.parametrize("kind", STORES)
async def test_emit_is_published_once_in_a_cluster_of_both_ages(kind: str, old_checkout: Path, tmp_path: Path) -> None:
    async with pair(old_checkout, tmp_path, kind) as nodes, subscribed(nodes["old"], "ben") as (ben, _):
        event = {**line(1), "channel": CHANNEL}
        status, refused = await request(nodes["old"], "emit", event)
        assert (status, refused["code"]) == (404, "not_found")
        status, ack = await request(nodes["new"], "emit", event)
        assert (status, ack["offset"]) == (200, 1)
        await ben.expect("talk.line", id="m-1", offset=1, **{"from": "ann"})
        # The same id, by an old node: a retry over a WebSocket.
        async with subscribed(nodes["old"], "ann") as (ann, _):
            await ann.send(**event)
            await ann.expect("ack", id="m-1", offset=1, duplicate=True)
        await ben.silence()


async def test_stream_gets_events_of_an_old_node_and_is_unknown_there(old_checkout: Path, tmp_path: Path) -> None:
    credentials = {"Authorization": f"Bearer {token('ann', TENANT)}"}
    async with pair(old_checkout, tmp_path) as nodes, aiohttp.ClientSession(headers=credentials) as http:
        # As for every unknown path: the client tries another node, or a WebSocket.
        async with http.get(f"http://127.0.0.1:{nodes['old'].port}/sse?channels={CHANNEL}") as unknown:
            assert unknown.status == 404
        async with http.get(f"http://127.0.0.1:{nodes['new'].port}/sse?channels={CHANNEL}") as stream:
            assert stream.status == 200
            await read_until(stream, b'"subscribed"')
            await publish(nodes["old"], line(1))
            await read_until(stream, b'"m-1"')


async def read_until(stream: aiohttp.ClientResponse, text: bytes) -> None:
    async with asyncio.timeout(DEADLINE):
        async for found in stream.content:
            if text in found:
                return
    pytest.fail(f"the stream ended before {text!r}")
