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

    __slots__ = ("_by_ttl", "_clock", "_max_tickets")

    def __init__(self, clock: Clock, max_tickets: int) -> None:
        self._clock = clock
        self._max_tickets = max_tickets
        self._by_ttl: dict[float, OrderedDict[str, tuple[float, str]]] = {}
        """From ticket to (expiry, token), for each TTL that the service uses. Of equal TTLs, the oldest expires first."""

    async def issue(self, token: str, ttl: float) -> str:
        """Stores the token. Raises ServiceError(OVERLOADED) above the limit."""
        now = self._clock.monotonic()
        for tickets in self._by_ttl.values():
            while tickets and next(iter(tickets.values()))[0] <= now:
                tickets.popitem(last=False)
        if len(self) >= self._max_tickets:
            raise ServiceError(
                ErrorCode.OVERLOADED, f"all {self._max_tickets} tickets are taken; they free themselves within minutes"
            )
        ticket = secrets.token_urlsafe(32)
        self._by_ttl.setdefault(ttl, OrderedDict())[ticket] = (now + ttl, token)
        return ticket

    async def peek(self, ticket: str) -> str | None:
        """Reads the token."""
        for tickets in self._by_ttl.values():
            if ticket in tickets:
                return self._token(*tickets[ticket])
        return None

    async def redeem(self, ticket: str) -> str | None:
        """Reads and deletes the token."""
        for tickets in self._by_ttl.values():
            if ticket in tickets:
                return self._token(*tickets.pop(ticket))
        return None

    def _token(self, expiry: float, token: str) -> str | None:
        return token if expiry > self._clock.monotonic() else None

    def __len__(self) -> int:
        return sum(map(len, self._by_ttl.values()))
