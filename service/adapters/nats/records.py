"""The records in the stream (heads, events and publish results), and the rules for which events and values are live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from service.adapters.store.errors import unavailable
from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.epoch import is_later, new_epoch
from service.core.event import REMOVED_VALUE_TYPE, Delivery, Event, Publication, Retention
from service.core.position import Position
from service.core.removal import REMOVED_TYPE, epoch_notice, tombstone

SEGMENT_SIZE = 16
"""Durable events that share a subject. A page is read by whole segments, and NATS has an index entry for each subject."""
ENDED_GRACE = 3_600.0
"""Seconds that NATS keeps the message of a value that has ended, and that of a removal. Older versions, which share the store
during a rollout, look for the newest message; without it, they take the store to be behind."""


class SeenHead(NamedTuple):
    """The newest event and value of a channel that a node has seen."""

    epoch: str
    offset: int = 0
    id: str | None = None
    state_version: int = 0
    state_id: str | None = None


class ChannelHead(Struct, frozen=True, array_like=True):
    """The newest position and state version of a channel, written with every change of stream or state. Times are in
    milliseconds."""

    epoch: str
    offset: int = 0
    id: str | None = None
    """Of the event at `offset`."""
    total: int = 0
    """Bytes of data of all events up to `offset`."""
    entries: int = 0
    """The newest retention of the stream."""
    ttl: float = 0.0
    at: int = 0
    """When the event at `offset` was accepted."""
    state_version: int = 0
    state_entries: int = 0
    """The newest retention of the state."""
    state_ttl: float = 0.0
    state_at: int = 0
    """When the value at `state_version` was accepted."""
    state_id: str | None = None
    """Of the value at `state_version`."""
    epoch_start: int | None = None
    """The offset at which the epoch began; None if an older version began it."""
    removal: int = 0
    """The offset of the newest `event.removed`; 0 if there is none. A version without this field drops it."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever published."""
        return not self.offset and not self.state_version

    @property
    def seen(self) -> SeenHead:
        """What a node has seen once it has read this head."""
        return SeenHead(self.epoch, self.offset, self.id, self.state_version, self.state_id)

    @property
    def position(self) -> Position:
        """The newest position, whether or not its event is still stored."""
        return Position(self.epoch, self.offset, self.id)

    @property
    def first(self) -> int:
        """The lowest offset that the retention covers."""
        return max(1, self.offset - self.entries + 1)

    def lacks(self, seen: SeenHead) -> bool:
        """Whether NATS has lost the epoch, or something that a node has seen in it, even if other nodes have published
        since."""
        if self.epoch != seen.epoch:
            return is_later(seen.epoch, than=self.epoch)
        return (
            self.offset < seen.offset
            or self.state_version < seen.state_version
            or (self.offset == seen.offset and seen.id is not None and self.id != seen.id)
            or (
                self.state_version == seen.state_version
                and seen.state_id is not None
                and self.state_id != seen.state_id
            )
        )

    def covers(self, record: EventRecord, now: int) -> bool:
        """Whether the stream still has a durable event, by the retention."""
        return (
            record.offset is not None
            and self.first <= record.offset <= self.offset
            and now < record.accepted + self.ttl * 1000
        )

    @property
    def max_messages(self) -> int:
        """How many of the newest messages of the stream contain all events that the retention covers.

        A tombstone is newer than the event it replaces. So once events were taken back, tombstones of older events may come
        after a covered event: fewer than `entries`, as each of them was covered when it was written.
        """
        return self.entries if self.removal <= self.offset - self.entries else 2 * self.entries

    def with_new_epoch(self, now: int, after: str = "") -> ChannelHead:
        """Returns the head after a loss: offsets and state versions continue in a new epoch, which is also later than
        `after`."""
        previous = after if is_later(after, than=self.epoch) else self.epoch
        return msgspec.structs.replace(self, epoch=new_epoch(now * 1_000, previous), epoch_start=self.offset)

    def purged(self, now: int) -> ChannelHead:
        """Returns the head after a purge: offsets and state versions continue in a new epoch, and nothing before is covered."""
        return msgspec.structs.replace(self.with_new_epoch(now), entries=0, state_entries=0)

    def has_history(self, now: int) -> bool:
        """Whether the newest event has not expired."""
        return self.offset > 0 and self.entries > 0 and now < self.at + self.ttl * 1000

    def has_state(self, now: int) -> bool:
        """Whether the newest value has not expired."""
        return self.state_version > 0 and self.state_entries > 0 and now < self.state_at + self.state_ttl * 1000


