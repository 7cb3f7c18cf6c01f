"""The TicketStore that all nodes share at NATS."""

from __future__ import annotations

import hashlib
import secrets

import msgspec

from service.adapters.nats.stores.documents import Documents, DocumentUpdate
from service.core.clock import Clock, milliseconds

REDEEMED = b""
"""The document of a ticket that was redeemed."""


class Ticket(msgspec.Struct, frozen=True, array_like=True):
    """The document of a live ticket."""

    expiry: int
    """Milliseconds since the Unix epoch."""
    token: str


class NatsTickets:
    """Redeems a ticket by a conditional write, so only one node gets the token.

    A ticket's subject is its hash, so that whoever sees the subjects cannot redeem one.
    """

    def __init__(self, documents: Documents, clock: Clock) -> None:
        self._documents = documents
        self._clock = clock

    async def issue(self, token: str, ttl: float) -> str:
        """Stores the token under the hash of a new ticket."""
        ticket = secrets.token_urlsafe(32)
        document = Ticket(milliseconds(self._clock) + int(ttl * 1000), token)
        update = DocumentUpdate(msgspec.msgpack.encode(document), ttl)
        await self._documents.change(self._subject(ticket), lambda _: (update, None))
        return ticket

    async def peek(self, ticket: str) -> str | None:
        """Reads the token."""
        return self._token(await self._documents.read(self._subject(ticket)))

    async def redeem(self, ticket: str) -> str | None:
        """Reads the token and empties the document. If the answer is lost, the client needs a new ticket."""

        def redeem(data: bytes | None) -> tuple[DocumentUpdate, str | None]:
            token = self._token(data)
            return DocumentUpdate(None if token is None else REDEEMED), token

        return await self._documents.change(self._subject(ticket), redeem)

    def _token(self, data: bytes | None) -> str | None:
        if not data:
            return None
        ticket = msgspec.msgpack.decode(data, type=Ticket)
        return ticket.token if milliseconds(self._clock) < ticket.expiry else None

    def _subject(self, ticket: str) -> str:
        # A client's ticket may hold half a surrogate pair, which UTF-8 cannot encode.
        digest = hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).hexdigest()
        return self._documents.subjects.document("ticket", digest)
