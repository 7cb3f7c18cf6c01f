"""What webhooks tell of clients, channels and users: over every transport, at several nodes, and of nodes that end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from service.app import Service, running
from service.core.webhooks import Entry
from service.errors import ServiceError
from service.protocol.close import CloseCode
from tests.contract.redis_stage import new_prefix
from tests.integration.command import Command, command
from tests.stores import STORES, NatsServer, RedisServer, broker_of
from tests.support.harness import DEADLINE, SECRET, Client, Running, eventually, loaded, settings, token
from tests.support.streams import Poller, stream

pytestmark = pytest.mark.slow

CONTRACT = Path(__file__).parent / "webhook-sources.yaml"
TTL, DEBOUNCE = 5.0, 0.5
"""Seconds that the facts of a killed node last, and of the debounce; else a test would need half a minute."""
GRANTS = ["room:*", "hall:*"]
WEBHOOKS = {
    "endpoints": [{"name": "archive", "tenants": ["default"]}],  # without a url, so nothing is sent
    "clients": {"endpoint": "archive"},
    "queues": 1,
}
PLAIN_CONTRACT = Path(__file__).parents[1] / "support" / "contract.yaml"
"""A contract without webhooks."""
SHARED = [kind for kind in STORES if kind != "memory"]


@asynccontextmanager
async def node(broker: Mapping[str, Any], **groups: Any) -> AsyncIterator[Running]:
    config = settings(
        **{
            "contract": CONTRACT,
            "broker": broker,
            "presence": {"ttl": TTL},
            "deadlines": {"presence_leave": DEBOUNCE},
            "webhooks": WEBHOOKS,
            **groups,
        }
    )
    assert config.contract is not None
    service = Service(config, loaded(config.contract))
    async with running(service) as (port, ops_port), aiohttp.ClientSession() as http:
        yield Running(service, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{ops_port}", http)


@asynccontextmanager
async def nodes(broker: Mapping[str, Any], count: int = 2) -> AsyncIterator[list[Running]]:
    shared = {**broker, "prefix": new_prefix()}
    async with AsyncExitStack() as stack:
        started = [await stack.enter_async_context(node(shared)) for _ in range(count)]
        for one in started:
            membership = one.service.node.cluster.membership
            while membership.node_count < count:  # noqa: ASYNC110  # reports of other nodes have no event
                await asyncio.sleep(0.02)
        yield started


@pytest.fixture(params=STORES)
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Mapping[str, Any]]:
    async with broker_of(request.param) as settings:
        yield settings


@pytest.fixture(params=SHARED)
async def shared(request: pytest.FixtureRequest) -> AsyncIterator[Mapping[str, Any]]:
    async with broker_of(request.param) as settings:
        yield settings


def client(server: Running, user: str = "ann", **options: Any) -> Any:
    return server.client(user, grants=GRANTS, **options)


class Told:
    """Reads what an endpoint would be told."""

    def __init__(self, server: Running) -> None:
        assert server.service.node.webhooks is not None
        self._webhooks = server.service.node.webhooks

    async def entries(self) -> list[Entry]:
        """All entries, in order. None comes twice."""
        entries = list((await self._webhooks.read("archive", "default", 0, None, 1_000)).entries)
        assert len({one.id for one in entries}) == len(entries)
        return entries

    async def until(self, **wanted: str) -> list[Entry]:
        """Waits until exactly this was told of connections, channels (room:1 as `room_1`) and users, in these orders."""
        found: dict[str, str] = {}
        entries: list[Entry] = []
        try:
            async with asyncio.timeout(DEADLINE):
                while found != wanted:
                    await asyncio.sleep(0.02)  # a queue has no event for its readers
                    with suppress(ServiceError):  # the store may be away
                        entries = await self.entries()
                    found = _histories(entries)
        except TimeoutError:
            assert found == wanted
        return entries


def _histories(entries: list[Entry]) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    for one in entries:
        subject = one.connection or one.user or one.channel or ""
        found.setdefault(subject.replace(":", "_"), []).append(one.type.partition(".")[2])
    return {subject: " ".join(types) for subject, types in found.items()}


def code_of(entries: list[Entry], connection: str) -> int | None:
    """The code of the end of a connection."""
    [code] = [one.code for one in entries if one.type == "client.disconnected" and one.connection == connection]
    return code


async def test_client_channel_and_user_are_told_of(broker: Mapping[str, Any]) -> None:
    async with nodes(broker, 1) as [server]:
        told = Told(server)
        async with client(server, query="?client=tidewire-js/1.2.0", info={"name": "Ann"}) as ann:
            id = ann.welcome["connection"]
            await told.until(**{id: "connected"})
            await ann.subscribe("room:1")
            await ann.subscribe("hall:1")
            entries = await told.until(**{id: "connected"}, room_1="occupied", ann="joined")
            connected, *others = entries
            occupied, joined = sorted(others, key=lambda one: one.type)
            assert (connected.type, connected.user, connected.client) == (
                "client.connected",
                "ann",
                "tidewire-js/1.2.0",
            )
            assert (occupied.type, occupied.channel, occupied.user) == ("channel.occupied", "room:1", None)
            assert (joined.channel, json.loads(bytes(joined.info))) == ("room:1", {"name": "Ann"})
            await ann.ask("unsubscribe", channel="room:1")
            await told.until(**{id: "connected"}, room_1="occupied vacated", ann="joined left")
        entries = await told.until(**{id: "connected disconnected"}, room_1="occupied vacated", ann="joined left")
        assert code_of(entries, id) == 1000
        assert await server.metric("webhook_facts") == 0


async def test_reload_of_a_page_tells_of_its_connections_alone(broker: Mapping[str, Any]) -> None:
    async with nodes(broker, 1) as [server]:
        told = Told(server)
        ended: dict[str, str] = {}
        for _ in range(3):
            async with client(server) as ann:
                await ann.subscribe("room:1")
                id = ann.welcome["connection"]
                # One that ends before the store has it is told of neither.
                await told.until(**ended, **{id: "connected"}, room_1="occupied", ann="joined")
            ended[id] = "connected disconnected"
        await told.until(**ended, room_1="occupied vacated", ann="joined left")


async def test_close_code_is_that_of_the_close(broker: Mapping[str, Any]) -> None:
    async with nodes(broker, 1) as [server], client(server, "ann") as ann, client(server, "ben") as ben:
        ids = ann.welcome["connection"], ben.welcome["connection"]
        await Told(server).until(**dict.fromkeys(ids, "connected"))
        kicked, cut = (server.service.node.streams.registry.get(id) for id in ids)
        assert kicked is not None
        assert cut is not None
        kicked.close(CloseCode.FORBIDDEN, "test")
        assert await ann.closed() == 4403
        cut.transport.abort()
        await ben.closed()
        entries = await Told(server).until(**dict.fromkeys(ids, "connected disconnected"))
        assert [code_of(entries, id) for id in ids] == [4403, 1006]


async def test_anonymous_client_is_told_of_without_user_and_occupies_no_presence(broker: Mapping[str, Any]) -> None:
    async with node(
        {**broker, "prefix": new_prefix()}, auth={"anonymous": True, "anonymous_tenant": "default"}
    ) as server:
        ws = await Client.open(server, hello=False)
        await ws.send(type="hello")
        id = (await ws.expect("welcome"))["connection"]
        [entry] = await Told(server).until(**{id: "connected"})
        assert entry.user is None
        await ws.close()


async def test_probe_is_told_of_never(broker: Mapping[str, Any]) -> None:
    async with node({**broker, "prefix": new_prefix()}, probe={"interval": 0.05}) as server:
        probes = "probe_seconds_count"
        while await server.metric(probes) < 3:  # noqa: ASYNC110  # the probe has no event
            await asyncio.sleep(0.05)
        assert await Told(server).entries() == []


async def test_stream_is_told_of_as_a_client(broker: Mapping[str, Any]) -> None:
    async with nodes(broker, 1) as [server]:
        headers = {"Authorization": f"Bearer {token('ann', grants=GRANTS)}"}
        async with stream(server, "room:1", headers=headers) as ann:
            id = ann.welcome["connection"]
            await Told(server).until(**{id: "connected"}, room_1="occupied", ann="joined")
        await Told(server).until(**{id: "connected disconnected"}, room_1="occupied vacated", ann="joined left")


async def test_poll_session_is_one_client_at_all_nodes(shared: Mapping[str, Any]) -> None:
    async with nodes(shared) as [one, two]:
        told = Told(one)
        poller = Poller(headers={"Authorization": f"Bearer {token('ann', grants=GRANTS)}"})
        id = (await poller.poll(one, "room:1"))[0]["connection"]
        await told.until(**{id: "connected"}, room_1="occupied", ann="joined")
        for server in (two, one, two):
            await poller.poll(server, wait=0)
        registries = [server.service.node.streams.registry for server in (one, two)]
        await eventually(lambda: [len(registry) for registry in registries] == [0, 1])
        assert _histories(await told.entries()) == {id: "connected", "room_1": "occupied", "ann": "joined"}
        # Nobody polls any more.
        entries = await told.until(**{id: "connected disconnected"}, room_1="occupied vacated", ann="joined left")
        assert code_of(entries, id) == 1006


async def test_channel_and_user_are_counted_over_nodes(shared: Mapping[str, Any]) -> None:
    async with nodes(shared) as [one, two]:
        told = Told(two)
        async with client(one) as first, client(two) as second:
            ids = first.welcome["connection"], second.welcome["connection"]
            for each in (first, second):
                await each.subscribe("room:1")
            await told.until(**dict.fromkeys(ids, "connected"), room_1="occupied", ann="joined")
            await first.close()
            away = {ids[0]: "connected disconnected", ids[1]: "connected"}
            await told.until(**away, room_1="occupied", ann="joined")
            over = asyncio.Event()
            two.service.clock.call_later(2 * DEBOUNCE, over.set)
            await over.wait()  # what is awaited is that nothing happens
            assert _histories(await told.entries()) == {**away, "room_1": "occupied", "ann": "joined"}
        both = dict.fromkeys(ids, "connected disconnected")
        await told.until(**both, room_1="occupied vacated", ann="joined left")


async def test_drain_moves_clients_and_nothing_else(shared: Mapping[str, Any]) -> None:
    async with nodes(shared) as [one, two]:
        told = Told(two)
        async with client(two, "ben") as ben:
            ann = await Client.open(one, "ann", grants=GRANTS)
            ids = ann.welcome["connection"], ben.welcome["connection"]
            await ann.subscribe("room:1")
            await ann.subscribe("room:2")
            await ben.subscribe("room:2")
            still = {"room_1": "occupied", "room_2": "occupied", "ann": "joined joined", "ben": "joined"}
            await told.until(**dict.fromkeys(ids, "connected"), **still)
            one.service.node.lifecycle.skip_drain_delays()
            draining = asyncio.ensure_future(one.service.node.lifecycle.drain())
            assert await ann.closed() == 1012
            await draining
            async with client(two, "ann") as again:
                await again.subscribe("room:1")
                await again.subscribe("room:2")
                id = again.welcome["connection"]
                moved = {ids[0]: "connected disconnected", ids[1]: "connected", id: "connected"}
                entries = await told.until(**moved, **still)
                assert code_of(entries, ids[0]) == 1012
                over = asyncio.Event()
                two.service.clock.call_later(TTL * 7 / 6 + 1, over.set)
                await over.wait()  # what is awaited is that nothing happens
                assert _histories(await told.entries()) == {**moved, **still}


@asynccontextmanager
async def process(broker: Mapping[str, Any]) -> AsyncIterator[tuple[Command, str]]:
    """A node in a process of its own, and its address."""
    values = {
        "PORT": "0",
        "OPS_PORT": "0",
        "CONTRACT": str(CONTRACT),
        "AUTH__SECRET": SECRET,
        "BROKER__URL": broker["url"],
        "BROKER__PREFIX": broker["prefix"],
        "PRESENCE__TTL": str(TTL),
        "DEADLINES__PRESENCE_LEAVE": str(DEBOUNCE),
        "WEBHOOKS__ENDPOINTS": json.dumps(WEBHOOKS["endpoints"]),
        "WEBHOOKS__CLIENTS__ENDPOINT": "archive",
        "WEBHOOKS__QUEUES": "1",
        "LOG__FORMAT": "json",
    }
    async with command("service", "serve", **values) as run:
        await run.until(lambda: bool(run.told("serving")))
        yield run, f"http://127.0.0.1:{run.told('serving')[0]['port']}"


async def test_everything_of_a_killed_node_ends(shared: Mapping[str, Any]) -> None:
    mine = {**shared, "prefix": new_prefix()}
    async with node(mine) as server, process(mine) as (run, url), client(server, "ben") as ben:
        told = Told(server)
        doomed = Running(server.service, url, "", server.http)
        users = ["u-1", "u-2", "u-3"]
        clients = [await Client.open(doomed, user, grants=GRANTS) for user in users]
        for each in clients:
            await each.subscribe("room:1")
        await clients[0].subscribe("room:2")
        await ben.subscribe("room:2")
        ids = [each.welcome["connection"] for each in clients]
        before = {
            **dict.fromkeys([*ids, ben.welcome["connection"]], "connected"),
            **{"u-1": "joined joined", "u-2": "joined", "u-3": "joined", "ben": "joined"},
        }
        await told.until(**before, room_1="occupied", room_2="occupied")
        run.process.kill()
        await run.process.wait()
        after = {
            **dict.fromkeys(ids, "connected disconnected"),
            **{ben.welcome["connection"]: "connected", "ben": "joined"},
            **{"u-1": "joined joined left left", "u-2": "joined left", "u-3": "joined left"},
        }
        entries = await told.until(**after, room_1="occupied vacated", room_2="occupied")
        assert [code_of(entries, id) for id in ids] == [1006] * 3
        for each in clients:
            await each.close()


@pytest.mark.parametrize("kind", [RedisServer, NatsServer])
async def test_outage_of_the_store_tells_of_what_has_changed_alone(kind: type[RedisServer] | type[NatsServer]) -> None:
    async with kind() as store, nodes({"url": store.url, "timeout": 1.0}) as [one, two]:
        told = Told(two)
        async with client(two, "ben") as ben:
            ann = await Client.open(one, "ann", grants=GRANTS)
            ids = ann.welcome["connection"], ben.welcome["connection"]
            await ann.subscribe("room:1")
            await ben.subscribe("room:1")
            await told.until(**dict.fromkeys(ids, "connected"), room_1="occupied", ann="joined", ben="joined")
            store.stop_()
            await ann.close()
            over = asyncio.Event()
            two.service.clock.call_later(2 * TTL, over.set)
            await over.wait()  # longer than entries last
            store.cont()
            left = {ids[0]: "connected disconnected", ids[1]: "connected", "ann": "joined left"}
            entries = await told.until(**left, room_1="occupied", ben="joined")
            assert code_of(entries, ids[0]) == 1000
            over.clear()
            two.service.clock.call_later(2 * TTL, over.set)
            await over.wait()  # what is awaited is that nothing happens
            assert _histories(await told.entries()) == {**left, "room_1": "occupied", "ben": "joined"}


@pytest.mark.parametrize("tells", [False, True])
async def test_store_is_asked_for_facts_only_where_somebody_is_told(*, tells: bool) -> None:
    async with RedisServer() as redis, Redis(host=redis.address[0], port=redis.address[1]) as witness:
        groups: dict[str, Any] = {} if tells else {"contract": PLAIN_CONTRACT, "webhooks": {}}
        seen: list[str] = []

        async def watch() -> None:
            async with witness.monitor() as monitor:
                watching.set()
                async for each in monitor.listen():
                    seen.append(each["command"])  # noqa: PERF401  # the list is read meanwhile

        watching = asyncio.Event()
        task = asyncio.create_task(watch())
        await watching.wait()
        try:
            async with node({"url": redis.url}, **groups) as server:
                async with client(server) as ann:
                    await ann.subscribe("room:1")
                await server.at_rest()
                done = asyncio.Event()
                server.service.clock.call_later(TTL, done.set)
                await done.wait()  # of renewals and sweeps, if there are any
            await witness.echo("end")
            await eventually(lambda: any("end" in one for one in seen))
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert any("webhook-facts" in one for one in seen) is tells
        assert any("room:1" in one for one in seen)
