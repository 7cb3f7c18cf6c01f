"""Reads and writes the heads of channels, and begins a new epoch when NATS has lost something."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from service.adapters.nats.config import NatsConfig
from service.adapters.nats.connection.jetstream import CONFLICT_BACKOFF, SequenceConflictError, Stream, Write
from service.adapters.nats.records import ChannelHead, SeenHead, decode, encode, new_head
from service.adapters.nats.seen_heads import SeenHeads, must_end_epoch
from service.adapters.nats.subjects import Subjects
from service.adapters.store.retry import retry
from service.core.backoff import Backoff
from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds

MAX_CACHED = 10_000
"""Channels whose head is cached after a publish; for others, a publish reads it first."""
MAX_BATCH = 200
"""Heads of empty channels that are renewed in one batch."""


class StoredHead(NamedTuple):
    """A head, and the sequence of its message; 0 if it is not stored yet."""

    sequence: int
    head: ChannelHead


class HeadStore:
    """The heads in the stream, with a cache for publishing."""

    def __init__(self, config: NatsConfig, subjects: Subjects, stream: Stream, seen: SeenHeads, clock: Clock) -> None:
        self._config = config
        self._subjects = subjects
        self._stream = stream
        self._seen = seen
        self._clock = clock
        self._cache: OrderedDict[ChannelKey, StoredHead] = OrderedDict()
        self._published: OrderedDict[ChannelKey, SeenHead] = OrderedDict()
        """The newest publication of this node in each channel without a cached head. The stream must contain it."""

    # --- the cache ------------------------------------------------------------------------------------------------------

    def cached(self, channel: ChannelKey) -> StoredHead | None:
        """Returns the cached head."""
        return self._cache.get(channel)

    def cache(self, channel: ChannelKey, stored: StoredHead) -> None:
        """Caches a head that was written, which saves the next publish a read."""
        self._cache[channel] = stored
        self._cache.move_to_end(channel)
        if len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)

    def evict(self, channel: ChannelKey) -> None:
        """Removes an outdated head from the cache. The stream must still contain what the head says."""
        stored = self._cache.pop(channel, None)
        if stored is not None:
            self._published[channel] = stored.head.seen
            self._published.move_to_end(channel)
            if len(self._published) > MAX_CACHED:
                self._published.popitem(last=False)

    def evict_all(self) -> None:
        """Removes all heads from the cache, after a reconnect. The stream must still contain what they say."""
        for channel, stored in list(self._cache.items()):
            seen = self._seen.get(channel)
            if seen is None or seen.epoch == stored.head.epoch:
                self._seen.record_head(channel, stored.head)
            self.evict(channel)

    def clear(self) -> None:
        """Drops the record of what was published."""
        self._published.clear()

    # --- the stream -----------------------------------------------------------------------------------------------------

    async def load(self, channel: ChannelKey, delivered: SeenHead | None = None) -> StoredHead:
        """Reads a head, or makes one that is not stored yet.

        Begins a new epoch if the stream lacks something that this node has seen, published or `delivered`.
        """
        # Taken before the read: what is seen while the answer is on the way may be newer than the answer.
        seen, is_suspected = self._seen.get(channel), self._seen.is_suspected(channel)
        published = self._published.get(channel)
        message = await self._stream.get_last(self._subjects.head(channel))
        if message is None:
            return StoredHead(0, new_head(milliseconds(self._clock)))
        stored = StoredHead(message.sequence, decode(message.data, ChannelHead))
        lost = next((one for one in (published, delivered) if one is not None and stored.head.lacks(one)), None)
        if must_end_epoch(stored.head, seen, is_suspected=is_suspected):
            lost = seen
        if lost is not None:
            new = stored.head.with_new_epoch(milliseconds(self._clock), lost.epoch)
            stored = await self._write(channel, new, message.sequence)
        if published is not None and self._published.get(channel) is published:
            del self._published[channel]
        if seen is not None and stored.head.epoch != seen.epoch:
            self._seen.record_head(channel, stored.head)
        return stored

    async def load_or_create(self, channel: ChannelKey, *, renew_empty: bool = False) -> StoredHead:
        """Reads a head, and stores it if it was missing. `renew_empty`: extends the life of an empty channel's."""
        stored = await self.load(channel)
        if not stored.sequence or (renew_empty and stored.head.is_empty):
            stored = await self._write(channel, stored.head, stored.sequence)
        return stored

    async def end_epoch(self, channel: ChannelKey, epoch: str) -> None:
        """Begins a new epoch, unless this one has ended already."""
        stored = await self.load(channel)
        if stored.sequence and stored.head.epoch == epoch:
            new = stored.head.with_new_epoch(milliseconds(self._clock))
            stored = await self._write(channel, new, stored.sequence)
            self._seen.record_head(channel, stored.head)

    async def replace(self, channel: ChannelKey, change: Callable[[ChannelHead], ChannelHead]) -> StoredHead:
        """Replaces the head by what `change` returns for it. Retries if another node writes first."""

        async def write() -> StoredHead:
            stored = await self.load(channel)
            head = change(stored.head)
            return StoredHead(await self._stream.write([self.head_write(channel, head, stored.sequence)]), head)

        self.evict(channel)
        return await retry(write, Backoff(*CONFLICT_BACKOFF), SequenceConflictError)

    async def renew_empty(self, sequences: Mapping[ChannelKey, int]) -> Mapping[ChannelKey, int]:
        """Writes the heads of empty channels again, so that they live for another `config.empty_ttl`.

        `sequences`: the sequence that each head had the last time. A head with another one was renewed by another node.
        Returns the channels that are still empty, with the sequences of their heads now.
        """
        subjects = {self._subjects.head(channel): channel for channel in sequences}
        messages = await self._stream.get_last_of(list(subjects))
        heads = {
            subjects[subject]: StoredHead(message.sequence, decode(message.data, ChannelHead))
            for subject, message in messages.items()
        }
        empty = {channel: stored for channel, stored in heads.items() if stored.head.is_empty}
        due = [channel for channel, stored in empty.items() if stored.sequence == sequences[channel]]
        for start in range(0, len(due), MAX_BATCH):
            batch = due[start : start + MAX_BATCH]
            try:
                await self._rewrite(batch, empty)
            except SequenceConflictError:  # another node has written one: the others are renewed without it
                for channel in batch:
                    with suppress(SequenceConflictError):
                        await self._rewrite([channel], empty)
        return {channel: stored.sequence for channel, stored in empty.items()}

    def head_write(self, channel: ChannelKey, head: ChannelHead, last_sequence: int) -> Write:
        """Returns the message that replaces the head with the sequence `last_sequence`."""
        position_ttl = self._config.empty_ttl if head.is_empty else self._config.position_ttl
        ttl = max(position_ttl, head.ttl, head.state_ttl)
        return Write(self._subjects.head(channel), encode(head), ttl, is_rollup=True, last_sequence=last_sequence)

    async def _rewrite(self, channels: Sequence[ChannelKey], heads: dict[ChannelKey, StoredHead]) -> None:
        last = await self._stream.write(
            [self.head_write(channel, heads[channel].head, heads[channel].sequence) for channel in channels]
        )
        for sequence, channel in enumerate(channels, last - len(channels) + 1):
            heads[channel] = StoredHead(sequence, heads[channel].head)

    async def _write(self, channel: ChannelKey, head: ChannelHead, last_sequence: int) -> StoredHead:
        try:
            return StoredHead(await self._stream.write([self.head_write(channel, head, last_sequence)]), head)
        except SequenceConflictError:  # another node was faster
            return await self.load(channel)
