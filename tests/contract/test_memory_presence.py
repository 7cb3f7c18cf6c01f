"""The in-memory PresenceStore: the guarantee of the port, and that it forgets users who left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.adapters.memory.presence import MemoryPresence
from service.core.event import Publication
from service.errors import ErrorCode, ServiceError
from tests.contract.presence_suite import JOINED, MAX_TOLD, ROOM, Node, PresenceSuite, Stage


@dataclass(frozen=True, slots=True)
class MemoryStage(Stage):
    events: list[Publication] = field(default_factory=list)

    async def published_events(self) -> list[Publication]:
        events = list(self.events)
        self.events.clear()
        return events


class TestMemoryPresence(PresenceSuite):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Stage]:
        events: list[Publication] = []

        async def publish(event: Publication) -> None:
            for _ in range(3 if event.type == JOINED else 0):  # as a broker that is somewhere else
                await asyncio.sleep(0)
            events.append(event)

        node = Node(MemoryPresence(publish, MAX_TOLD))
        yield MemoryStage(node, node, events)


async def test_memory_presence_after_last_leave_is_empty() -> None:
    async def publish(event: Publication) -> None: ...

    store = MemoryPresence(publish, MAX_TOLD)
    node = Node(store)
    for n in range(100):
        await node.join(ROOM, f"u-{n}", "c-1", None)
    for n in range(100):
        await node.leave(ROOM, f"u-{n}", "c-1")
        await node.leave(ROOM, f"nobody-{n}", "c-1")
    assert store._channels == {}
    assert not store._locks


async def test_memory_presence_failed_publish_keeps_change() -> None:
    async def publish(event: Publication) -> None:
        raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")

    node = Node(MemoryPresence(publish, MAX_TOLD))
    assert await node.join(ROOM, "ann", "c-1") == (True, 1, False)
    assert await node.store.count(ROOM) == 1
    assert await node.leave(ROOM, "ann", "c-1") == (True, 0, False)
