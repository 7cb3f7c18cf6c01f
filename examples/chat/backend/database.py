"""The connections to PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

SCHEMA = Path(__file__).with_name("schema.sql")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Pool]:
    """Connects, and makes the tables that are missing."""
    async with asyncpg.create_pool(url, min_size=1, max_size=10, command_timeout=10) as pool:
        await pool.execute(SCHEMA.read_text(encoding="utf-8"))
        yield pool
