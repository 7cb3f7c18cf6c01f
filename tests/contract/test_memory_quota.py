"""The QuotaStore of one node: the guarantee of the port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.adapters.memory.quota import MemoryQuota
from tests.contract.quota_suite import Nodes, QuotaSuite


class TestMemoryQuota(QuotaSuite):
    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Nodes]:
        store = MemoryQuota()
        yield Nodes(store, store)
