"""The CapStore of one node: the port's contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.adapters.memory.caps import MemoryCaps
from tests.contract.caps_suite import CapsSuite, Nodes


class TestMemoryCaps(CapsSuite):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Nodes]:
        store = MemoryCaps()
        yield Nodes(store, store)
