"""Writes publishes in batches: each batch is stored as a whole or not at all.

A publish is the event, its result, and the channel's head. The batch fails if another node has written the result or
the head meanwhile.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

from service.adapters.nats.config import NatsConfig
from service.adapters.nats.connection.jetstream import (
    CONFLICT_BACKOFF,
    SequenceConflictError,
    Stream,
    Write,
)
from service.adapters.nats.head_store import HeadStore, StoredHead
from service.adapters.nats.records import (
    SEGMENT_SIZE,
    ChannelHead,
    EventRecord,
    ResultRecord,
    append,
    decode,
    encode,
    live_values,
    value_life,
)
from service.adapters.nats.subjects import Subjects
from service.adapters.store.errors import check_version
from service.adapters.store.retry import retry
from service.core.backoff import Backoff
from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Publication, Retention
from service.errors import ServiceError

MAX_SERVER_BATCH = 1_000
"""Messages that NATS accepts in a batch."""
MAX_BATCH = 300
"""Publishes in one batch."""
assert MAX_BATCH * 3 <= MAX_SERVER_BATCH, "a publish is two messages, and its channel's head a third"  # noqa: S101  # a bound
MAX_BATCH_BYTES = 4_194_304
MAX_PARALLEL_BATCHES = 8
"""Of one node; NATS accepts 50 batches of one stream at a time."""


@dataclass(slots=True, eq=False)
class _PendingPublish:
    """A publish that is not stored yet."""

    publication: Publication
    retention: Retention
    result: asyncio.Future[PublishResult]

    def succeed(self, result: PublishResult) -> None:
        """Sets the result, unless its publisher has given up."""
        if not self.result.done():
            self.result.set_result(result)

    def fail(self, error: Exception) -> None:
        """Fails it, unless its publisher has given up."""
        if not self.result.done():
            self.result.set_exception(error)


class _ChannelUpdate(NamedTuple):
    """How a batch changes one channel's head."""

    channel: ChannelKey
    before: ChannelHead
    after: ChannelHead
    write_number: int
    """The place of the head's message in the batch, from 1."""


