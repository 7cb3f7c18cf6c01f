"""While the broker is away, a node logs the beginning, reminders and the end, and nothing with each of its tries."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.stores import NatsServer, RedisServer
from tests.support.harness import Running, eventually, serving

pytestmark = pytest.mark.slow

AWAY = 6.0
"""Seconds: a dozen tries of most loops, and longer than a failure waits for its explanation."""
MAX_LINES = 16
"""Of one outage, its beginning and its end."""
ROUNDS = 3

Store = RedisServer | NatsServer
Logs = Sequence[MutableMapping[str, Any]]


@asynccontextmanager
async def node_with_clients(server: Store) -> AsyncIterator[Running]:
    """A node on which every loop has something to do."""
    async with (
        serving(
            broker_settings={"url": server.url, "timeout": 1.0},
            presence={"ttl": 3.0},
            repair={"check": 0.5},
            limits={"on_user_cap": "replace"},
            probe={"interval": 1.0},
        ) as node,
        node.client("ann") as ann,
        node.client("ben") as ben,
    ):
        await ann.subscribe("room:1")
        await ben.subscribe("room:2")
        yield node


def warnings(logs: Logs) -> list[MutableMapping[str, Any]]:
    return [entry for entry in logs if entry["log_level"] in ("warning", "error")]


@pytest.mark.parametrize(("store", "how"), [(RedisServer, "killed"), (NatsServer, "frozen")])
async def test_broker_outage_is_logged_in_a_few_lines(store: type[Store], how: str) -> None:
    async with store() as server, node_with_clients(server) as node:
        health = node.service.node.availability.health
        with capture_logs() as logs:
            if how == "killed":
                server.kill()
            else:
                os.kill(server.process.pid, signal.SIGSTOP)
            await eventually(lambda: health.is_unavailable)
            await asyncio.sleep(AWAY)  # the outage itself
            if how == "killed":
                await server.restart()
            else:
                os.kill(server.process.pid, signal.SIGCONT)
            await eventually(lambda: any(entry["event"] == "broker_available" for entry in logs), within=30)
        assert len(logs) <= MAX_LINES, logs
        told = Counter(
            (entry["event"], entry.get("line"), entry.get("reason"), entry.get("host")) for entry in warnings(logs)
        )
        assert set(told.values()) == {1}, told
        assert "broker_unavailable" in {event for event, *_ in told}
        [back] = [entry for entry in logs if entry["event"] == "broker_available"]
        assert back["seconds"] > AWAY / 2


async def test_flapping_broker_is_not_logged_each_time() -> None:
    async with RedisServer() as server, node_with_clients(server) as node:
        health = node.service.node.availability.health
        with capture_logs() as logs:
            for _ in range(ROUNDS):
                server.kill()
                await eventually(lambda: health.is_unavailable)
                await server.restart()
                await eventually(lambda: not health.is_unavailable, within=30)
        assert len(logs) <= MAX_LINES, logs
        told = [entry["event"] for entry in logs]
        assert told.count("broker_unavailable") == told.count("broker_available") == 1
