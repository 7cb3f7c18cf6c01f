"""Taking back durable events: the tombstone that replaces one in its stream, and the event that tells of it.

Both have the type `event.removed`, and `data` with the id and the offset of the event that was taken back. A tombstone names
itself: its own id and offset. So a client handles both in one way, wherever it reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication, Retention
from service.core.position import Position

REMOVED_TYPE = "event.removed"
"""A type of the service: contracts cannot declare it."""
MAX_REMOVALS = 100
"""Events that one `event.removed` names, so that it stays small and a removal needs little of a channel's retention."""


class RemovedEvent(Struct, frozen=True, gc=False):
    """An event that was taken back."""

    id: str
    offset: int


class Removed(RemovedEvent, frozen=True, omit_defaults=True):
    """The data of `event.removed`."""

    more: list[RemovedEvent] = msgspec.field(default_factory=list)
    """Further events that were taken back with it."""


def tombstone(event: Event) -> Event:
    """Returns what replaces a durable event in its stream: without data, sender and type, with its id, offset and time."""
    return replace(event, type=REMOVED_TYPE, data=_tombstone_data(event), sender=None, key=None, exclude=None)


def is_tombstone(event: Event) -> bool:
    """True if the event was taken back and this is what is left of it."""
    return event.type == REMOVED_TYPE and event.data == _tombstone_data(event)


def removal_notice(channel: ChannelKey, events: Sequence[Event], retention: Retention | None, at: int) -> Publication:
    """Returns the event that tells subscribers of 1 to MAX_REMOVALS events that were taken back.

    Its id follows from those events. So repeating a removal within the idempotency window tells of it once.
    """
    first, *others = [RemovedEvent(event.id, event.offset or 0) for event in events]
    data = msgspec.json.encode(Removed(first.id, first.offset, others))
    digest = blake2b(events[0].epoch.encode() + data, digest_size=16).hexdigest()
    return Publication(
        channel, REMOVED_TYPE, f"removed-{digest}", Delivery.DURABLE, data, None, at, retention=retention
    )


def value_removal(value: Event, retention: Retention, at: int) -> Publication:
    """Returns the publication that removes a value of the state, if it was not replaced meanwhile."""
    return Publication(
        value.channel,
        value.type,
        f"removed-{blake2b(f'{value.epoch} {value.state_version}'.encode(), digest_size=16).hexdigest()}",
        Delivery.LATEST,
        b"",
        None,
        at,
        value.key,
        retention,
        removed=True,
        if_version=value.state_version,
    )


def epoch_notice(channel: ChannelKey, position: Position, state_version: int) -> Event:
    """Returns the event that shows nodes the new epoch of a channel that was purged.

    It is at the newest position, where no event can follow in the new epoch. So a node takes it for a sign that it has missed
    something, reads the channel, and delivers the event to nobody.
    """
    is_durable = position.offset > 0
    return Event(
        channel,
        REMOVED_TYPE,
        position.id or "",
        Delivery.DURABLE if is_durable else Delivery.LATEST,
        b"{}",
        None,
        0,
        position.offset if is_durable else None,
        None if is_durable else state_version,
        None if is_durable else "",
        position.epoch,
    )


def _tombstone_data(event: Event) -> bytes:
    return msgspec.json.encode(RemovedEvent(event.id, event.offset or 0))
