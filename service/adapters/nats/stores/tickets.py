"""The TicketStore that all nodes share at a NATS."""

from __future__ import annotations

import hashlib
import secrets

import msgspec

from service.adapters.nats.stores.documents import Documents, Draft
from service.core.clock import Clock, milliseconds

USED = b""
"""What is left of a ticket that has been redeemed."""


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """What a ticket stands for."""

    expiry: int
    """In milliseconds."""
    token: str


class NatsTickets:
    """Single use is NATS': a ticket is struck out on condition that it has not been, on whichever node.

    A ticket's subject is its hash, so that nobody who sees subjects can use one.
    """

    def __init__(self, documents: Documents, clock: Clock) -> None:
        self._documents = documents
        self._clock = clock

    async def issue(self, token: str, ttl: float) -> str:
        """As the port says."""
        ticket = secrets.token_urlsafe(32)
        made = Draft(msgspec.msgpack.encode(Ticket(milliseconds(self._clock) + int(ttl * 1000), token)), ttl)
        await self._documents.change(self._subject(ticket), lambda _: (made, None))
        return ticket

    async def peek(self, ticket: str) -> str | None:
        """As the port says."""
        return self._token(await self._documents.read(self._subject(ticket)))

    async def redeem(self, ticket: str) -> str | None:
        """As the port says. When its answer was lost the ticket is gone: a new one must be asked for."""

        def strike_out(data: bytes | None) -> tuple[Draft, str | None]:
            token = self._token(data)
            return Draft(None if token is None else USED), token

        return await self._documents.change(self._subject(ticket), strike_out)

    def _token(self, data: bytes | None) -> str | None:
        if not data:
            return None
        found = msgspec.msgpack.decode(data, type=Ticket)
        return found.token if milliseconds(self._clock) < found.expiry else None

    def _subject(self, ticket: str) -> str:
        # What a client sends as a ticket can hold half a surrogate pair, which has no UTF-8.
        return self._documents.subjects.apart(
            "ticket", hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).hexdigest()
        )
