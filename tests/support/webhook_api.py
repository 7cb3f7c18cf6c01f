"""Services with webhooks, and what their receivers and the backend API say of entries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.stores.process import until
from tests.support.api_client import get
from tests.support.backend import Backend
from tests.support.harness import DEADLINE, Running, serving

CONTRACT = Path(__file__).with_name("webhook_api.yaml")
QUIET = {"name": "archive", "tenants": ["default"]}
"""An endpoint to which nothing is sent."""


@asynccontextmanager
async def telling(
    *endpoints: dict[str, Any], broker: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """A service with these endpoints, or with one that sends nothing. `broker`: settings of its broker."""
    webhooks = {"endpoints": list(endpoints) or [QUIET], **settings}
    async with serving(contract=CONTRACT, webhooks=webhooks, broker_settings=dict(broker or {})) as server:
        yield server


async def say(server: Running, channel: str, *texts: str) -> list[str]:
    """Publishes messages; their ids."""
    events = [{"type": "chat.message", "data": {"text": text}} for text in texts]
    body = await server.publish(channel, events)
    return [result["id"] for result in body["results"]]


async def letters(server: Running) -> list[dict[str, Any]]:
    """The dead letters."""
    found: list[dict[str, Any]] = (await get(server, "/webhooks/archive/dead-letters"))["dead_letters"]
    return found


async def until_dead(server: Running, count: int) -> list[dict[str, Any]]:
    """Waits until there are so many dead letters."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        found[:] = await letters(server)
        return len(found) >= count

    await until(there, f"{count} dead letters", within=DEADLINE)
    return found


async def until_done(server: Running) -> None:
    """Waits until nothing waits in any queue, as all nodes see it."""

    async def done() -> bool:
        found = (await get(server, "/webhooks"))["endpoints"]
        return all(queue["waiting"] == 0 for endpoint in found for queue in endpoint["queues"])

    await until(done, "empty queues", within=DEADLINE)


def delivered(backend: Backend) -> list[dict[str, Any]]:
    """The entries that a receiver got."""
    return [entry for delivery in backend.questions for entry in delivery["entries"]]
