"""A running service for the tests that need nothing special."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from service.realtime.cluster import heartbeat, requests
from service.realtime.cluster.messages import NODE_STATE_RETENTION
from tests.integration.cluster import BUSES
from tests.support.harness import DEADLINE, Running, serving
from tests.support.shared_broker import Bus


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes wait for answers until they come, and no beat comes to the help of what must do without."""
    monkeypatch.setattr(requests, "RESPONSE_TIMEOUT", DEADLINE)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_INTERVAL", NODE_STATE_RETENTION.ttl / 2)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Running]:
    async with serving() as running:
        yield running


@pytest.fixture(params=BUSES)
def make_bus(request: pytest.FixtureRequest) -> Callable[[], Bus]:
    return BUSES[request.param]
