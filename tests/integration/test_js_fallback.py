"""The JavaScript client where WebSockets are blocked: streams, polls, and the way back (docs/streams.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.integration.cluster import cluster
from tests.support.harness import Running, serving, token
from tests.support.http_proxy import HttpProxy, Upgrades
from tests.support.js_client import CallFailedError, JsClient, js_client
from tests.support.shared_broker import SharedBroker

ROOM = "room:1"
SOON = 5.0
"""Seconds from `connect()` to events, also where WebSockets are blocked."""


@asynccontextmanager
async def blocked(
    server: Running, upgrades: Upgrades = "strip", **more: Any
) -> AsyncIterator[tuple[HttpProxy, JsClient]]:
    """A client behind a proxy that does not pass WebSockets."""
    proxy = HttpProxy(int(server.url.rpartition(":")[2]))
    proxy.upgrades = upgrades
    try:
        async with js_client(f"ws://127.0.0.1:{await proxy.start()}/ws", backoffBase=50, **more) as client:
            yield proxy, client
    finally:
        await proxy.close()


def texts(client: JsClient) -> list[str]:
    return [line["data"]["text"] for line in client.all("event", type="chat.message")]


async def say(server: Running, *numbers: int) -> None:
    for number in numbers:
        await server.publish(ROOM, {"type": "chat.message", "id": f"b-{number}", "data": {"text": str(number)}})


@pytest.mark.alone
@pytest.mark.parametrize("upgrades", ["strip", "refuse", "hang", "mute", "cut"])
async def test_events_arrive_within_five_seconds_over_a_stream(upgrades: Upgrades) -> None:
    async with serving() as server, blocked(server, upgrades) as (proxy, client):
        client.start("connect")
        await client.call("channel", channel=ROOM)
        await say(server, 1)
        await client.until(lambda: texts(client) == ["1"])
        assert client.all("event")[0]["after"] < SOON
        assert client.states[-1] == ("ready", "stream")
        ack = await client.call("publish", channel=ROOM, type="chat.message", data={"text": "2"})
        assert ack["offset"] == 2
        await client.until(lambda: texts(client) == ["1", "2"])
        assert proxy.paths.count("/stream") == 1, "one stream serves the channels that were wanted before it"
        assert "WebSockets are blocked" in await client.call("explain")


@pytest.mark.alone
@pytest.mark.parametrize("upgrades", ["strip", "hang"])
async def test_events_arrive_within_five_seconds_over_polls(upgrades: Upgrades) -> None:
    async with serving() as server, blocked(server, upgrades) as (proxy, client):
        proxy.holds_streams = True
        client.start("connect")
        await client.call("channel", channel=ROOM)
        await say(server, 1)
        await client.until(lambda: texts(client) == ["1"])
        assert client.all("event")[0]["after"] < SOON
        assert client.states[-1] == ("ready", "poll")
        await client.call("publish", channel=ROOM, type="chat.message", data={"text": "2"})
        await client.until(lambda: texts(client) == ["1", "2"])
        await client.call("channel", channel="desk:1")
        await client.call("presence", channel="desk:1", data={"status": "busy"})
        await say(server, *range(3, 10))
        await client.until(lambda: len(texts(client)) == 9)
        assert texts(client) == [str(number) for number in range(1, 10)]


both_transports = pytest.mark.parametrize("transport", ["stream", "poll"])


class Traffic:
    """Events in a room, from the backend and from the client, while something else happens."""

    def __init__(self, client: JsClient) -> None:
        self.client = client
        self.said: list[str] = []
        self._acks: list[asyncio.Future[Any]] = []

    async def exchange(self, server: Running, count: int = 5) -> None:
        """Some events of each, one after the other."""
        for _ in range(count):
            number = len(self.said)
            self.said += [f"b{number}", f"c{number}"]
            await server.publish(ROOM, {"type": "chat.message", "id": f"b-{number}", "data": {"text": f"b{number}"}})
            self.publish(f"c{number}")

    def publish(self, text: str) -> None:
        """The client publishes, and nobody waits for the ack yet."""
        self._acks.append(self.client.start("publish", channel=ROOM, type="chat.message", data={"text": text}))

    async def check(self) -> None:
        """All events have come once and in the order of their offsets; each of the client's is stored once."""
        await asyncio.wait_for(asyncio.gather(*self._acks), 20)
        await self.client.until(lambda: len(texts(self.client)) >= len(self.said))
        events = self.client.all("event", type="chat.message")
        assert sorted(texts(self.client)) == sorted(self.said)
        assert [event["offset"] for event in events] == list(range(1, len(self.said) + 1))
        for sender in "bc":
            assert [text for text in texts(self.client) if text[0] == sender] == [
                text for text in self.said if text[0] == sender
            ]
        assert all(
            report["recovered"] is not False for report in self.client.all("subscribed") if "recovered" in report
        )


@asynccontextmanager
async def connected(server: Running, transport: str, **more: Any) -> AsyncIterator[tuple[HttpProxy, JsClient, Traffic]]:
    """A client in the room, over streams or polls."""
    async with blocked(server, "refuse", **more) as (proxy, client):
        proxy.holds_streams = transport == "poll"
        client.start("connect")
        await client.call("channel", channel=ROOM)
        assert client.states[-1] == ("ready", transport)
        yield proxy, client, Traffic(client)


