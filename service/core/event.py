"""Events on their way from the gate through the broker to the hub.

They are structs: every message makes one, in a tenth of the time of a dataclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from msgspec import Struct

from service.core.channel import ChannelKey


class Delivery(Enum):
    """The delivery class of an event: what every queue guarantees for it."""

    DURABLE = "durable"
    """Kept in the channel's stream, with an offset. Never dropped: a connection too slow for it is closed, and resumes."""
    LATEST = "latest"
    """The newest value of a key. A newer one replaces it in every queue."""
    EPHEMERAL = "ephemeral"
    """No history. Dropped first under pressure, and counted."""

    # Enum's own is a function in Python that hashes the name, and every message asks for it.
    __hash__ = object.__hash__


REMOVED_VALUE_TYPE = "value.removed"
"""The event type under which brokers store a removal. Nodes of a version without removals deliver it as an event of this type."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a channel's stream (durable events) or state (keys of latest events) is kept."""

    entries: int
    """Maximum number of durable events or keys. One more evicts the oldest."""
    ttl: float
    """Seconds from its publish after which an entry expires."""


class Publication(Struct, frozen=True, gc=False):
    """An event that the gate has accepted and the broker has not yet."""

    channel: ChannelKey
    type: str
    id: str
    delivery: Delivery
    data: bytes
    """UTF-8 JSON, checked against the contract."""
    sender: str | None
    """The publishing user; None for the backend and the service itself."""
    at: int
    """Milliseconds since the Unix epoch."""
    key: str | None = None
    """For LATEST and for presence events."""
    retention: Retention | None = None
    """For the stream (DURABLE) or the state (LATEST); None for EPHEMERAL."""
    ttl: int | None = None
    """Milliseconds after which the value ends. Only for LATEST; None if only the retention ends it."""
    removed: bool = False
    """True to remove the value of the key instead of replacing it. Only for LATEST; `data` is empty."""
    if_version: int | None = None
    """The state version that the value of the key must have, 0 for no value; None for any. Only for LATEST."""
    exclude: str | None = None
    """The id of a connection of the sender that does not get the event, or drops it; None for no connection."""


class Event(Struct, frozen=True, gc=False):
    """An event that the broker has accepted."""

    channel: ChannelKey
    type: str
    id: str
    delivery: Delivery
    data: bytes
    sender: str | None
    at: int
    offset: int | None = None
    """Without gaps in a channel's epoch; a new epoch may continue the count. Only for DURABLE."""
    state_version: int | None = None
    """The same, counted apart. Only for LATEST."""
    key: str | None = None
    epoch: str = ""
    """The epoch of offset and state version; empty for EPHEMERAL."""
    ttl: int | None = None
    """Milliseconds after which the value ends, counted from the delivery or the read. None without `Publication.ttl`."""
    removed: bool = False
    """True if the value of the key was removed; `data` is empty."""
    exclude: str | None = None
    """See `Publication.exclude`."""


def last_within(events: Sequence[Event], max_bytes: int) -> Sequence[Event]:
    """Returns the last of the events whose data has at most `max_bytes` bytes together; the very last one in any case."""
    size = 0
    for index in range(len(events) - 1, -1, -1):
        size += len(events[index].data)
        if size > max_bytes:
            return events[min(index + 1, len(events) - 1) :]
    return events or ()


def accepted_event(
    publication: Publication, epoch: str = "", offset: int | None = None, state_version: int | None = None
) -> Event:
    """Returns the event of an accepted publication. An ephemeral event has neither offset nor state version."""
    return Event(  # by position: names would take as long again
        publication.channel,
        publication.type,
        publication.id,
        publication.delivery,
        publication.data,
        publication.sender,
        publication.at,
        offset,
        state_version,
        publication.key,
        epoch,
        publication.ttl,
        publication.removed,
        publication.exclude,
    )
