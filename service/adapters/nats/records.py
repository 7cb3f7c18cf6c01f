"""What the stream's messages hold, and what of a channel's messages still counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from service.adapters.nats.connection.link import unavailable
from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.epoch import is_later, new_epoch
from service.core.event import Delivery, Event, Publication, Retention
from service.core.position import Position

SEGMENT = 16
"""Durable events with one subject: a page is read by whole segments, and NATS keeps an index entry for each."""


class Heard(NamedTuple):
    """How far a node knows that a channel had come."""

    epoch: str
    offset: int = 0
    id: str | None = None
    state_version: int = 0
    state_id: str | None = None


class Head(Struct, frozen=True, array_like=True):
    """How far a channel has come; written together with everything that changes it."""

    epoch: str
    offset: int = 0
    id: str | None = None
    """Of the event at `offset`."""
    total: int = 0
    """Bytes of data of all events up to `offset`."""
    entries: int = 0
    """The newest retention of the stream …"""
    ttl: float = 0.0
    at: int = 0
    """When the event at `offset` was accepted, in milliseconds."""
    state_version: int = 0
    state_entries: int = 0
    """… and of the state."""
    state_ttl: float = 0.0
    state_at: int = 0
    """When the value at `state_version` was accepted, in milliseconds."""
    state_id: str | None = None
    """Of the value at `state_version`."""
    base: int | None = None
    """The offset at which the epoch began; None if an older version has begun it."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever published."""
        return not self.offset and not self.state_version

    @property
    def heard(self) -> Heard:
        """What somebody knows who has read this."""
        return Heard(self.epoch, self.offset, self.id, self.state_version, self.state_id)

    def lacks(self, heard: Heard) -> bool:
        """Whether NATS has lost what this node knows of the epoch, or the epoch; maybe others have gone on from what was left."""
        if self.epoch != heard.epoch:
            return is_later(heard.epoch, than=self.epoch)
        return (
            self.offset < heard.offset
            or self.state_version < heard.state_version
            or (self.offset == heard.offset and heard.id is not None and self.id != heard.id)
            or (
                self.state_version == heard.state_version
                and heard.state_id is not None
                and self.state_id != heard.state_id
            )
        )

    @property
    def top(self) -> Position:
        """The newest position, whether or not its event is still kept."""
        return Position(self.epoch, self.offset, self.id)

    @property
    def first(self) -> int:
        """No offset below this one counts."""
        return max(1, self.offset - self.entries + 1)

    def in_new_epoch(self, now: int, known: str = "") -> Head:
        """After NATS has lost something that it had accepted: offsets and state versions go on from what is left.

        `now` in milliseconds; `known`: an epoch that the new one must follow, too."""
        before = known if is_later(known, than=self.epoch) else self.epoch
        return msgspec.structs.replace(self, epoch=new_epoch(now * 1_000, before), base=self.offset)

    def has_history(self, now: int) -> bool:
        """Whether the newest event still counts."""
        return self.offset > 0 and self.entries > 0 and now < self.at + self.ttl * 1000

    def has_state(self, now: int) -> bool:
        """Whether the newest value still counts."""
        return self.state_version > 0 and self.state_entries > 0 and now < self.state_at + self.state_ttl * 1000


def new_head(now: int) -> Head:
    """Of a channel that the stream does not know, or no longer. `now` in milliseconds."""
    return Head(new_epoch(now * 1_000), base=0)


class Entry(Struct, frozen=True, array_like=True):
    """An event."""

    epoch: str
    type: str
    id: str
    delivery: Delivery
    data: bytes
    sender: str | None
    at: int
    offset: int | None
    state_version: int | None
    key: str | None
    accepted: int
    total: int

    def event(self, channel: ChannelKey) -> Event:
        """As the port wants it."""
        return Event(
            channel=channel,
            type=self.type,
            id=self.id,
            delivery=self.delivery,
            data=self.data,
            sender=self.sender,
            at=self.at,
            offset=self.offset,
            state_version=self.state_version,
            key=self.key,
            epoch=self.epoch,
        )


class Outcome(Struct, frozen=True, array_like=True):
    """What became of a publication, under its id."""

    epoch: str
    offset: int | None
    state_version: int | None
    accepted: int

    def receipt(self, id: str) -> PublishResult:
        """For whoever publishes the id again."""
        return PublishResult(id, self.epoch, self.offset, self.state_version, duplicate=True)


R = TypeVar("R", Head, Entry, Outcome)
_encoder = msgspec.msgpack.Encoder()


def encode(record: Head | Entry | Outcome) -> bytes:
    """As a message's data."""
    return _encoder.encode(record)


def decode(data: bytes, kind: type[R]) -> R:
    """Raises ServiceError if somebody else has written to the stream."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise unavailable("the stream holds something that this service has not written") from error


def advance(head: Head, publication: Publication, retention: Retention, now: int) -> tuple[Head, Entry]:
    """The publication as the channel's next event, and the head after it."""
    if publication.delivery is Delivery.DURABLE:
        after = msgspec.structs.replace(
            head,
            offset=head.offset + 1,
            id=publication.id,
            total=head.total + len(publication.data),
            entries=retention.entries,
            ttl=retention.ttl,
            at=now,
        )
        return after, entry(publication, now, head.epoch, offset=after.offset, total=after.total)
    after = msgspec.structs.replace(
        head,
        state_version=head.state_version + 1,
        state_entries=retention.entries,
        state_ttl=retention.ttl,
        state_at=now,
        state_id=publication.id,
    )
    return after, entry(publication, now, head.epoch, state_version=after.state_version)


def entry(
    publication: Publication,
    now: int,
    epoch: str = "",
    offset: int | None = None,
    state_version: int | None = None,
    total: int = 0,
) -> Entry:
    """What is written for a publication."""
    return Entry(
        epoch=epoch,
        type=publication.type,
        id=publication.id,
        delivery=publication.delivery,
        data=publication.data,
        sender=publication.sender,
        at=publication.at,
        offset=offset,
        state_version=state_version,
        key=publication.key,
        accepted=now,
        total=total,
    )


def unbroken(head: Head, entries: Iterable[Entry], now: int) -> Sequence[Entry]:
    """Of the entries those that still count, ending at the newest offset given, without a hole; oldest first.

    A hole is there when a retention was longer than the ones after it: NATS drops each event by its own.
    """
    alive = {
        one.offset: one
        for one in entries
        if one.offset is not None and head.first <= one.offset <= head.offset and now < one.accepted + head.ttl * 1000
    }
    if not alive:
        return ()
    found = [alive[max(alive)]]
    while (before := alive.get((found[-1].offset or 0) - 1)) is not None:
        found.append(before)
    found.reverse()
    return found


def values(head: Head, entries: Iterable[Entry], now: int) -> Sequence[Entry]:
    """Of the state those values that still count, by state version."""
    alive = [one for one in entries if one.state_version is not None and now < one.accepted + head.state_ttl * 1000]
    alive.sort(key=lambda one: one.state_version or 0)
    return alive[-head.state_entries :] if head.state_entries else ()


def segments(low: int, high: int) -> range:
    """The segments that hold the offsets from `low` to `high`."""
    return range(low // SEGMENT, high // SEGMENT + 1)
