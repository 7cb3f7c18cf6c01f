"""A real service for the tests of the client. No test leaves an asyncio task behind."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from tests.conftest import _no_tasks_left_behind, _tasks_end  # noqa: F401  # fixtures
from tests.support.harness import API_KEY, Running, serving

from tidewire import AsyncTidewire


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's proxies are not for services on loopback."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Running]:
    async with serving() as running:
        yield running


@pytest_asyncio.fixture
async def client(server: Running) -> AsyncIterator[AsyncTidewire]:
    async with AsyncTidewire(server.url, api_key=API_KEY) as client:
        yield client
