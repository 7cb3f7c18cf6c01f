"""Publishes that NATS keeps: as many in one batch as may be, all of them or none.

The event, its id, and the channel's head, the last two on condition that nobody else has written them meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain

from service.adapters.nats.config import NatsConfig, Subjects
from service.adapters.nats.connection.jetstream import PAUSES, Conflict, Stream, Write
from service.adapters.nats.head_tracker import Heads, Known
from service.adapters.nats.records import SEGMENT, Entry, Head, Outcome, advance, decode, encode
from service.core.backoff import Backoff
from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Publication, Retention
from service.errors import ServiceError

MAX_IN_BATCH = 300
"""Publications kept together; NATS takes at most 1 000 messages in a batch, and each of these is two, or three with a head."""
BYTES_IN_BATCH = 4_194_304
BATCHES_AT_ONCE = 8
"""Of one node; NATS takes at most 50 of one stream at a time."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A publication that waits to be kept."""

    publication: Publication
    retention: Retention
    done: asyncio.Future[PublishResult]

    def succeed(self, receipt: PublishResult) -> None:
        """Nobody may be waiting any more."""
        if not self.done.done():
            self.done.set_result(receipt)

    def fail(self, error: Exception) -> None:
        """The same."""
        if not self.done.done():
            self.done.set_exception(error)