def new_head(now: int) -> ChannelHead:
    """Returns the head of a channel that the stream does not contain."""
    return ChannelHead(new_epoch(now * 1_000), epoch_start=0)


class EventRecord(Struct, frozen=True, array_like=True):
    """An event.

    A tombstone has an offset and the class EPHEMERAL, so that no node takes it for a new durable event when NATS delivers it.
    """

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
    ttl: int | None = None
    """Milliseconds after which a value ends. Older versions ignore it."""
    removes: str | None = None
    """The type of the removed value, in the record of a removal. It takes the value's place, with REMOVED_VALUE_TYPE as type and
    0 as `accepted`: so older versions find the newest state version, and do not take it for a value of the state."""
    exclude: str | None = None
    """The id of a connection that does not get the event. Older versions ignore it."""

    def has_ended(self, now: int) -> bool:
        """Whether a value has ended by its own TTL."""
        return self.ttl is not None and now >= self.accepted + self.ttl

    @property
    def is_tombstone(self) -> bool:
        """Whether it replaces a durable event."""
        return self.offset is not None and self.delivery is Delivery.EPHEMERAL

    def tombstone(self, channel: ChannelKey) -> EventRecord:
        """Returns the record that replaces this one."""
        left = tombstone(self.event(channel))
        return msgspec.structs.replace(
            self, type=left.type, delivery=Delivery.EPHEMERAL, data=left.data, sender=None, key=None, exclude=None
        )

    def event(self, channel: ChannelKey, now: int | None = None) -> Event:
        """Returns the event for the port. Without `now`, it was accepted just now."""
        ttl = self.ttl
        if ttl is not None and now is not None:
            ttl = min(ttl, max(1, self.accepted + ttl - now))
        is_removal = self.removes is not None
        return Event(
            channel=channel,
            type=self.type if self.removes is None else self.removes,
            id=self.id,
            delivery=Delivery.DURABLE if self.offset is not None else self.delivery,
            data=b"" if is_removal else self.data,
            sender=self.sender,
            at=self.at,
            offset=self.offset,
            state_version=self.state_version,
            key=self.key,
            epoch=self.epoch,
            ttl=ttl,
            removed=is_removal,
            exclude=self.exclude,
        )


class ResultRecord(Struct, frozen=True, array_like=True):
    """The result of a publish, under its id."""

    epoch: str
    offset: int | None
    state_version: int | None
    accepted: int

    def duplicate(self, id: str) -> PublishResult:
        """Returns the result of a later publish of the same id."""
        return PublishResult(id, self.epoch, self.offset, self.state_version, duplicate=True)


R = TypeVar("R", ChannelHead, EventRecord, ResultRecord)
_encoder = msgspec.msgpack.Encoder()


def encode(record: ChannelHead | EventRecord | ResultRecord) -> bytes:
    """Encodes a record as a message's data."""
    return _encoder.encode(record)


def decode(data: bytes, kind: type[R]) -> R:
    """Decodes a record. Raises ServiceError if another program has written to the stream."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise unavailable("the stream holds something that this service has not written") from error


def append(
    head: ChannelHead, publication: Publication, retention: Retention, now: int
) -> tuple[ChannelHead, EventRecord]:
    """Returns the head after a publication, and the publication's record."""
    if publication.delivery is Delivery.DURABLE:
        after = msgspec.structs.replace(
            head,
            offset=head.offset + 1,
            id=publication.id,
            total=head.total + len(publication.data),
            entries=retention.entries,
            ttl=retention.ttl,
            at=now,
            removal=head.offset + 1 if publication.type == REMOVED_TYPE else head.removal,
        )
        return after, event_record(publication, now, head.epoch, offset=after.offset, total=after.total)
    if publication.removed:
        after = msgspec.structs.replace(head, state_version=head.state_version + 1, state_id=publication.id)
        return after, event_record(publication, 0, head.epoch, state_version=after.state_version)
    after = msgspec.structs.replace(
        head,
        state_version=head.state_version + 1,
        state_entries=retention.entries,
        state_ttl=retention.ttl,
        state_at=now,
        state_id=publication.id,
    )
    return after, event_record(publication, now, head.epoch, state_version=after.state_version)


