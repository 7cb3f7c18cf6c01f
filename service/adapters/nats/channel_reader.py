"""Reads consistent states of channels while they change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from service.adapters.nats.connection.jetstream import CONFLICT_BACKOFF, StoredMessage, Stream
from service.adapters.nats.head_store import HeadStore
from service.adapters.nats.records import (
    ChannelHead,
    EventRecord,
    decode,
    live_events,
    live_removals,
    live_values,
    segments,
)
from service.adapters.nats.subjects import Subjects
from service.adapters.store.errors import unavailable
from service.core.backoff import Backoff
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Event
from service.core.position import Position, events_after

MAX_TRIES = 5
"""Attempts to read a channel that changes meanwhile, or whose replica is behind."""
EXPIRED_GROWTH = 4
"""How much larger a read becomes after one that found only expired events."""


class ChannelState(NamedTuple):
    """A head, and the values of the state up to it."""

    head: ChannelHead
    values: Sequence[EventRecord]
    now: int
    """The time of the read, in ms."""


class ChannelReader:
    """Reads channels. Stores a channel that is not stored yet, so that the position which the reader gets stays
    valid."""

    def __init__(self, subjects: Subjects, stream: Stream, heads: HeadStore, clock: Clock) -> None:
        self._subjects = subjects
        self._stream = stream
        self._heads = heads
        self._clock = clock

    async def read_state(self, channel: ChannelKey) -> ChannelState:
        """Reads until the head and the state agree. Raises ServiceError."""
        backoff = Backoff(*CONFLICT_BACKOFF)
        for remaining in reversed(range(MAX_TRIES)):
            head = (await self._heads.load_or_create(channel)).head
            if not head.state_version:
                return ChannelState(head, (), milliseconds(self._clock))
            messages = await self._stream.get_all([self._subjects.state(channel)])
            records = [decode(message.data, EventRecord) for message in messages]
            newest = max((record.state_version or 0 for record in records), default=0)
            now = milliseconds(self._clock)
            is_newer = newest > head.state_version and not remaining
            if newest == head.state_version or not head.has_state(now) or is_newer:
                return ChannelState(head, live_values(head, records, now), now)
            if newest < head.state_version and await self._is_complete(channel, messages):
                return ChannelState(head, live_values(head, records, now), now)  # the newest value has ended
            await asyncio.sleep(backoff.next())
        raise unavailable("JetStream's replicas are too far behind")

    async def read_removals(self, channel: ChannelKey, after: int) -> Sequence[EventRecord]:
        """Returns the removals above a state version."""
        head = (await self._heads.load_or_create(channel)).head
        messages = await self._stream.get_all([self._subjects.state(channel)])
        return live_removals(head, (decode(message.data, EventRecord) for message in messages), after)

    async def _is_complete(self, channel: ChannelKey, messages: Sequence[StoredMessage]) -> bool:
        """Whether the stream's leader has no newer value than these."""
        last = await self._stream.get_last(self._subjects.state(channel))
        return last is None or last.sequence <= max((message.sequence for message in messages), default=0)

    async def read_missed(
        self, channel: ChannelKey, head: ChannelHead, since: Position, max_events: int, max_bytes: int
    ) -> Sequence[Event] | None:
        """Returns the events after a position; None if there may be a gap, or they exceed a limit."""
        behind = head.offset - since.offset
        if since.epoch != head.epoch or behind < 0 or behind > max_events or since.offset < head.first - 1:
            return None
        if behind == 0:
            return events_after(since, head.position, ())
        if since.offset:
            # The size of the events after the position follows from the event at it, so it is checked before they are read.
            start = await self._read_range(channel, head, since.offset, since.offset)
            if not start or start[0].id != since.id or head.total - start[0].total > max_bytes:
                return None
        elif head.total > max_bytes:
            return None
        records = await self._read_range(channel, head, max(1, since.offset), head.offset)
        if not records or records[-1].offset != head.offset:
            return None
        return events_after(since, head.position, [record.event(channel) for record in records])

    async def read_last(
        self, channel: ChannelKey, head: ChannelHead, low: int, high: int, limit: int
    ) -> Sequence[EventRecord]:
        """Returns the last events of a range of offsets."""
        return await self._read_range(channel, head, max(low, high - limit + 1), high)

    async def read_first(
        self, channel: ChannelKey, head: ChannelHead, low: int, high: int, limit: int
    ) -> Sequence[EventRecord]:
        """Returns the first events of a range of offsets that have not expired."""
        found: list[EventRecord] = []
        size = limit
        while low <= high and len(found) < limit:
            end = min(high, low + size - 1)
            part = await self._read_range(channel, head, low, end)
            if found and part and part[0].offset != low:
                found.clear()  # a gap: the page begins after it
            if not part:
                size *= EXPIRED_GROWTH
            found.extend(part)
            low = end + 1
        return found[:limit]

    async def _read_range(self, channel: ChannelKey, head: ChannelHead, low: int, high: int) -> Sequence[EventRecord]:
        """Returns the newest events of a range that have not expired, up to the first gap."""
        subjects = [self._subjects.durable(channel, segment) for segment in segments(low, high)]
        backoff = Backoff(*CONFLICT_BACKOFF)
        for remaining in reversed(range(MAX_TRIES)):
            records = [decode(message.data, EventRecord) for message in await self._stream.get_all(subjects)]
            in_range = (record for record in records if record.offset is not None and low <= record.offset <= high)
            found = live_events(head, in_range, milliseconds(self._clock))
            # A missing event has expired, or the replica that answered does not have it yet.
            if len(found) == high - low + 1 or not self._stream.is_replicated or not remaining:
                return found
            await asyncio.sleep(backoff.next())
        return ()
