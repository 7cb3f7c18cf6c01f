"""Real processes with a low hard limit of open files."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import cast

import aiohttp
import pytest

from service.app import Service
from tests.contract.redis_stage import new_prefix
from tests.integration.command import Command, command, limited_command
from tests.integration.request_flood import KINDS
from tests.stores import shared_redis
from tests.stores.redis_server import RedisServer
from tests.support.files import as_many_as_may_be
from tests.support.harness import CONTRACT, DEADLINE, SECRET, Client, Running, token
from tests.support.raw import HANDSHAKE, Answer, Raw, connected

pytestmark = pytest.mark.slow

SETTINGS = {
    "PORT": "0",
    "OPS_PORT": "0",
    "CONTRACT": str(CONTRACT),
    "AUTH__SECRET": SECRET,
    "LOG__FORMAT": "json",
    "LIMITS__CONNECTIONS_PER_USER": "5000",
    "LIMITS__CONNECT_RATE_PER_IP__BURST": "5000",
}


@pytest.fixture(autouse=True)
def _many_clients() -> Iterator[None]:
    with as_many_as_may_be():
        yield


@asynccontextmanager
async def limited(max_files: int, **settings: str) -> AsyncIterator[tuple[Command, Running]]:
    """A service that may open this many files."""
    async with (
        limited_command(max_files, "service", "serve", **(SETTINGS | settings)) as run,
        aiohttp.ClientSession() as http,
    ):
        await run.until(lambda: bool(run.told("serving") or run.process.returncode))
        [told] = run.told("serving")
        url, ops_url = (f"http://127.0.0.1:{told[name]}" for name in ("port", "ops_port"))
        yield run, Running(cast(Service, None), url, ops_url, http)


async def healthy(server: Running, *paths: str) -> float:
    """Polls the ops listener on new connections; returns the slowest response time."""
    slowest = 0.0
    for path in paths or ("/healthz", "/metrics", "/readyz"):
        started = time.monotonic()
        async with aiohttp.ClientSession() as http, http.get(f"{server.ops_url}{path}") as response:
            assert response.status == 200
            await response.read()
        slowest = max(slowest, time.monotonic() - started)
    return slowest


async def crowd(server: Running, stack: AsyncExitStack, count: int) -> list[Raw]:
    return [await stack.enter_async_context(connected(server)) for _ in range(count)]


async def upgrade(raw: Raw, user: str) -> Answer | None:
    """The response to an upgrade; None if the connection was closed instead."""
    try:
        return await raw.request(headers=HANDSHAKE | {"Authorization": f"Bearer {token(user)}"})
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def test_idle_connections_leave_descriptors_for_health_and_clients() -> None:
    async with limited(400) as (run, server), AsyncExitStack() as stack:
        async with asyncio.timeout(DEADLINE):
            await crowd(server, stack, 900)
        assert await healthy(server) < 1
        async with server.client("ann") as ann:
            await ann.subscribe("room:1")
            await ann.silence()
        metrics = await server.metrics()
        assert metrics["tidewire_http_connections"] <= metrics["tidewire_max_http_connections"] < 400 - 64
        assert metrics["tidewire_open_fds"] < 400 - 64
        assert metrics['tidewire_limit_hits_total{limit="http_connections_per_ip"}'] > 0
        await run.until(lambda: bool(run.told("descriptors_exhausted")))
        [told] = run.told("descriptors_exhausted")
        assert told["limit"] == 400
        assert told["open"] >= told["http_connections"] > 0


@asynccontextmanager
async def always_healthy(server: Running) -> AsyncIterator[None]:
    """Fails the test if health or metrics stopped answering meanwhile."""

    async def watch() -> None:
        while True:
            assert await healthy(server, "/healthz", "/metrics") < 2
            await asyncio.sleep(0.02)

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        yield
        watching.cancel()


async def test_more_clients_than_descriptors_leave_health_and_broker_working() -> None:
    """A hard limit of 88, 200 clients, and a broker whose connections are cut once all slots are taken."""
    async with (
        RedisServer() as redis,
        limited(88, BROKER__URL=redis.url) as (run, server),
        AsyncExitStack() as stack,
        always_healthy(server),
    ):
        [lowered] = run.told("connections_lowered")
        cap = lowered["connections"]
        assert lowered["limit"] == 88
        assert str(cap) in lowered["reason"]
        turns = asyncio.Semaphore(4)  # at once: more from one address are closed

        async def come(number: int) -> tuple[str, Raw]:
            async with turns:
                raw = await stack.enter_async_context(connected(server))
                answer = await upgrade(raw, f"u{number}")
                return answer.code if answer else "closed", raw

        came = await asyncio.gather(*(come(number) for number in range(200)))
        assert [code for code, _ in came].count("switched") == cap
        assert {code for code, _ in came} == {"switched", "too_many_connections"}
        metrics = await server.metrics()
        assert metrics["tidewire_max_connections"] == cap == metrics["tidewire_connections"]
        assert metrics["tidewire_max_fds"] == 88 > metrics["tidewire_open_fds"]
        await run.until(lambda: bool(run.told("descriptors_exhausted")))
        [told] = run.told("descriptors_exhausted")
        assert (told["limit"], told["connections"]) == (88, cap)

        await redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await redis.command("CLIENT", "KILL", "TYPE", "pubsub")
        await metric_reaches(server, 'tidewire_broker_reconnects_total{line="messages"}', 1)
        await metric_reaches(server, "tidewire_broker_up", 1)
        assert await server.metric("connections") == cap

        await asyncio.gather(*(raw.close() for code, raw in came if code == "switched"))
        await metric_reaches(server, "tidewire_connections", 0)
        codes = [code for code, _ in await asyncio.gather(*(come(1_000 + number) for number in range(cap + 5)))]
        assert codes.count("switched") == cap


async def metric_reaches(server: Running, name: str, value: float) -> None:
    async with asyncio.timeout(DEADLINE):
        while (await server.metrics()).get(name) != value:  # noqa: ASYNC110  # only the metric tells
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("max_files", [40])
async def test_start_with_a_limit_that_leaves_nothing_for_clients_fails(max_files: int) -> None:
    async with limited_command(max_files, "service", "serve", **SETTINGS) as run:
        assert await run.ended() == 1
        assert [(entry["event"], entry["level"]) for entry in run.log] == [("start_failed", "error")]
        assert f"may open {max_files} files, but it needs" in run.log[0]["reason"]


@pytest.mark.parametrize("max_files", [64, 256])
async def test_health_with_all_descriptors_taken_is_answered(max_files: int) -> None:
    """WebSockets up to the cap, idle connections above it, and idle ones at the ops listener."""
    async with limited(max_files) as (run, server), AsyncExitStack() as stack:
        clients = 0
        while await upgraded_as(server, stack, f"u{clients}"):
            clients += 1
        await crowd(server, stack, max_files)
        port = int(server.ops_url.rpartition(":")[2])
        for _ in range(max_files):
            raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
            stack.push_async_callback(raw.close)
        for _ in range(3):
            assert await healthy(server) < 1
        metrics = await server.metrics()
        assert metrics["tidewire_connections"] == clients == metrics["tidewire_max_connections"]
        assert metrics["tidewire_open_fds"] < max_files
        await run.until(lambda: bool(run.told("descriptors_exhausted")))


async def upgraded_as(server: Running, stack: AsyncExitStack, user: str) -> bool:
    answer = await upgrade(await stack.enter_async_context(connected(server)), user)
    return answer is not None and answer.status == 101


@pytest.mark.alone
@pytest.mark.parametrize("kind", KINDS)
async def test_health_during_a_flood_of_requests_is_answered(kind: str) -> None:
    """Requests from hundreds of connections, in a process that does nothing else."""
    async with (
        limited(2_000, LIMITS__CONNECTIONS="1000") as (_, server),
        command("tests.integration.request_flood", server.url.rpartition(":")[2], "300", kind) as flood,
    ):
        await flood.until(lambda: bool(flood.told("flooding")))
        times = [await healthy(server) for _ in range(10)]
        assert flood.process.returncode is None, flood.text()
        assert max(times) < 1


async def test_soft_limit_is_raised_to_the_hard_one_and_lowers_no_cap() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 18_000:
        pytest.skip("the hard limit of this machine is too low")
    async with limited(hard) as (run, server):
        assert run.told("connections_lowered") == []
        assert (await server.metrics())["tidewire_max_connections"] == 15_000


async def test_limit_lowered_below_the_open_files_frees_the_reserve() -> None:
    """Otherwise health checks would be reset, and the pod killed with all its clients. At most the reserve is closed."""
    async with limited(2_000, LIMITS__CONNECTIONS="500") as (run, server), AsyncExitStack() as stack:
        assert run.told("connections_lowered") == []
        assert all([await upgraded_as(server, stack, f"u{n}") for n in range(150)])
        resource.prlimit(run.pid, resource.RLIMIT_NOFILE, (120, 120))
        await run.until(lambda: bool(run.told("descriptors_freed")))
        [lowered], [freed] = run.told("connections_lowered"), run.told("descriptors_freed")
        assert lowered["limit"] == freed["limit"] == 120
        assert 0 < freed["closed"] <= freed["reserve"]
        assert await upgraded_as(server, stack, "late") is False
        await crowd(server, stack, 300)
        assert await healthy(server) < 2
        metrics = await server.metrics()
        assert metrics["tidewire_connections"] >= 150 - freed["reserve"]
        assert metrics["tidewire_max_connections"] == lowered["connections"]


async def test_descriptors_opened_by_others_are_not_taken_from_the_reserve() -> None:
    """The limit falls below the plan between two checks: new connections are closed at once."""
    async with limited(400) as (run, server), AsyncExitStack() as stack:
        clients = [await Client.open(server, f"u{n}") for n in range(100)]
        for client in clients:
            stack.push_async_callback(client.close)
        resource.prlimit(run.pid, resource.RLIMIT_NOFILE, (150, 150))
        await run.until(lambda: len(run.told("connections_lowered")) == 2)
        late = await crowd(server, stack, 60)
        await asyncio.gather(*(raw.gone() for raw in late[:10]))
        assert await healthy(server) < 1
        await clients[0].silence()
        await run.until(lambda: bool(run.told("descriptors_exhausted")))


async def test_workers_have_a_limit_each() -> None:
    settings = {
        "WORKERS": "2",
        "BROKER__URL": (await shared_redis("redis")).url,
        "BROKER__PREFIX": new_prefix(),
    }
    async with limited_command(200, "service", "serve", **(SETTINGS | settings)) as run:
        await run.until(lambda: len(run.told("serving")) == 2)
        lowered = run.told("connections_lowered")
        assert {entry["worker"] for entry in lowered} == {0, 1}
        assert {entry["limit"] for entry in lowered} == {200}


async def test_broker_reconnects_while_connections_take_all_descriptors() -> None:
    """Connections take the descriptors of a broken broker connection, so the reserve must have others."""
    async with RedisServer() as redis, limited(100, BROKER__URL=redis.url) as (_, server), AsyncExitStack() as stack:
        clients = 0
        for round_ in range(3):
            while await upgraded_as(server, stack, f"u{clients}"):
                clients += 1
            await redis.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await redis.command("CLIENT", "KILL", "TYPE", "pubsub")
            await crowd(server, stack, 100)
            async with asyncio.timeout(DEADLINE):
                while await server.metric("broker_reconnects_total", line="messages") <= round_:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                while not await server.metric("broker_up"):  # noqa: ASYNC110  # a check may have met the broken connection
                    await asyncio.sleep(0.05)
            assert await healthy(server) < 1
