"""A running service for the tests that need nothing special."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tests.harness import Running, serving
from tests.integration.cluster import BUSES
from tests.shared_broker import Bus


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Running]:
    async with serving() as running:
        yield running


@pytest.fixture(params=BUSES)
def make_bus(request: pytest.FixtureRequest) -> Callable[[], Bus]:
    return BUSES[request.param]
