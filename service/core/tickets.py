"""The TicketStore port: single-use credentials in place of a token. They are safe in URLs, which proxies log."""

from __future__ import annotations

from typing import Protocol


class TicketStore(Protocol):
    """Redeems a ticket at most once over all nodes. A coroutine may be started outside of any task, as those of the Broker."""

    async def issue(self, token: str, ttl: float) -> str:
        """Stores a verified token for `ttl` seconds. Returns its ticket: 256 random bits, URL-safe."""

    async def peek(self, ticket: str) -> str | None:
        """Returns the token of a valid ticket, which stays valid; else None."""

    async def redeem(self, ticket: str) -> str | None:
        """Returns the token of a valid ticket, and deletes the ticket; else None."""
