"""What the service measures of connections, resumes and the broker for those who watch it."""

from __future__ import annotations

import time

import pytest

from service.telemetry.fast_metrics import FastHistogram
from tests.integration.test_slow_consumers import deaf, shout
from tests.stores.nats_server import NatsServer
from tests.stores.redis_server import RedisServer
from tests.support.clock import FakeClock
from tests.support.harness import DEADLINE, Running, eventually, passes, serving

WHILE = 200.0


async def count(server: Running, name: str) -> float:
    """How many values a histogram has."""
    return await server.metric(f"{name}_count")


def measured(spread: FastHistogram) -> float:
    """The same, asked without a request."""
    [family] = spread.collect()
    return next(sample.value for sample in family.samples if sample.name.endswith("_count"))


async def test_connection_age_and_duration_are_exported() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock, deadlines={"heartbeat": 20 * WHILE}) as server:
        assert not await server.metric("connection_age_seconds", quantile="1") > 0, "nobody is there: no number"
        async with server.client("ann", ttl=90 * WHILE):
            clock.advance(WHILE)
            async with server.client("ben", ttl=90 * WHILE):
                clock.advance(60.0)
                ages = {q: await server.metric("connection_age_seconds", quantile=q) for q in ("0.5", "0.9", "1")}
                assert ages["1"] == pytest.approx(WHILE + 60, abs=1)
                assert ages["0.9"] == ages["1"]
                assert ages["0.5"] == pytest.approx(60, abs=1)
            await eventually(lambda: len(server.service.node.streams.registry) == 1)
            metrics = await server.metrics()
            assert metrics["tidewire_connection_seconds_count"] == 1
            assert metrics["tidewire_connection_seconds_sum"] == pytest.approx(60, abs=1)


async def test_upgrades_pings_and_capacity_are_measured() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock, limits={"connections": 70}, outbox={"node_bytes": 1_000_000}) as server:
        assert await server.metric("max_connections") == 70
        assert await server.metric("max_outbox_bytes") == 1_000_000
        assert await server.metric("start_memory_bytes") > 1_000_000
        async with server.client("ann") as ann:
            assert await count(server, "handshake_seconds") == 1
            assert await count(server, "ping_seconds") == 0
            for _ in range(5):
                await passes(clock, 5.0)
                await ann.silence()  # reads, and so answers the ping, which comes at any moment of the 25 seconds
            await eventually(lambda: measured(server.service.metrics.connections.ping_seconds) == 1)


async def test_resume_exports_the_number_of_missed_events() -> None:
    async with serving() as server:
        async with server.client("ann") as ann:
            at = await ann.subscribe("room:1")
        assert await count(server, "resume_events") == 0, "a first subscribe is no resume"
        await shout(server, 3)
        async with server.client("ann") as ann:
            await ann.subscribe("room:1", since={"epoch": at["epoch"], "offset": at["offset"]})
        metrics = await server.metrics()
        assert metrics["tidewire_resume_events_count"] == 1
        assert metrics["tidewire_resume_events_sum"] == metrics["tidewire_resumed_events_total"] == 3


async def test_connection_that_is_behind_is_counted_with_its_queue() -> None:
    clock = FakeClock(time.time())
    async with serving(clock=clock, outbox={"bytes": 1 << 20, "send_buffer": 16_384}) as server:
        async with deaf(server, "ben", "room:1"):
            await passes(clock, 1.0)
            assert await server.metric("connections_behind") == 0
            await shout(server, 40)
            await passes(clock, 1.0)
            metrics = await server.metrics()
            assert metrics["tidewire_connections_behind"] == 1
            assert metrics["tidewire_outbox_depth_messages_count"] >= 1
            assert metrics["tidewire_outbox_depth_messages_sum"] >= metrics["tidewire_outbox_messages"] > 0
        await server.at_rest()
        await passes(clock, 1.0)
        assert await server.metric("connections_behind") == 0


@pytest.mark.parametrize("program", [RedisServer, NatsServer], ids=["redis", "nats"])
async def test_broker_lag_is_exported(program: type[RedisServer | NatsServer]) -> None:
    async with program() as store, serving(broker_settings={"url": store.url, "ping": 0.05}) as server:
        lag = server.service.metrics.broker.broker_lag_seconds
        await eventually(lambda: measured(lag) > 2)
        assert 0 <= await server.metric("broker_lag_seconds_sum") < DEADLINE
