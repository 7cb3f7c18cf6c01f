"""While the broker is away, a node logs what changes, not each of its tries."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from tests.harness import eventually, serving
from tests.stores import NatsServer, RedisServer

AWAY = 8.0
"""Seconds: a dozen tries of most loops."""


@pytest.fixture(params=["redis", "nats"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[RedisServer | NatsServer]:
    async with RedisServer() if request.param == "redis" else NatsServer() as server:
        yield server


async def test_an_outage_of_the_broker_is_logged_once_by_each_loop(server: RedisServer | NatsServer) -> None:
    async with (
        serving(
            broker_settings={"url": server.url, "timeout": 1.0},
            presence={"ttl": 3.0},
            repair={"check": 0.5},
            limits={"on_user_cap": "replace"},
        ) as node,
        node.client("ann") as ann,
    ):
        await ann.subscribe("room:1")
        health = node.service.node.health
        with capture_logs() as logs:
            server.kill()
            await eventually(lambda: health.is_away)
            await asyncio.sleep(AWAY)
            await server.restart()
            await eventually(lambda: not health.is_away, within=30)
            await eventually(lambda: any(entry["event"] == "presence renewed again" for entry in logs), within=30)
        told = Counter(
            (entry["event"], entry.get("line"), entry.get("channel"), entry.get("reason"))
            for entry in logs
            if entry["log_level"] in ("warning", "error")
        )
        assert told
        repeated = {key: count for key, count in told.items() if count > 2}  # it may flap when the server comes back
        assert not repeated
        back = next(entry for entry in logs if entry["event"] == "presence renewed again")
        assert back["seconds"] > AWAY / 2