class PublishQueue:
    """Stores publishes, in order within each channel. Its task runs while there is something to store."""

    def __init__(self, config: NatsConfig, subjects: Subjects, stream: Stream, heads: HeadStore, clock: Clock) -> None:
        self._config = config
        self._subjects = subjects
        self._stream = stream
        self._heads = heads
        self._clock = clock
        self._queue: deque[_PendingPublish] = deque()
        self._task: asyncio.Task[None] | None = None

    def publish(self, publication: Publication, retention: Retention) -> asyncio.Future[PublishResult]:
        """Queues a publish. The future gets its result, or the ServiceError."""
        pending = _PendingPublish(publication, retention, asyncio.get_running_loop().create_future())
        self._queue.append(pending)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="nats publish queue")
        return pending.result

    async def close(self) -> None:
        """Returns when nothing waits. Called when the connection has ended, so that all publishes fail."""
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        """Stores batches as large as possible: to NATS a batch costs much more than a message."""
        while self._queue:
            batch = self._next_batch()
            try:
                async with asyncio.timeout(self._config.call_timeout):
                    await self._store(batch)
            except Exception as error:  # every publisher gets it
                for pending in batch:
                    pending.fail(error)

    def _next_batch(self) -> Sequence[_PendingPublish]:
        """Takes publishes from the queue, in order within each channel.

        NATS accepts each rollup subject once in a batch, and a second publish of an id depends on the first. Such a publish
        waits for the next batch, and so do those after it in its channel.
        """
        batch: list[_PendingPublish] = []
        postponed: list[_PendingPublish] = []
        used_subjects: set[str] = set()
        postponed_channels: set[ChannelKey] = set()
        size = 0
        while self._queue and len(batch) < MAX_BATCH and len(postponed) < MAX_BATCH and size < MAX_BATCH_BYTES:
            pending = self._queue.popleft()
            channel = pending.publication.channel
            subjects = self._rollup_subjects(pending.publication)
            if pending.result.done():  # its publisher has given up
                continue
            if channel in postponed_channels or not used_subjects.isdisjoint(subjects):
                postponed_channels.add(channel)
                postponed.append(pending)
                continue
            used_subjects.update(subjects)
            batch.append(pending)
            size += len(pending.publication.data)
        self._queue.extendleft(reversed(postponed))
        return batch

    def _rollup_subjects(self, publication: Publication) -> Sequence[str]:
        if publication.delivery is Delivery.DURABLE:
            return (self._result_subject(publication),)
        value = self._subjects.value(publication.channel, publication.type, publication.key)
        return self._result_subject(publication), value

    async def _store(self, batch: Sequence[_PendingPublish]) -> None:
        """Stores all channels in one batch. If another node publishes into one of them meanwhile, stores one batch for
        each channel."""
        channels: dict[ChannelKey, list[_PendingPublish]] = {}
        for pending in batch:
            channels.setdefault(pending.publication.channel, []).append(pending)
        if len(channels) > 1 and all(pending.publication.if_version is None for pending in batch):
            # A refusal because of one channel must not fail the others.
            with suppress(SequenceConflictError, ServiceError):
                await self._commit(channels, {})
                return
        gate = asyncio.Semaphore(MAX_PARALLEL_BATCHES)

        async def store(channel: ChannelKey, waiting: Sequence[_PendingPublish]) -> None:
            async with gate:
                try:
                    await self._store_channel(channel, waiting)
                except ServiceError as error:
                    for pending in waiting:
                        pending.fail(error)

        await asyncio.gather(*(store(*item) for item in channels.items()))

    async def _store_channel(self, channel: ChannelKey, batch: Sequence[_PendingPublish]) -> None:
        """Retries until no other node writes first. Publishes that were accepted before get their earlier results."""
        expired: dict[str, int] = {}

        async def commit() -> None:
            sequences = await self._check_versions(channel, batch, expired)
            if not (pending := [one for one in batch if not one.result.done()]):
                return
            try:
                await self._commit({channel: pending}, expired | sequences)
            except SequenceConflictError:
                results = await self._read_results(pending, expired)
                for one, result in zip(pending, results, strict=True):
                    if result is not None:
                        one.succeed(result)
                raise

        await retry(commit, Backoff(*CONFLICT_BACKOFF), SequenceConflictError)

    async def _commit(
        self, channels: Mapping[ChannelKey, Sequence[_PendingPublish]], expired: Mapping[str, int]
    ) -> None:
        """Stores all or nothing. `expired`: see `_read_results` and `_check_versions`. Raises SequenceConflictError."""
        now = milliseconds(self._clock)
        heads = await self._load_heads(channels)
        writes: list[Write] = []
        results: list[PublishResult] = []
        updates: list[_ChannelUpdate] = []
        for channel, batch in channels.items():
            head = heads[channel].head
            for pending in batch:
                head, record = append(head, pending.publication, pending.retention, now)
                writes += self._publish_writes(head, record, pending, expired, now)
                results.append(PublishResult(pending.publication.id, head.epoch, record.offset, record.state_version))
            writes.append(self._heads.head_write(channel, head, heads[channel].sequence))
            updates.append(_ChannelUpdate(channel, heads[channel].head, head, len(writes)))
        try:
            last_sequence = await self._stream.write(writes)
        except SequenceConflictError:
            for channel in channels:
                self._heads.evict(channel)
            raise
        for update in updates:
            sequence = last_sequence - len(writes) + update.write_number
            self._heads.cache(update.channel, StoredHead(sequence, update.after))
            self._purge(update)
        for pending, result in zip(chain.from_iterable(channels.values()), results, strict=True):
            pending.succeed(result)

    async def _check_versions(
        self, channel: ChannelKey, batch: Sequence[_PendingPublish], expired: dict[str, int]
    ) -> dict[str, int]:
        """Settles the conditional publishes whose result is known, or whose value has another version.

        Returns the subjects of the other values, with the sequences that they must still have when the batch is stored.
        """
        conditional = [one for one in batch if not one.result.done() and one.publication.if_version is not None]
        if not conditional:
            return {}
        results = await self._read_results(conditional, expired)
        head = (await self._load_heads({channel: conditional}))[channel].head
        sequences: dict[str, int] = {}
        for pending, result in zip(conditional, results, strict=True):
            if result is not None:
                pending.succeed(result)
                continue
            publication = pending.publication
            subject = self._subjects.value(channel, publication.type, publication.key)
            message = await self._stream.get_last(subject)
            values = [] if message is None else [decode(message.data, EventRecord)]
            alive = live_values(head, values, milliseconds(self._clock))
            try:
                check_version(publication.if_version or 0, (alive[0].state_version or 0) if alive else 0)
            except ServiceError as error:
                pending.fail(error)
            else:
                sequences[subject] = 0 if message is None else message.sequence
        return sequences

    async def _load_heads(
        self, channels: Mapping[ChannelKey, Sequence[_PendingPublish]]
    ) -> Mapping[ChannelKey, StoredHead]:
        cached = {channel: stored for channel in channels if (stored := self._heads.cached(channel)) is not None}
        others = [channel for channel in channels if channel not in cached]
        loaded = await asyncio.gather(*map(self._heads.load, others))
        return cached | dict(zip(others, loaded, strict=True))

    def _publish_writes(
        self,
        head: ChannelHead,
        record: EventRecord,
        pending: _PendingPublish,
        expired: Mapping[str, int],
        now: int,
    ) -> Sequence[Write]:
        """Returns the messages of one publish, without the head."""
        publication, retention = pending.publication, pending.retention
        subject = self._result_subject(publication)
        result = Write(
            subject,
            encode(ResultRecord(head.epoch, record.offset, record.state_version, now)),
            self._config.idempotency_window,
            is_rollup=True,
            last_sequence=expired.get(subject, 0),
        )
        if record.offset is not None:
            segment = self._subjects.durable(publication.channel, record.offset // SEGMENT_SIZE)
            return result, Write(segment, encode(record), retention.ttl)
        value = self._subjects.value(publication.channel, publication.type, publication.key)
        life = value_life(publication, retention, self._config.idempotency_window)
        return result, Write(value, encode(record), life, is_rollup=True, last_sequence=expired.get(value))

    def _result_subject(self, publication: Publication) -> str:
        return self._subjects.result(publication.channel, publication.sender, publication.id)

    async def _read_results(
        self, batch: Sequence[_PendingPublish], expired: dict[str, int]
    ) -> Sequence[PublishResult | None]:
        """Returns the result of each publish that was accepted before.

        Fills `expired` with the subjects and sequences of results that are stored although their window is over.
        """

        async def read(publication: Publication) -> PublishResult | None:
            subject = self._result_subject(publication)
            message = await self._stream.get_last(subject)
            if message is None:
                expired.pop(subject, None)
                return None
            record = decode(message.data, ResultRecord)
            if milliseconds(self._clock) < record.accepted + self._config.idempotency_window * 1000:
                return record.duplicate(publication.id)
            expired[subject] = message.sequence
            return None

        return await asyncio.gather(*(read(pending.publication) for pending in batch))

    def _purge(self, update: _ChannelUpdate) -> None:
        """Occasionally deletes what the retention no longer covers. Readers ignore it until then."""
        before, after = update.before, update.after
        if _is_purge_due(before.offset, after.offset, after.entries):
            self._stream.purge(self._subjects.durable(update.channel), after.max_messages)
        if _is_purge_due(before.state_version, after.state_version, after.state_entries):
            self._stream.purge(self._subjects.state(update.channel), after.state_entries)


def _is_purge_due(before: int, after: int, entries: int) -> bool:
    """True once for every quarter of the entries that are kept."""
    step = max(SEGMENT_SIZE, entries // 4)
    return before // step != after // step
