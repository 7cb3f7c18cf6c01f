"""The in-memory PresenceStore: the port's contract, and that it keeps nothing of those who left."""

from __future__ import annotations

from service.adapters.memory.presence import MemoryPresence
from service.core.presence import PresenceStore
from tests.contract.presence_suite import ROOM, PresenceSuite


class TestMemoryPresence(PresenceSuite):
    async def open(self) -> PresenceStore:
        return MemoryPresence()


async def test_nothing_is_kept_of_those_who_left() -> None:
    store = MemoryPresence()
    for n in range(100):
        await store.join(ROOM, f"u-{n}", "c-1", None)
    for n in range(100):
        await store.leave(ROOM, f"u-{n}", "c-1")
        await store.leave(ROOM, f"nobody-{n}", "c-1")
    assert store._channels == {}
