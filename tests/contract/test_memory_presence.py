"""The in-memory PresenceStore: the guarantee of the port, and that it forgets users who left."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.adapters.memory.presence import MemoryPresence
from service.core.channel import ChannelKey
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


async def test_memory_presence_after_last_leave_takes_no_memory() -> None:
    async def publish(event: Publication) -> None: ...

    node = Node(MemoryPresence(publish, MAX_TOLD))

    async def come_and_go(visits: int) -> int:
        for n in range(visits):
            channel = ChannelKey("acme", f"room:{n}")
            await node.join(channel, f"u-{n}", "c-1", None)
            await node.leave(channel, f"u-{n}", "c-1")
            await node.leave(channel, f"nobody-{n}", "c-1")
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = await come_and_go(10)
        assert await come_and_go(500) - before < 10_000, "a channel or a lock takes more than 20 bytes"
    finally:
        tracemalloc.stop()


async def test_memory_presence_failed_publish_keeps_change() -> None:
    async def publish(event: Publication) -> None:
        raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")

    node = Node(MemoryPresence(publish, MAX_TOLD))
    assert await node.join(ROOM, "ann", "c-1") == (True, 1, False)
    assert await node.store.count(ROOM) == 1
    assert await node.leave(ROOM, "ann", "c-1") == (True, 0, False)
