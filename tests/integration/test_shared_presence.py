"""Two nodes on one Redis: who is there, who may still come in, and a ticket's one use are the same on both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import pytest

from service.app import Service, running
from tests.contract.redis_stage import new_prefix
from tests.integration.test_emit import emit
from tests.integration.test_emit import refused as emit_refused
from tests.integration.test_presence import members
from tests.stores import FLAVOURS, RedisServer, shared_redis
from tests.support.harness import CONTRACT, DEADLINE, Client, Running, eventually, loaded, settings, token
from tests.support.streams import stream

pytestmark = pytest.mark.slow

TTL = 3.0
"""Seconds that presence lasts here, so that a test need not wait for half a minute."""


class Nodes(NamedTuple):
    """Two services."""

    one: Running
    two: Running


@asynccontextmanager
async def two_nodes(server: RedisServer, **groups: Any) -> AsyncIterator[Nodes]:
    shared: dict[str, Any] = {
        "broker": {"url": server.url, "prefix": new_prefix(), "timeout": 2.0},
        "presence": {"ttl": TTL},
    }
    async with AsyncExitStack() as stack:
        for name, group in groups.items():
            shared[name] = {**shared.get(name, {}), **group}
        one, two = [await stack.enter_async_context(node(**shared)) for _ in range(2)]
        yield Nodes(one, two)


@asynccontextmanager
async def node(**groups: Any) -> AsyncIterator[Running]:
    service = Service(settings(**groups), loaded(CONTRACT))
    async with running(service) as (port, ops_port), aiohttp.ClientSession() as http:
        yield Running(service, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops_port}", http)


@pytest.fixture(params=FLAVOURS)
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    async with two_nodes(await shared_redis(request.param), deadlines={"presence_leave": 0.05}) as nodes:
        yield nodes


async def die(node: Running) -> None:
    """What a SIGKILL leaves behind: sockets that are gone, and a store that has not been told."""
    presence, caps = node.service.node.streams.presence, node.service.node.admission.quota
    presence.drain()
    presence.close()
    caps.close()
    for connection in node.service.node.streams.registry:
        connection.transport.abort()
    await eventually(lambda: not len(node.service.node.streams.registry))


async def test_user_on_two_nodes_is_announced_once(nodes: Nodes) -> None:
    async with nodes.one.client("ann") as ann, nodes.two.client("eve") as eve:
        await ann.subscribe("room:1")
        await eve.subscribe("room:1")
        await ann.until("presence.joined", **{"from": "eve"})
        first, second = await Client.open(nodes.one, "ben", info={"name": "Ben"}), await Client.open(nodes.two, "ben")
        await first.subscribe("room:1")
        assert members(await second.subscribe("room:1")) == {"ann": 1, "ben": 2, "eve": 1}
        for client in (ann, eve):
            joined = await client.until("presence.joined", **{"from": "ben"})
            assert joined["data"] == {"user": "ben", "info": {"name": "Ben"}}
        await first.close()
        await second.close()
        for client in (ann, eve):
            assert (await client.receive())["type"] == "presence.left"
            await client.silence()
        assert members(await ann.ask("presence", channel="room:1")) == {"ann": 1, "eve": 1}


async def test_killed_node_users_leave_unless_they_reconnect_elsewhere(nodes: Nodes) -> None:
    async with nodes.two.client("ann") as ann:
        await ann.subscribe("room:1")
        theirs = [await Client.open(nodes.one, user) for user in ("ben", "eve")]
        for client, user in zip(theirs, ("ben", "eve"), strict=True):
            await client.subscribe("room:1")
            await ann.until("presence.joined", **{"from": user})
        died = asyncio.get_running_loop().time()
        await die(nodes.one)
        for client in theirs:
            await client.close()
        async with nodes.two.client("eve") as eve:
            await eve.subscribe("room:1")
            left = await ann.until("presence.left")
            assert left["from"] == "ben"
            assert asyncio.get_running_loop().time() - died < TTL * 7 / 6 + 5  # a busy machine adds seconds
            # Eve's connection to the dead node ends at a moment of its own, which nobody is told.
            while members(await ann.ask("presence", channel="room:1")) != {"ann": 1, "eve": 1}:
                assert asyncio.get_running_loop().time() - died < TTL * 7 / 6 + 10
                await asyncio.sleep(0.1)  # no event tells the end, and more questions would exceed the rate
            await ann.silence()


async def test_user_who_moves_in_a_drain_causes_no_presence_events() -> None:
    async with two_nodes(await shared_redis()) as nodes, nodes.two.client("ann") as ann:
        await ann.subscribe("room:1")
        ben = await Client.open(nodes.one, "ben")
        await ben.subscribe("room:1")
        await ann.until("presence.joined", **{"from": "ben"})
        await nodes.one.service.node.lifecycle.drain()
        await ben.close()
        async with nodes.two.client("ben") as ben:
            await ben.subscribe("room:1")
            done = asyncio.Event()
            nodes.two.service.clock.call_later(TTL * 7 / 6 + 0.5, done.set)
            await done.wait()  # what is awaited is that nothing happens
            await ann.silence()
            assert members(await ann.ask("presence", channel="room:1")) == {"ann": 1, "ben": 1}


async def test_presence_is_restored_after_redis_lost_its_data() -> None:
    async with (
        RedisServer() as server,
        two_nodes(server) as nodes,
        nodes.one.client("ann") as ann,
        nodes.two.client("ben") as ben,
    ):
        await ann.subscribe("room:1")
        await ben.subscribe("room:1")
        await ann.until("presence.joined", **{"from": "ben"})
        await server.restart()
        async with asyncio.timeout(30):
            while True:
                reply = await ann.ask("presence", channel="room:1")
                if reply["type"] == "presence" and members(reply) == {"ann": 1, "ben": 1}:
                    break
                await asyncio.sleep(0.1)  # no event tells when both nodes are through
        assert "presence.left" not in [message["type"] for message in (*ann.received, *ben.received)]


async def test_changes_during_an_interruption_reach_subscribers_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        RedisServer() as server,
        two_nodes(server, deadlines={"presence_leave": 0.05}) as nodes,
        nodes.one.client("ann") as ann,
        nodes.two.client("ben") as ben,
        nodes.two.client("eve") as eve,
    ):
        await ann.subscribe("room:1")
        await ben.subscribe("room:1")
        await ann.until("presence.joined", **{"from": "ben"})
        with monkeypatch.context() as deafened:
            deafened.setattr(nodes.one.service.node.streams.relay, "deliver", lambda event: None)
            await eve.subscribe("room:1")
            await ben.ask("unsubscribe", channel="room:1")
            await eve.until("presence.left", **{"from": "ben"})
            await ann.silence()
        await server.command("CLIENT", "KILL", "TYPE", "pubsub")
        story = sorted([(message["type"], message["from"]) for message in [await ann.receive(), await ann.receive()]])
        assert story == [("presence.joined", "eve"), ("presence.left", "ben")]


async def refused(node: Running, user: str) -> str:
    async with node.http.get(f"{node.url}/ws", headers={"Authorization": f"Bearer {token(user)}"}) as response:
        body = await response.json(content_type=None)
        return str(body["details"]["scope"]) if response.status == 429 else str(body["code"])


async def until_refused(node: Running, user: str, reason: str) -> None:
    async with asyncio.timeout(30):
        while await refused(node, user) != reason:  # noqa: ASYNC110  # no event tells what a node has told Redis
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("cap", ["connections_per_user", "connections_per_tenant"])
async def test_cap_holds_on_both_nodes_and_a_leave_frees_a_place(cap: str) -> None:
    async with two_nodes(await shared_redis(), limits={cap: 2}) as nodes:
        async with nodes.one.client("ann") as first, nodes.two.client("ann"):
            for node in nodes:
                assert await refused(node, "ann") == cap
            assert await refused(nodes.one, "ben") == ("upgrade_required" if cap == "connections_per_user" else cap)
            await first.close()
            await until_refused(nodes.two, "ann", "upgrade_required")
        for node in nodes:
            await node.at_rest()


async def test_stopped_node_frees_the_places_of_its_clients_at_once() -> None:
    """The last ones were counted until the claims of the node expired, for 30 s."""
    server = await shared_redis()
    shared: dict[str, Any] = {
        "broker": {"url": server.url, "prefix": new_prefix(), "timeout": 2.0},
        "limits": {"connections_per_user": 1},
    }
    async with node(**shared) as left:
        async with node(**shared) as stopping:
            ann = await Client.open(stopping, "ann")
            closed = asyncio.create_task(ann.closed())
            assert await refused(left, "ann") == "connections_per_user"
            await stopping.service.node.lifecycle.drain()
            assert await closed == 1012
        async with left.client("ann"):
            pass


async def until_ordered(server: RedisServer, node: Running, connection: str) -> None:
    """Waits until Redis knows the connection: it orders the connections of two nodes by the reports, which may overtake."""
    order = f"{node.service.settings.broker.prefix}:caps-line:{{default:ann}}"
    async with asyncio.timeout(DEADLINE):
        while await server.command("ZSCORE", order, connection) is None:  # noqa: ASYNC110  # Redis has no event for it
            await asyncio.sleep(0.01)


async def test_newer_session_on_one_node_closes_the_oldest_on_the_other() -> None:
    limits = {"connections_per_user": 2, "on_user_cap": "replace"}
    server = await shared_redis()
    async with two_nodes(server, limits=limits) as nodes:
        clients = []
        for node in (nodes.one, nodes.two, nodes.two, nodes.one):
            clients.append(await Client.open(node))
            await until_ordered(server, node, clients[-1].welcome["connection"])
            if len(clients) > 2:
                assert await clients.pop(0).closed() == 4409
        for client in clients:
            await client.silence()
            await client.close()
        for node in nodes:
            await node.at_rest()


async def test_caps_of_each_node_hold_while_redis_is_away() -> None:
    async with (
        RedisServer() as server,
        two_nodes(server, limits={"connections_per_user": 1}) as nodes,
        nodes.one.client("ann"),
    ):
        assert await refused(nodes.two, "ann") == "connections_per_user"
        server.kill()
        async with nodes.two.client("ann"):
            assert await nodes.two.metric("caps_unshared_total") >= 1
            assert await refused(nodes.two, "ann") == "connections_per_user"
        await server.restart()
        await until_refused(nodes.two, "ann", "connections_per_user")


async def test_ticket_of_one_node_is_valid_once_on_the_other(nodes: Nodes) -> None:
    headers = {"Authorization": f"Bearer {token('ann')}"}
    async with nodes.one.http.post(f"{nodes.one.url}/tickets", headers=headers) as response:
        ticket = (await response.json())["ticket"]
    client = await Client.open(nodes.two, hello=False, query=f"?ticket={ticket}")
    assert client.welcome["user"] == "ann"
    await client.close()
    for node in nodes:
        with pytest.raises(aiohttp.WSServerHandshakeError) as again:
            await Client.open(node, hello=False, query=f"?ticket={ticket}")
        assert again.value.status == 401


async def test_update_is_shown_on_both_nodes_and_outlives_the_one_that_took_it(nodes: Nodes) -> None:
    async with nodes.one.client("ann") as ann, nodes.two.client("eve") as eve:
        await ann.subscribe("desk:1")
        await eve.subscribe("desk:1")
        first = await Client.open(nodes.one, "ben", info={"name": "Ben"})
        await first.subscribe("desk:1")
        second = await Client.open(nodes.two, "ben", info={"name": "Benjamin"})
        await second.subscribe("desk:1")
        assert (await first.ask("presence.update", channel="desk:1", data={"status": "busy"}))["type"] == "ack"
        busy = {"user": "ben", "info": {"status": "busy"}, "updated": True}
        for client in (ann, eve):
            await client.until("presence.joined", data=busy)
        await die(nodes.one)
        left = await eve.until("presence.left")
        assert left["key"] == "ann"
        view = (await eve.ask("presence", channel="desk:1"))["presence"]
        [shown] = [member for member in view["members"] if member["user"] == "ben"]
        assert shown | busy == shown  # the entry of the dead node may still count as a connection
        await first.close()
        await second.close()


async def test_update_of_a_dead_node_is_restored_after_redis_lost_its_data() -> None:
    async with RedisServer() as server, two_nodes(server) as nodes, nodes.two.client("ben") as ben:
        await ben.subscribe("desk:1")
        tab = await Client.open(nodes.one, "ben", info={"name": "Ben"})
        await tab.subscribe("desk:1")
        assert (await tab.ask("presence.update", channel="desk:1", data={"status": "busy"}))["type"] == "ack"
        await ben.until("presence.joined", data={"user": "ben", "info": {"status": "busy"}, "updated": True})
        await die(nodes.one)
        await server.restart()
        async with asyncio.timeout(30):
            while True:
                reply = await ben.ask("presence", channel="desk:1")
                if reply["type"] == "presence" and reply["presence"]["count"]:
                    break
                await asyncio.sleep(0.1)  # no event tells when the node is through
        [member] = reply["presence"]["members"]
        assert (member["info"], member["updated"]) == ({"status": "busy"}, True)
        await tab.close()


async def test_emit_sets_the_info_of_the_user_at_any_node(nodes: Nodes) -> None:
    update: dict[str, Any] = {"type": "presence.update", "channel": "desk:1"}
    async with nodes.one.client("ben") as ben:
        await ben.subscribe("desk:1")
        async with stream(nodes.one, "desk:1") as opened:
            await opened.until("subscribed")
            await ben.until("presence.joined", key="ann")
            update["receipt"] = opened.receipt
            for server, data in ((nodes.two, {"status": "busy"}), (nodes.one, {"status": "free"})):
                assert await emit(server, **update, data=data) == {"type": "ack", "id": "m-1"}
                wanted = {"user": "ann", "info": data, "updated": True}
                assert (await ben.expect("presence.joined"))["data"] == wanted
                assert (await opened.until("presence.joined", data=wanted))["key"] == "ann"
            assert await emit_refused(nodes.two, **update, data={"status": 1}) == "invalid_data"
            assert await emit_refused(nodes.two, **update, data={}, key="k") == "invalid_message"
            assert await emit_refused(nodes.two, **{**update, "receipt": None}, data={}) == "not_subscribed"
        await ben.until("presence.left", key="ann")
        # The receipt lasts longer than the stream, but nobody is there whose info it could set.
        assert await emit_refused(nodes.two, **update, data={}) == "not_subscribed"
