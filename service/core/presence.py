"""The PresenceStore port: who is in a channel, counted by user over all their connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from service.core.channel import ChannelKey
from service.core.event import Publication

EVENT_PREFIX = "presence."
"""Begins the types of the events that tell of presence, and of no others: contracts may not declare such types."""


def is_presence(event_type: str) -> bool:
    """Whether an event of this type tells of presence, so that only those with the right to see that may get it."""
    return event_type.startswith(EVENT_PREFIX)


@dataclass(frozen=True, slots=True)
class Member:
    """A user in a channel."""

    user: str
    connections: int
    """Without those of nodes that have fallen silent."""
    info: bytes | None = None
    """JSON from the token that the user has shown last, by any connection."""


class Entry(NamedTuple):
    """One connection of a user in a channel."""

    channel: ChannelKey
    user: str
    connection: str
    """An id without spaces."""


class Entrance(NamedTuple):
    """An entry to be made, and the event that tells of it if it is the user's first or brings other info."""

    entry: Entry
    info: bytes | None
    joined: Publication


class Change(NamedTuple):
    """What an entry made, changed or struck out has changed."""

    changed: bool
    """Whether the user has come, or gone."""
    users: int
    """How many are there now."""
    told: bool
    """Whether the channel has been told, of this or of other info. A change in a channel with too many users is not: the caller
    may tell their number."""


Farewell = Callable[[ChannelKey, str], Publication]
"""Makes the event that tells of a user's going."""


class PresenceStore(Protocol):
    """Counts users on all nodes, and tells each channel of their coming and going.

    - An event is told in the same step as the change that it tells of: per user, `joined` and `left` take turns in the order
      of the changes, on whichever nodes they happen. `joined` comes again when the user's info has changed, and from a store
      that has lost its data.
    - A user's info is that of the newest entry that brings some, or of the newest `update`, and stays until the user leaves: the
      end of a connection changes nothing of what was told, nor does a further connection without info.
    - An event reaches the channel's subscribers as an ephemeral publication does. In a channel with more users than the
      store was given to tell of one by one, none is.
    - Who has been told as here is among the members until told as gone, so what is read and what is told never differ.
    - An entry that its node does not renew expires, and goes with the next `sweep` by anybody.

    Every method raises ServiceError(BROKER_UNAVAILABLE) if the store can't; then it may have happened, and may be repeated.
    Its coroutines may be begun outside of any task, as the Broker's.
    """

    async def join(self, entrance: Entrance) -> Change:
        """Adds a connection. Adding it again changes nothing."""

    async def update(self, entrance: Entrance) -> Change:
        """Has a connection's user be shown with this info. Harmless if the connection is not there."""

    async def join_all(self, entrances: Sequence[Entrance]) -> Sequence[Change]:
        """Adds many, not as of one moment."""

    async def leave(self, entry: Entry, left: Publication) -> Change:
        """Removes a connection; harmless if it is not there."""

    async def renew(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Puts off the expiry of this node's entries; returns those that are not there (any more). Without entries it still
        raises if the store is away."""

    async def sweep(self, channels: Sequence[ChannelKey], farewell: Farewell) -> Sequence[tuple[ChannelKey, Change]]:
        """Removes the entries of these channels that have expired, each once however many nodes sweep; returns the changes."""

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """The number of users, and up to `limit` of them by name."""

    async def count(self, channel: ChannelKey) -> int:
        """The number of users."""