class Writer:
    """Keeps what waits, in order within each channel. Its task lives as long as there is something to keep."""

    def __init__(self, config: NatsConfig, subjects: Subjects, stream: Stream, heads: Heads, clock: Clock) -> None:
        self._config = config
        self._subjects = subjects
        self._stream = stream
        self._heads = heads
        self._clock = clock
        self._queue: deque[Waiting] = deque()
        self._task: asyncio.Task[None] | None = None

    def keep(self, publication: Publication, retention: Retention) -> asyncio.Future[PublishResult]:
        """Has the publication kept; the future tells what came of it, or the ServiceError."""
        waiting = Waiting(publication, retention, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name="nats publish")
        return waiting.done

    async def close(self) -> None:
        """Returns when nobody waits any more; to be called when there is no connection, so that all who do are told."""
        if self._task is not None:
            await self._task

    async def _write(self) -> None:
        """Keeps what waits, as much of it together as goes into a batch: to NATS a batch costs much more than a message."""
        while self._queue:
            batch = self._next_batch()
            try:
                async with asyncio.timeout(self._config.timeout):
                    await self._keep(batch)
            except Exception as error:  # whoever waits for it gets it
                for one in batch:
                    one.fail(error)

    def _next_batch(self) -> Sequence[Waiting]:
        """The first of the queue, in order within each channel. What NATS does not take twice in a batch, or whose second
        depends on what becomes of the first, waits for the next one, and what follows in its channel with it."""
        batch: list[Waiting] = []
        left: list[Waiting] = []
        claimed: set[str] = set()
        behind: set[ChannelKey] = set()
        size = 0
        while self._queue and len(batch) < MAX_IN_BATCH and len(left) < MAX_IN_BATCH and size < BYTES_IN_BATCH:
            one = self._queue.popleft()
            channel = one.publication.channel
            claims = self._claims(one.publication)
            if one.done.done():  # its publisher does not wait any more
                continue
            if channel in behind or not claimed.isdisjoint(claims):
                behind.add(channel)
                left.append(one)
                continue
            claimed.update(claims)
            batch.append(one)
            size += len(one.publication.data)
        self._queue.extendleft(reversed(left))
        return batch

    def _claims(self, publication: Publication) -> Sequence[str]:
        """The subjects that a batch may hold once."""
        if publication.delivery is Delivery.DURABLE:
            return (self._id_of(publication),)
        value = self._subjects.value(publication.channel, publication.type, publication.key)
        return self._id_of(publication), value

    async def _keep(self, batch: Sequence[Waiting]) -> None:
        """All at once, if no other node publishes into one of the channels meanwhile; else each channel by itself."""
        channels: dict[ChannelKey, list[Waiting]] = {}
        for one in batch:
            channels.setdefault(one.publication.channel, []).append(one)
        if len(channels) > 1:
            # What NATS refuses for one channel's sake is no reason to refuse the others'.
            with suppress(Conflict, ServiceError):
                await self._commit(channels, {})
                return
        gate = asyncio.Semaphore(BATCHES_AT_ONCE)

        async def one_channel(channel: ChannelKey, waiting: Sequence[Waiting]) -> None:
            async with gate:
                try:
                    await self._insist(channel, waiting)
                except ServiceError as error:
                    for one in waiting:
                        one.fail(error)

        await asyncio.gather(*(one_channel(*item) for item in channels.items()))

    async def _insist(self, channel: ChannelKey, batch: Sequence[Waiting]) -> None:
        """Tries until nobody else has come in between, and finds out which of the batch have been published before."""
        expired: dict[str, int] = {}
        backoff = Backoff(*PAUSES)
        while todo := [one for one in batch if not one.done.done()]:
            try:
                await self._commit({channel: todo}, expired)
            except Conflict:
                for one, receipt in zip(todo, await self._outcomes(todo, expired), strict=True):
                    if receipt is not None:
                        one.succeed(receipt)
                await asyncio.sleep(backoff.next())

    async def _commit(self, channels: Mapping[ChannelKey, Sequence[Waiting]], expired: dict[str, int]) -> None:
        """Keeps all or nothing.

        Raises Conflict.
        """
        now = milliseconds(self._clock)
        remembered = {channel: known for channel in channels if (known := self._heads.remembered(channel)) is not None}
        unknown = [channel for channel in channels if channel not in remembered]
        read = zip(unknown, await asyncio.gather(*map(self._heads.known, unknown)), strict=True)
        heads_before = remembered | dict(read)
        writes: list[Write] = []
        receipts: list[PublishResult] = []
        heads: list[tuple[ChannelKey, Head, Head, int]] = []
        for channel, batch in channels.items():
            known = heads_before[channel]
            head, given, made = self._writes(known.head, batch, expired, now)
            receipts += given
            writes += [*made, self._heads.write(channel, head, after=known.sequence)]
            heads.append((channel, known.head, head, len(writes)))
        try:
            last = await self._stream.write(writes)
        except Conflict:
            for channel in channels:
                self._heads.forget(channel)
            raise
        for channel, before, head, place in heads:
            self._heads.remember(channel, Known(last - len(writes) + place, head))
            self._trim(channel, before, head)
        for one, receipt in zip(chain.from_iterable(channels.values()), receipts, strict=True):
            one.succeed(receipt)

    def _writes(
        self, head: Head, batch: Sequence[Waiting], expired: dict[str, int], now: int
    ) -> tuple[Head, list[PublishResult], list[Write]]:
        """The head after the batch, what becomes of each publication, and what is to be written beside the head."""
        receipts, writes = [], []
        for publication, retention in ((one.publication, one.retention) for one in batch):
            head, next_entry = advance(head, publication, retention, now)
            receipts.append(PublishResult(publication.id, head.epoch, next_entry.offset, next_entry.state_version))
            subject = self._id_of(publication)
            outcome = encode(Outcome(head.epoch, next_entry.offset, next_entry.state_version, now))
            window = self._config.idempotency_window
            writes.append(Write(subject, outcome, window, only=True, after=expired.get(subject, 0)))
            writes.append(self._event(next_entry, publication, retention))
        return head, receipts, writes

    def _event(self, what: Entry, publication: Publication, retention: Retention) -> Write:
        channel = publication.channel
        if what.offset is not None:
            return Write(self._subjects.durable(channel, what.offset // SEGMENT), encode(what), retention.ttl)
        subject = self._subjects.value(channel, publication.type, publication.key)
        return Write(subject, encode(what), retention.ttl, only=True)

    def _id_of(self, publication: Publication) -> str:
        return self._subjects.id(publication.channel, publication.sender, publication.id)

    async def _outcomes(self, batch: Sequence[Waiting], expired: dict[str, int]) -> Sequence[PublishResult | None]:
        """What became of each publication earlier; notes the ids that are there although their window is over."""

        async def one(publication: Publication) -> PublishResult | None:
            subject = self._id_of(publication)
            kept = await self._stream.last(subject)
            if kept is None:
                expired.pop(subject, None)
                return None
            outcome = decode(kept.data, Outcome)
            if milliseconds(self._clock) < outcome.accepted + self._config.idempotency_window * 1000:
                return outcome.receipt(publication.id)
            expired[subject] = kept.sequence
            return None

        return await asyncio.gather(*(one(waiting.publication) for waiting in batch))

    def _trim(self, channel: ChannelKey, before: Head, after: Head) -> None:
        """Now and then lets go of what the retention no longer covers; what is left until then does not count."""
        if _passes(before.offset, after.offset, after.entries):
            self._stream.trim(self._subjects.durable(channel), after.entries)
        if _passes(before.state_version, after.state_version, after.state_entries):
            self._stream.trim(self._subjects.state(channel), after.state_entries)


def _passes(before: int, after: int, entries: int) -> bool:
    """Whether it is time to trim: once for every quarter of what is kept."""
    step = max(SEGMENT, entries // 4)
    return before // step != after // step
