"""In-memory brokers whose methods fail or wait for a test."""

from __future__ import annotations

import asyncio
from typing import Any

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker


class _OwnBroker(MemoryBroker):
    """A memory broker with limits that no test reaches."""

    def __init__(self) -> None:
        super().__init__(
            SystemClock(), idempotency_window=300, idempotency_entries=1000, channels=1000, max_bytes=10_000_000
        )


class FaultyBroker(_OwnBroker):
    """Raises `faults[name]` in the method of that name while it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: dict[str, BaseException] = {}

    def _fail(self, name: str) -> None:
        if name in self.faults:
            raise self.faults[name].with_traceback(None)  # without the traceback of an earlier raise

    async def publish(self, publication: Any) -> Any:
        self._fail("publish")
        return await super().publish(publication)

    def start_publish(self, publication: Any) -> Any:
        self._fail("publish")
        return super().start_publish(publication)

    async def subscribe(self, channel: Any) -> None:
        self._fail("subscribe")
        await super().subscribe(channel)

    async def unsubscribe(self, channel: Any) -> None:
        self._fail("unsubscribe")
        await super().unsubscribe(channel)

    async def snapshot(self, *arguments: Any) -> Any:
        self._fail("snapshot")
        return await super().snapshot(*arguments)


class SlowBroker(_OwnBroker):
    """Waits for `gates[name]` in `subscribe`, `unsubscribe` and `snapshot`, if it is set. `waiting` holds the names of
    waiting calls."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}
        self.waiting: set[str] = set()

    async def _pass(self, name: str) -> None:
        if name in self.gates:
            self.waiting.add(name)
            await self.gates[name].wait()
            self.waiting.discard(name)

    async def subscribe(self, channel: Any) -> None:
        await self._pass("subscribe")
        await super().subscribe(channel)

    async def unsubscribe(self, channel: Any) -> None:
        await self._pass("unsubscribe")
        await super().unsubscribe(channel)

    async def snapshot(self, *arguments: Any) -> Any:
        await self._pass("snapshot")
        return await super().snapshot(*arguments)
