"""The TicketStore that all nodes share at Redis."""

from __future__ import annotations

import hashlib
import secrets

from service.adapters.redis.config import milliseconds
from service.adapters.redis.stores.client import RedisClient


class RedisTickets:
    """Redeems a ticket by one GETDEL, so only one node gets the token.

    There is no limit on tickets as in memory: they expire within minutes, and only holders of a valid token get some, at a
    limited rate. A ticket's key is its hash, so that whoever sees the keys cannot redeem one.
    """

    def __init__(self, client: RedisClient) -> None:
        self._client = client

    async def issue(self, token: str, ttl: float) -> str:
        """Stores the token under the hash of a new ticket."""
        ticket = secrets.token_urlsafe(32)
        await self._client.command("SET", self._key(ticket), token, "PX", milliseconds(ttl), "NX")
        return ticket

    async def peek(self, ticket: str) -> str | None:
        """Reads the token."""
        return _token(await self._client.command("GET", self._key(ticket)))

    async def redeem(self, ticket: str) -> str | None:
        """Reads and deletes the token. If the reply is lost, the ticket is gone, and the client needs a new one."""
        return _token(await self._client.command("GETDEL", self._key(ticket)))

    def _key(self, ticket: str) -> str:
        # A client's ticket may hold half a surrogate pair, which UTF-8 cannot encode.
        return self._client.keys.tagged("ticket", hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).hexdigest())


def _token(reply: bytes | None) -> str | None:
    return None if reply is None else reply.decode()
