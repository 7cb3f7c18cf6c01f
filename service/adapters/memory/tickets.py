"""The TicketStore of a service that runs as one node."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from service.core.clock import Clock
from service.errors import ErrorCode, ServiceError


class MemoryTickets:
    """Keeps at most `max_tickets` live tickets, and refuses further ones, so that nobody can evict the tickets of
    others.

    A plain dict lookup is safe: a ticket is 256 random bits, and a dict compares strings only after their keyed hashes agree, so
    timing reveals nothing about a guess.
    """

    __slots__ = ("_clock", "_max_tickets", "_tickets")

    def __init__(self, clock: Clock, max_tickets: int) -> None:
        self._clock = clock
        self._max_tickets = max_tickets
        # From ticket to (expiry, token). The service issues all with one TTL, so the oldest expires first.
        self._tickets: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def issue(self, token: str, ttl: float) -> str:
        """Stores the token. Raises ServiceError(OVERLOADED) above the limit."""
        now = self._clock.monotonic()
        while self._tickets and next(iter(self._tickets.values()))[0] <= now:
            self._tickets.popitem(last=False)
        if len(self._tickets) >= self._max_tickets:
            raise ServiceError(
                ErrorCode.OVERLOADED, f"all {self._max_tickets} tickets are taken; they free themselves within seconds"
            )
        ticket = secrets.token_urlsafe(32)
        self._tickets[ticket] = (now + ttl, token)
        return ticket

    async def peek(self, ticket: str) -> str | None:
        """Reads the token."""
        expiry, token = self._tickets.get(ticket, (0.0, ""))
        return token if expiry > self._clock.monotonic() else None

    async def redeem(self, ticket: str) -> str | None:
        """Reads and deletes the token."""
        expiry, token = self._tickets.pop(ticket, (0.0, ""))
        return token if expiry > self._clock.monotonic() else None

    def __len__(self) -> int:
        return len(self._tickets)
