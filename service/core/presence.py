"""The PresenceStore port: the users in a channel, each counted once over all connections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from service.core.channel import ChannelKey
from service.core.event import Publication

PRESENCE_PREFIX = "presence."
"""The prefix of presence event types; contracts may not declare such types."""
PRESENCE_UPDATE = "presence.update"
"""The type of the message by which a client sets the info of its user."""
_UPDATED = b" "
"""The end of an info that a client has set. JSON allows the space, so nodes of older versions store and show such an info as any
other."""


def is_presence_event(event_type: str) -> bool:
    """True if events of this type need the right to presence."""
    return event_type.startswith(PRESENCE_PREFIX)


def updated_info(data: bytes) -> bytes:
    """Returns the info of a user whose client has set it to this JSON."""
    return data.strip() + _UPDATED


def is_updated(info: bytes | None) -> bool:
    """True if a client has set the info. Otherwise it is that of a token."""
    return info is not None and info.endswith(_UPDATED)


@dataclass(frozen=True, slots=True)
class Member:
    """A user in a channel."""

    user: str
    connections: int
    """Connections to live nodes."""
    info: bytes | None = None
    """JSON from a client (`is_updated`), or from the user's newest token, on any connection."""


class PresenceEntry(NamedTuple):
    """One connection of a user in a channel."""

    channel: ChannelKey
    user: str
    connection: str
    """An id without spaces."""


class PresenceJoin(NamedTuple):
    """An entry to add, and the event to publish if it is the user's first or brings other info."""

    entry: PresenceEntry
    info: bytes | None
    event: Publication


class FoundUser(NamedTuple):
    """One user of a channel, as the store has it now."""

    connections: frozenset[str]
    """The connections that have not expired."""
    expired: frozenset[str]
    """Those that have, and are not removed yet."""
    info: bytes | None


class ExpiredEntry(NamedTuple):
    """An entry that its node has not renewed in time."""

    entry: PresenceEntry
    info: bytes | None
    """The info of the user."""
    is_last: bool
    """True if all connections of the user have expired, and the same call has returned all of them."""


class PresenceChange(NamedTuple):
    """The outcome of adding, updating or removing an entry."""

    changed: bool
    """True if the user has joined or left."""
    users: int
    """The number of users in the channel now."""
    published: bool
    """True if the event was published. It is not in a large channel: there, the caller may publish the number of users."""


LeaveEventFactory = Callable[[ChannelKey, str], Publication]
"""Makes the event for a user who has left a channel."""


class PresenceStore(Protocol):
    """Counts users on all nodes, and publishes an event when one joins or leaves a channel.

    - A change and its event are one step. Per user, `joined` and `left` alternate in the order of the changes, on any node.
      `joined` is repeated when the user's info changes, and by a store that has lost its data.
    - A user's info is that of the newest entry with info, or of the newest `update`, until the user leaves. Further connections
      without info do not change it, nor does the end of a connection. An info that a client has set (`is_updated`) is changed
      only by an `update`.
    - The events are delivered as ephemeral publications. A channel with more users than the configured limit gets none.
    - A user is a member from the `joined` event until the `left` event, so reads and events never differ.
    - An entry that its node does not renew expires. The next `remove_expired` by any node removes it.

    Every method raises ServiceError(BROKER_UNAVAILABLE) if the store fails. Even then, the change may have happened; a repeat is
    safe. A coroutine may be started outside of any task, as those of the Broker.
    """

    async def join(self, join: PresenceJoin) -> PresenceChange:
        """Adds a connection. Adding it again changes nothing."""

    async def update(self, update: PresenceJoin) -> PresenceChange | None:
        """Replaces the user's info. Does nothing and returns None without an entry of the connection."""

    async def join_all(self, joins: Sequence[PresenceJoin]) -> Sequence[PresenceChange]:
        """Adds many connections. This is not one atomic step."""

    async def leave(self, entry: PresenceEntry, event: Publication) -> PresenceChange:
        """Removes a connection, and publishes the event if it was the user's last. Does nothing without an entry of it."""

    async def leave_all(
        self, entries: Sequence[PresenceEntry], leave_event: LeaveEventFactory, *, only_expired: bool = False
    ) -> Sequence[PresenceChange]:
        """Removes many connections. This is not one atomic step. `only_expired`: leaves those that have been renewed."""

    async def renew(self, entries: Sequence[PresenceEntry]) -> Sequence[PresenceEntry]:
        """Extends the expiry of this node's entries; returns those that are missing.

        Without entries, it still raises if the store fails.
        """

    async def remove_expired(
        self, channels: Sequence[ChannelKey], leave_event: LeaveEventFactory
    ) -> Sequence[tuple[ChannelKey, PresenceChange]]:
        """Removes the expired entries of these channels, each once even if several nodes call it; returns the changes."""

    async def expired(self, channels: Sequence[ChannelKey]) -> Sequence[ExpiredEntry]:
        """Returns expired entries of these channels, and removes none. It may leave out some of a channel with hundreds."""

    async def find_all(self, users: Sequence[tuple[ChannelKey, str]]) -> Sequence[FoundUser | None]:
        """Looks up users of channels. Returns them in the same order; None for one who is not in the channel."""

    async def members(self, channel: ChannelKey, limit: int) -> tuple[int, Sequence[Member]]:
        """Returns the number of users, and the first `limit` of them by name."""

    async def count(self, channel: ChannelKey) -> int:
        """Returns the number of users."""

    async def counts(self, channels: Sequence[ChannelKey]) -> Sequence[int]:
        """Returns the number of users in each of many channels, in few round trips. This is not one atomic step."""
