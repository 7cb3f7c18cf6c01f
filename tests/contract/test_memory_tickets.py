"""The in-memory TicketStore: the guarantee of the port, and its limit."""

from __future__ import annotations

import pytest

from service.adapters.memory.tickets import MemoryTickets
from service.core.tickets import TicketStore
from service.errors import ErrorCode, ServiceError
from tests.contract.tickets_suite import TTL, TimedTicketsSuite
from tests.support.clock import FakeClock


class TestMemoryTickets(TimedTicketsSuite):
    async def open(self, clock: FakeClock) -> TicketStore:
        return MemoryTickets(clock, max_tickets=100)

    async def advance(self, clock: FakeClock, seconds: float) -> None:
        clock.advance(seconds)


async def test_memory_tickets_full_refuses_and_keeps_live_tickets() -> None:
    clock = FakeClock()
    store = MemoryTickets(clock, max_tickets=3)
    tickets = [await store.issue(f"token {n}", TTL) for n in range(3)]
    with pytest.raises(ServiceError) as full:
        await store.issue("one too many", TTL)
    assert full.value.code is ErrorCode.OVERLOADED
    assert "one too many" not in str(full.value)
    assert [await store.peek(ticket) for ticket in tickets] == ["token 0", "token 1", "token 2"]

    await store.redeem(tickets[1])
    await store.issue("another", TTL)
    clock.advance(TTL)
    for n in range(3):
        await store.issue(f"later {n}", TTL)
    assert len(store) == 3


async def test_tickets_with_different_ttls_free_their_places_in_time() -> None:
    clock = FakeClock()
    store = MemoryTickets(clock, 2)
    long, short = await store.issue("long", 60.0), await store.issue("short", 30.0)
    clock.advance(31)
    assert await store.peek(short) is None
    await store.issue("next", 30.0)
    assert await store.peek(long) == "long"
    with pytest.raises(ServiceError):
        await store.issue("one too many", 30.0)
    clock.advance(31)
    assert await store.redeem(long) is None
    await store.issue("free again", 60.0)
