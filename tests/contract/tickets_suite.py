"""The guarantee of the TicketStore port (service/core/tickets.py) as tests. A subclass opens the store."""

from __future__ import annotations

import asyncio
import base64
import re
from abc import ABC, abstractmethod

import pytest

from service.core.tickets import TicketStore
from tests.contract.begun import Begun
from tests.support.clock import FakeClock

TTL = 30.0


class TicketsSuite(ABC):
    """One subclass for each implementation."""

    @abstractmethod
    async def open(self, clock: FakeClock) -> TicketStore:
        """Returns an empty store."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    async def store(self, clock: FakeClock) -> TicketStore:
        return await self.open(clock)

    async def test_ticket_redeems_to_its_token(self, store: TicketStore) -> None:
        tickets = {token: await store.issue(token, TTL) for token in ("token a", "token b")}
        for token, ticket in tickets.items():
            assert await store.redeem(ticket) == token

    async def test_ticket_calls_started_outside_of_task_succeed(self, store: TicketStore) -> None:
        async with asyncio.timeout(10):
            ticket = await Begun(store.issue("token", TTL))
            assert await Begun(store.peek(ticket)) == "token"
            assert await Begun(store.redeem(ticket)) == "token"

    async def test_ticket_is_256_random_bits_and_url_safe(self, store: TicketStore) -> None:
        tickets = [await store.issue("token", TTL) for _ in range(50)]
        assert len(set(tickets)) == 50
        for ticket in tickets:
            assert re.fullmatch(r"[A-Za-z0-9_-]+", ticket)
            assert len(base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4))) >= 32

    async def test_ticket_redeems_at_most_once(self, store: TicketStore) -> None:
        ticket = await store.issue("token", TTL)
        assert await store.redeem(ticket) == "token"
        assert await store.redeem(ticket) is None
        assert await store.peek(ticket) is None

    async def test_ticket_concurrent_redeems_succeed_once(self, store: TicketStore) -> None:
        ticket = await store.issue("token", TTL)
        redeemed = await asyncio.gather(*(store.redeem(ticket) for _ in range(20)))
        assert sorted(map(str, redeemed)) == ["None"] * 19 + ["token"]

    async def test_ticket_peek_keeps_it_live(self, store: TicketStore) -> None:
        ticket = await store.issue("token", TTL)
        assert await store.peek(ticket) == "token"
        assert await store.peek(ticket) == "token"
        assert await store.redeem(ticket) == "token"

    @pytest.mark.parametrize("ticket", ["", "x", "../x", "*", "\0", "a" * 10_000, "\ud800"])
    async def test_ticket_unknown_text_has_no_token(self, store: TicketStore, ticket: str) -> None:
        await store.issue("token", TTL)
        assert await store.peek(ticket) is None
        assert await store.redeem(ticket) is None


class TimedTicketsSuite(TicketsSuite):
    """Adds guarantees about time."""

    @abstractmethod
    async def advance(self, clock: FakeClock, seconds: float) -> None:
        """Moves the store's time."""

    async def test_ticket_expires_after_ttl(self, store: TicketStore, clock: FakeClock) -> None:
        ticket, other = await store.issue("token", TTL), await store.issue("token", TTL)
        await self.advance(clock, TTL - 1)
        assert await store.peek(ticket) == "token"
        assert await store.redeem(other) == "token"
        await self.advance(clock, 1)
        assert await store.peek(ticket) is None
        assert await store.redeem(ticket) is None

    async def test_ticket_ttls_are_independent(self, store: TicketStore, clock: FakeClock) -> None:
        long, short = await store.issue("long", 2 * TTL), await store.issue("short", TTL)
        await self.advance(clock, TTL)
        assert await store.redeem(short) is None
        assert await store.redeem(long) == "long"
