"""Takes back events at NATS: replaces single ones by tombstones, and purges channels."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from service.adapters.nats.connection.jetstream import CONFLICT_BACKOFF, Stream, Write
from service.adapters.nats.head_store import HeadStore
from service.adapters.nats.records import (
    SEGMENT_SIZE,
    ChannelHead,
    EventRecord,
    decode,
    encode,
)
from service.adapters.nats.subjects import Subjects
from service.core.backoff import Backoff
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Event

MAX_TRIES = 5
"""Attempts to read events from a replica that is behind."""


class _Stored(NamedTuple):
    sequence: int
    record: EventRecord


class EventRemover:
    """Writes tombstones and erases events."""

    def __init__(self, subjects: Subjects, stream: Stream, heads: HeadStore, clock: Clock) -> None:
        self._subjects = subjects
        self._stream = stream
        self._heads = heads
        self._clock = clock

    async def remove(self, channel: ChannelKey, events: Sequence[Event]) -> Sequence[bool]:
        """Returns for each event whether it is a tombstone now. A repeated call completes one that failed."""
        head = (await self._heads.load(channel)).head
        found = await self._find(channel, events)
        now = milliseconds(self._clock)
        writes: list[Write] = []
        outdated: list[int] = []
        for stored in found.values():
            originals = [one for one in stored if not one.record.is_tombstone]
            outdated += [one.sequence for one in originals]
            if originals and len(originals) == len(stored):
                writes.append(self._tombstone(channel, originals[-1].record, head, now))
        if writes:
            await self._stream.write(writes)
        await asyncio.gather(*map(self._stream.erase, outdated))
        return [any(head.covers(one.record, now) for one in found[event.offset or 0]) for event in events]

    def _tombstone(self, channel: ChannelKey, record: EventRecord, head: ChannelHead, now: int) -> Write:
        """Returns the message that replaces an event for readers. It expires with the event."""
        subject = self._subjects.durable(channel, (record.offset or 0) // SEGMENT_SIZE)
        ttl = max(0.0, head.ttl - (now - record.accepted) / 1000)
        return Write(subject, encode(record.tombstone(channel)), ttl)

    async def purge(self, channel: ChannelKey) -> ChannelHead | None:
        """Returns the head of the new epoch; None for an empty channel."""
        stored = await self._heads.load(channel)
        if stored.head.is_empty:
            return None
        new = await self._heads.replace(channel, lambda head: head.purged(milliseconds(self._clock)))
        for pattern in (self._subjects.durable(channel), self._subjects.state(channel)):
            await self._stream.purge_before(pattern, new.sequence)
        return new.head

    async def _find(self, channel: ChannelKey, events: Sequence[Event]) -> Mapping[int, list[_Stored]]:
        """Returns the messages of each event, by offset: the event, its tombstone, or both after a call that failed."""
        ids = {event.offset or 0: event.id for event in events}
        names = [self._subjects.durable(channel, segment) for segment in {offset // SEGMENT_SIZE for offset in ids}]
        backoff = Backoff(*CONFLICT_BACKOFF)
        for remaining in reversed(range(MAX_TRIES)):
            found: dict[int, list[_Stored]] = {offset: [] for offset in ids}
            for message in await self._stream.get_all(names):
                record = decode(message.data, EventRecord)
                if record.offset is not None and ids.get(record.offset) == record.id:
                    found[record.offset].append(_Stored(message.sequence, record))
            # An event that is missing has expired, or the replica that answered does not have it yet.
            if all(found.values()) or not self._stream.is_replicated or not remaining:
                return found
            await asyncio.sleep(backoff.next())
        return {}
