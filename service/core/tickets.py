"""The TicketStore port: single-use stand-ins for a token, safe in an address that proxies log."""

from __future__ import annotations

from typing import Protocol


class TicketStore(Protocol):
    """A ticket is redeemed at most once, on any node. Its coroutines may be begun outside of any task, as the Broker's."""

    async def issue(self, token: str, ttl: float) -> str:
        """Keeps a (verified) token for `ttl` seconds and returns its ticket: 256 random bits, URL-safe."""

    async def peek(self, ticket: str) -> str | None:
        """The token behind a live ticket, which stays live; None otherwise."""

    async def redeem(self, ticket: str) -> str | None:
        """The token behind a live ticket, which is gone after that; None otherwise."""
