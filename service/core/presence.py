"""The PresenceStore port: who is in a channel, counted by user over all their connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from service.core.channel import ChannelKey


@dataclass(frozen=True, slots=True)
class Member:
    """A user in a channel."""

    user: str
    connections: int
    info: bytes | None = None
    """JSON from the token of the user's newest connection."""


class PresenceStore(Protocol):
    """Exactly one join is reported per user between two leaves, however many connections come and go, on any node."""

    async def join(self, channel: ChannelKey, user: str, connection: str, info: bytes | None) -> bool:
        """Adds a connection; True if the user was not there before. Adding it again changes nothing."""

    async def leave(self, channel: ChannelKey, user: str, connection: str) -> bool:
        """Removes a connection; True if it was there and the user's last."""

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """The number of users, and up to `limit` of them by name."""

    async def count(self, channel: ChannelKey) -> int:
        """The number of users."""
