"""A running service for the tests that need nothing special."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.harness import Running, serving


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Running]:
    async with serving() as running:
        yield running
