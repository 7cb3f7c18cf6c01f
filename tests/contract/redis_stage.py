"""Clients of a real Redis or Valkey for the contract suites; each test has its own prefix."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from service.adapters.redis.address import parse_redis_url
from service.adapters.redis.config import RedisConfig
from service.adapters.redis.stores.client import RedisClient


def new_prefix() -> str:
    """Returns a prefix that no other test uses."""
    return f"t{secrets.token_hex(6)}"


PATIENCE = 30.0
"""Seconds that a call may take where a test says nothing of it: several hundred at once, on a busy machine."""


@asynccontextmanager
async def client_of(url: str, prefix: str, **options: Any) -> AsyncIterator[RedisClient]:
    """Opens a client for one node, with options of `RedisConfig`."""
    client = RedisClient(RedisConfig(parse_redis_url(url), prefix=prefix, **{"call_timeout": PATIENCE, **options}))
    try:
        yield client
    finally:
        await client.close()
