"""The TicketStore port: single-use stand-ins for a token, safe in URLs that proxies log."""

from __future__ import annotations

from typing import Protocol


class TicketStore(Protocol):
    """Redeems a ticket at most once, on any node. A coroutine may be started outside of any task, as those of the Broker."""

    async def issue(self, token: str, ttl: float) -> str:
        """Stores a verified token for `ttl` seconds; returns its ticket: 256 random bits, URL-safe."""

    async def peek(self, ticket: str) -> str | None:
        """Returns the token of a live ticket, which stays live; None otherwise."""

    async def redeem(self, ticket: str) -> str | None:
        """Returns the token of a live ticket and deletes the ticket; None otherwise."""