def event_record(
    publication: Publication,
    now: int,
    epoch: str = "",
    offset: int | None = None,
    state_version: int | None = None,
    total: int = 0,
) -> EventRecord:
    """Returns the record of a publication."""
    return EventRecord(
        epoch=epoch,
        type=REMOVED_VALUE_TYPE if publication.removed else publication.type,
        id=publication.id,
        delivery=publication.delivery,
        data=msgspec.json.encode({"type": publication.type}) if publication.removed else publication.data,
        sender=publication.sender,
        at=publication.at,
        offset=offset,
        state_version=state_version,
        key=publication.key,
        accepted=now,
        total=total,
        ttl=publication.ttl,
        removes=publication.type if publication.removed else None,
        exclude=publication.exclude,
    )


def live_removals(head: ChannelHead, records: Iterable[EventRecord], after: int) -> Sequence[EventRecord]:
    """Returns the removals of the epoch above a state version, by state version."""
    found = [
        record
        for record in records
        if record.removes is not None and record.epoch == head.epoch and (record.state_version or 0) > after
    ]
    return sorted(found, key=lambda record: record.state_version or 0)


def value_life(publication: Publication, retention: Retention, removal_ttl: float) -> float:
    """Returns the seconds that NATS keeps the message of a value or a removal."""
    if publication.removed:
        return max(removal_ttl, ENDED_GRACE)
    if publication.ttl is None:
        return retention.ttl
    return min(retention.ttl, publication.ttl / 1000 + ENDED_GRACE)


def epoch_record(channel: ChannelKey, head: ChannelHead) -> EventRecord:
    """Returns the record that shows nodes the new epoch of a channel that was purged (core/removal.py)."""
    notice = epoch_notice(channel, head.position, head.state_version)
    return EventRecord(
        epoch=head.epoch,
        type=notice.type,
        id=notice.id or head.state_id or "",
        delivery=notice.delivery,
        data=notice.data,
        sender=None,
        at=0,
        offset=notice.offset,
        state_version=notice.state_version,
        key=notice.key,
        accepted=0,
        total=0,
    )


def live_events(head: ChannelHead, records: Iterable[EventRecord], now: int) -> Sequence[EventRecord]:
    """Returns the newest events that have not expired, up to the first gap; oldest first. `records` are in the order of the
    stream, so a tombstone comes after the event that it replaces.

    NATS expires each event by its own TTL, so a gap appears where later events had a shorter retention.
    """
    alive = {record.offset or 0: record for record in records if head.covers(record, now)}
    if not alive:
        return ()
    found = [alive[max(alive)]]
    while (previous := alive.get((found[-1].offset or 0) - 1)) is not None:
        found.append(previous)
    found.reverse()
    return found


def live_values(head: ChannelHead, records: Iterable[EventRecord], now: int) -> Sequence[EventRecord]:
    """Returns the values of the state that have not expired, by state version."""
    alive = [
        record
        for record in records
        if record.state_version is not None
        and record.removes is None
        and now < record.accepted + head.state_ttl * 1000
        and not record.has_ended(now)
    ]
    alive.sort(key=lambda record: record.state_version or 0)
    return alive[-head.state_entries :] if head.state_entries else ()


def segments(low: int, high: int) -> range:
    """Returns the segments of the offsets from `low` to `high`."""
    return range(low // SEGMENT_SIZE, high // SEGMENT_SIZE + 1)
