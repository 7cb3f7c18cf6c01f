"""The TicketStore of a service that runs as one node."""

from __future__ import annotations

import secrets
from collections import OrderedDict

from service.core.clock import Clock
from service.errors import ErrorCode, ServiceError


class MemoryTickets:
    """Keeps at most `most` live tickets. When all are taken `issue` raises OVERLOADED: a ticket handed out is good for its
    whole time, so nobody can push out other people's tickets by asking for many.

    A plain dict lookup is enough: a ticket is 256 random bits, and a dict compares whole strings only after their (keyed)
    hashes agree, so timing tells nothing about how much of a guess was right.
    """

    __slots__ = ("_clock", "_most", "_tickets")

    def __init__(self, clock: Clock, most: int) -> None:
        self._clock = clock
        self._most = most
        # ticket → (expiry, token); the service issues all with one ttl, so the oldest expires first
        self._tickets: OrderedDict[str, tuple[float, str]] = OrderedDict()

    async def issue(self, token: str, ttl: float) -> str:
        """As the port says."""
        now = self._clock.monotonic()
        while self._tickets and next(iter(self._tickets.values()))[0] <= now:
            self._tickets.popitem(last=False)
        if len(self._tickets) >= self._most:
            raise ServiceError(
                ErrorCode.OVERLOADED, f"all {self._most} tickets are taken; they free themselves within seconds"
            )
        ticket = secrets.token_urlsafe(32)
        self._tickets[ticket] = (now + ttl, token)
        return ticket

    async def peek(self, ticket: str) -> str | None:
        """As the port says."""
        expiry, token = self._tickets.get(ticket, (0.0, ""))
        return token if expiry > self._clock.monotonic() else None

    async def redeem(self, ticket: str) -> str | None:
        """As the port says."""
        expiry, token = self._tickets.pop(ticket, (0.0, ""))
        return token if expiry > self._clock.monotonic() else None

    def __len__(self) -> int:
        return len(self._tickets)