@both_transports
async def test_other_channels_lose_and_repeat_nothing(transport: str) -> None:
    async with serving() as server, connected(server, transport) as (proxy, client, traffic):
        await traffic.exchange(server)
        before = proxy.paths.count("/stream")
        await asyncio.gather(
            *(client.call("channel", channel=f"board:{n}") for n in range(20)), traffic.exchange(server)
        )
        assert proxy.paths.count("/stream") - before <= 1, "one new stream for all of them"
        await client.call("leave", channel="board:3")
        await traffic.exchange(server)
        await server.publish("board:4", {"type": "ticker.price", "data": {"symbol": "A", "price": 1}})
        await client.until(lambda: [{"symbol": "A", "price": 1}] in [line["values"] for line in client.all("values")])
        await traffic.check()
        with pytest.raises(CallFailedError, match="unknown_channel: nowhere:1"):
            await client.call("channel", channel="nowhere:1")
        with pytest.raises(CallFailedError, match="forbidden: inbox:ben"):
            await client.call("channel", channel="inbox:ben")
        await traffic.exchange(server)
        await traffic.check()


@both_transports
async def test_cut_network_loses_and_repeats_nothing(transport: str) -> None:
    async with serving() as server, connected(server, transport) as (proxy, client, traffic):
        for _ in range(3):
            await traffic.exchange(server)
            proxy.reset()
            await traffic.exchange(server)
        proxy.cut()
        await client.until(lambda: client.states[-1][0] == "reconnecting")
        await traffic.exchange(server)
        proxy.heal()
        await client.ready(transport)
        await traffic.exchange(server)
        await traffic.check()


@both_transports
async def test_drained_and_restarted_nodes_lose_and_repeat_nothing(transport: str) -> None:
    async with cluster(SharedBroker, nodes=2) as nodes:
        one, two = (member.server for member in nodes.members)
        async with connected(one, transport) as (proxy, client, traffic):
            await traffic.exchange(one)
            proxy.target = int(two.url.rpartition(":")[2])
            await asyncio.gather(one.service.node.lifecycle.drain(), traffic.exchange(two))
            await traffic.check()
            assert {state for state, _ in client.states[2:]} <= {"ready", "reconnecting", "connecting"}
            # The other node is gone without a word.
            proxy.target = 1
            proxy.reset()
            await traffic.exchange(two)
            proxy.target = int(two.url.rpartition(":")[2])
            await traffic.exchange(two)
            await traffic.check()


@both_transports
async def test_client_returns_to_websockets_at_its_position(transport: str) -> None:
    async with serving() as server, connected(server, transport) as (proxy, client, traffic):
        await traffic.exchange(server)
        tries = proxy.paths.count("/ws")
        await client.call("online")
        await client.until(lambda: proxy.paths.count("/ws") > tries)  # it is still blocked
        await traffic.exchange(server)
        assert client.states[-1] == ("ready", transport)
        proxy.upgrades = "pass"
        await client.call("online")
        await traffic.exchange(server)
        await client.ready("websocket")
        await traffic.exchange(server)
        await traffic.check()
        assert await server.metric("connections") == 1 or transport == "poll"
        # Blocked again, one failure is enough.
        proxy.upgrades = "refuse"
        proxy.reset()
        await client.ready(transport)
        await traffic.exchange(server)
        await traffic.check()


@both_transports
async def test_new_token_replaces_the_old_one(transport: str) -> None:
    # The service asks for another token at once. A client that is still loading takes a failed try for a refused token.
    tokens = [*(token("ann", ttl=59 - n, grants=[ROOM]) for n in range(4)), token("ann")]
    async with serving() as server, connected(server, transport, tokens=tokens) as (_, client, traffic):
        await traffic.exchange(server)
        await client.until(lambda: client.all("token", token=1) != [])
        await client.call("channel", channel="room:2")
        await traffic.check()
        assert client.states.count(("ready", transport)) == 1, "the connection has not ended"


@both_transports
async def test_reads_signals_values_and_presence_work_without_websockets(transport: str) -> None:
    async with serving() as server, connected(server, transport) as (_, client, traffic):
        await traffic.exchange(server)
        await traffic.check()
        page = await client.call("history", channel=ROOM, limit=3)
        assert ([event["offset"] for event in page["events"]], page["more"]) == ([8, 9, 10], True)
        assert (await client.call("members", channel=ROOM))["count"] == 1
        await client.call("channel", channel="board:1")
        with pytest.raises(CallFailedError, match="needs_websocket"):
            await client.call("members", channel="board:1")
        with pytest.raises(CallFailedError, match="no_history"):
            await client.call("history", channel="board:1")
        async with server.client("ben") as ben:
            await ben.subscribe(ROOM)
            await client.until(lambda: client.all("presence", count=2) != [])
            assert await client.call("signal", channel=ROOM, type="chat.typing", data={}) is True
            await ben.until("chat.typing")
        await client.call("channel", channel="doc:1")
        await client.call("publish", channel="doc:1", type="doc.cursor", data={"user": "ann"}, key="ann")
        await client.until(lambda: client.all("event", type="doc.cursor") != [])
        await client.call("remove", channel="doc:1", type="doc.cursor", key="ann")
        await client.until(lambda: client.all("removed") != [])


async def test_fallback_can_be_turned_off() -> None:
    async with serving() as server, blocked(server, fallback=False) as (proxy, client):
        client.start("connect")
        await client.until(lambda: client.states.count(("reconnecting", "websocket")) >= 6)
        assert set(proxy.paths) == {"/ws"}
