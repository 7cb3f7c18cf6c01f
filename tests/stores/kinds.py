"""Parametrizes tests by kind of store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.stores.nats_server import NatsServer
from tests.stores.redis_server import RedisServer

STORES = ("memory", "redis", "nats")


@asynccontextmanager
async def broker_of(kind: str) -> AsyncIterator[dict[str, Any]]:
    """Runs a store of this kind, and yields the settings of a broker on it."""
    if kind == "memory":
        yield {}
        return
    async with RedisServer() if kind == "redis" else NatsServer() as running:
        yield {"url": running.url}
