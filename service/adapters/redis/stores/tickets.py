"""The TicketStore that all nodes share at a Redis."""

from __future__ import annotations

import hashlib
import secrets

from service.adapters.redis.stores.client import RedisClient


class RedisTickets:
    """Single use is Redis': one GETDEL gets the token, on whichever node.

    There is no bound on their number as in memory: tickets expire within seconds, only holders of a valid token get any, at
    a limited rate, and Redis has its own bound on memory. A ticket's key is its hash, so that nobody who sees the names of
    keys can use one.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def issue(self, token: str, ttl: float) -> str:
        """As the port says."""
        ticket = secrets.token_urlsafe(32)
        await self._client.command("SET", self._key(ticket), token, "PX", max(1, int(ttl * 1000)), "NX")
        return ticket

    async def peek(self, ticket: str) -> str | None:
        """As the port says."""
        return _token(await self._client.command("GET", self._key(ticket)))

    async def redeem(self, ticket: str) -> str | None:
        """As the port says. When its answer was lost the ticket is gone: a new one must be asked for."""
        return _token(await self._client.command("GETDEL", self._key(ticket)))

    def _key(self, ticket: str) -> str:
        # What a client sends as a ticket can hold half a surrogate pair, which has no UTF-8.
        return self._client.keys.tagged("ticket", hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).hexdigest())


def _token(found: bytes | None) -> str | None:
    return None if found is None else found.decode()
