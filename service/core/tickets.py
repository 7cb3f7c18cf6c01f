"""The TicketStore port: short-lived credentials in place of a token. They are safe in URLs, which proxies log."""

from __future__ import annotations

from typing import Protocol

import msgspec
from msgspec import Struct

_PREFIX = "stream:"
"""Begins the stored value of a stream ticket. No token begins so: a JWT begins with a letter and has no colon."""


class TicketStore(Protocol):
    """Redeems a ticket at most once over all nodes. A coroutine may be started outside of any task, as those of the Broker."""

    async def issue(self, token: str, ttl: float) -> str:
        """Stores a verified token, or an encoded StreamTicket, for `ttl` seconds.

        Returns its ticket: 256 random bits, URL-safe.
        """

    async def peek(self, ticket: str) -> str | None:
        """Returns the token of a valid ticket, which stays valid; else None."""

    async def redeem(self, ticket: str) -> str | None:
        """Returns the token of a valid ticket, and deletes the ticket; else None."""


class StreamTicket(Struct, frozen=True):
    """What the ticket of an event stream stands for. It may be used until it expires, for these channels only."""

    token: str
    channels: tuple[str, ...]

    def encode(self) -> str:
        """Returns the value for a TicketStore."""
        return _PREFIX + _encode(self).decode()

    @classmethod
    def decode(cls, value: str) -> StreamTicket | None:
        """Returns the stream ticket in a value of a TicketStore; None for the value of a ticket for one connection."""
        return _decoder.decode(value.removeprefix(_PREFIX)) if value.startswith(_PREFIX) else None


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(StreamTicket)
