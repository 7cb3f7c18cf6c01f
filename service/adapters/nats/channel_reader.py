"""Channels as NATS has kept them, read in one piece although they go on changing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from service.adapters.nats.config import Subjects
from service.adapters.nats.connection.jetstream import PAUSES, Stream
from service.adapters.nats.connection.link import unavailable
from service.adapters.nats.head_tracker import Heads
from service.adapters.nats.records import Entry, Head, decode, segments, unbroken, values
from service.core.backoff import Backoff
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Event
from service.core.position import Position, events_after

TRIES = 5
"""Readings of a channel that changes under them, or by a replica that is behind, before what was read has to do."""


class Read(NamedTuple):
    """What was read of a channel."""

    head: Head
    state: Sequence[Entry]


class Reader:
    """Reads, and begins a channel that is not there yet, so that whoever reads it has a position."""

    def __init__(self, subjects: Subjects, stream: Stream, heads: Heads, clock: Clock) -> None:
        self._subjects = subjects
        self._stream = stream
        self._heads = heads
        self._clock = clock

    async def read(self, channel: ChannelKey) -> Read:
        """The head, and the values up to it."""
        backoff = Backoff(*PAUSES)
        for remaining in reversed(range(TRIES)):
            head = (await self._heads.open(channel)).head
            if not head.state_version:
                return Read(head, ())
            state = [decode(one.data, Entry) for one in await self._stream.all_of([self._subjects.state(channel)])]
            newest = max((one.state_version or 0 for one in state), default=0)
            now = milliseconds(self._clock)
            if (
                newest == head.state_version
                or not head.has_state(now)
                or (newest > head.state_version and not remaining)
            ):
                return Read(head, values(head, state, now))
            await asyncio.sleep(backoff.next())
        raise unavailable("JetStream's replicas are too far behind")

    async def missed(
        self, channel: ChannelKey, head: Head, since: Position, max_events: int, max_bytes: int
    ) -> Sequence[Event] | None:
        """The events after a position, or None if they cannot be had, or are too many."""
        behind = head.offset - since.offset
        if since.epoch != head.epoch or behind < 0 or behind > max_events or since.offset < head.first - 1:
            return None
        if behind == 0:
            return events_after(since, head.top, ())
        if since.offset:
            # Before the rest is read, its size: the event at the position tells it.
            start = await self._entries(channel, head, since.offset, since.offset)
            if not start or start[0].id != since.id or head.total - start[0].total > max_bytes:
                return None
        elif head.total > max_bytes:
            return None
        kept = await self._entries(channel, head, max(1, since.offset), head.offset)
        if not kept or kept[-1].offset != head.offset:
            return None
        return events_after(since, head.top, [one.event(channel) for one in kept])

    async def _entries(self, channel: ChannelKey, head: Head, low: int, high: int) -> Sequence[Entry]:
        """Those from `low` to `high` that still count, without a hole before the newest."""
        subjects = [self._subjects.durable(channel, segment) for segment in segments(low, high)]
        backoff = Backoff(*PAUSES)
        for remaining in reversed(range(TRIES)):
            kept = [decode(one.data, Entry) for one in await self._stream.all_of(subjects)]
            found = unbroken(head, (one for one in kept if _within(one, low, high)), milliseconds(self._clock))
            # What is not there has expired, or the replica that answered has not got it yet.
            if len(found) == high - low + 1 or not self._stream.replicated or not remaining:
                return found
            await asyncio.sleep(backoff.next())
        return ()

    async def last(self, channel: ChannelKey, head: Head, low: int, high: int, most: int) -> Sequence[Entry]:
        """The last of those between, at most so many."""
        return await self._entries(channel, head, max(low, high - most + 1), high)

    async def earliest(self, channel: ChannelKey, head: Head, low: int, high: int, most: int) -> Sequence[Entry]:
        """The first of those between, at most so many; those that have expired are passed over."""
        found: list[Entry] = []
        size = most
        while low <= high and len(found) < most:
            upto = min(high, low + size - 1)
            part = await self._entries(channel, head, low, upto)
            if found and part and part[0].offset != low:
                found.clear()  # a hole: what counts begins after it
            if not part:
                size *= 4
            found.extend(part)
            low = upto + 1
        return found[:most]


def _within(one: Entry, low: int, high: int) -> bool:
    return one.offset is not None and low <= one.offset <= high
