"""One channel of the in-memory broker.

Bytes are an estimate: the data, plus what CPython takes for an entry or a channel, measured with tracemalloc on 3.11.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple

from service.adapters.memory.stored_state import StoredState
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication, Retention, accepted_event
from service.core.position import Position
from service.core.removal import is_tombstone, tombstone

CHANNEL_BYTES = 1_700
STREAM_ENTRY_BYTES = 360


class Entry(NamedTuple):
    """A stored event, and when it was accepted (monotonic, so a jump of the wall clock expires nothing)."""

    accepted: float
    event: Event


class Holdings(NamedTuple):
    """What one channel, or all of them, hold."""

    events: int = 0
    state_entries: int = 0
    bytes: int = 0

    def replaced(self, before: Holdings, after: Holdings) -> Holdings:
        """Returns this total after one channel has changed."""
        return Holdings(
            self.events - before.events + after.events,
            self.state_entries - before.state_entries + after.state_entries,
            self.bytes - before.bytes + after.bytes,
        )


_NO_STREAM: deque[Entry] = deque(maxlen=0)
_NO_STATE = StoredState()
# All channels without entries share both: an empty deque takes 600 bytes, and most channels of a node have only ephemeral events.


class StoredChannel:
    """A stream, a state, and the epoch, offset and id that outlive the entries."""

    __slots__ = (
        "_size",
        "_stream",
        "_stream_ttl",
        "counted",
        "epoch",
        "epoch_start",
        "is_listed",
        "is_subscribed",
        "key",
        "last_id",
        "offset",
        "state",
        "state_version",
    )

    def __init__(self, key: ChannelKey, epoch: str) -> None:
        self.key = key
        self.epoch = epoch
        self.epoch_start = 0
        """The offset at which the epoch began."""
        self.offset = 0
        self.last_id: str | None = None
        self.state_version = 0
        self.is_subscribed = False
        """Whether it has subscribers; only the store writes it."""
        self.is_listed = False
        """Whether it is among the names that can be listed; only the store writes it."""
        self.counted = Holdings()
        """The holdings that the store has counted; only the store writes it."""
        self._stream = _NO_STREAM
        self.state = _NO_STATE
        self._stream_ttl = 0.0
        self._size = CHANNEL_BYTES
        """Bytes of all but the state."""

    @property
    def position(self) -> Position:
        """The newest position, whether or not its event is still stored."""
        return Position(self.epoch, self.offset, self.last_id)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever stored, so that evicting the channel loses no event."""
        return self.offset == 0 and self.state_version == 0

    @property
    def holdings(self) -> Holdings:
        """What it holds now."""
        state = self.state
        return Holdings(len(self._stream), len(state.values), self._size + state.size)

    @property
    def first(self) -> int:
        """The offset of the oldest stored event; the next offset if there is none."""
        return self.offset - len(self._stream) + 1

    def newest(self, count: int) -> Sequence[Event]:
        """Returns the newest `count` stored events, oldest first."""
        events = [entry.event for entry in islice(reversed(self._stream), count)]
        events.reverse()
        return events

    def between(self, low: int, high: int) -> Sequence[Event]:
        """Returns the stored events with offsets from `low` to `high`, both included."""
        first = self.first
        return [entry.event for entry in islice(self._stream, max(0, low - first), max(0, high - first + 1))]

    def growth(self, publication: Publication, retention: Retention) -> int:
        """Returns by how many bytes `append` would grow the channel; negative if it drops more than it adds."""
        if retention.entries == 0:
            return 0
        if publication.delivery is not Delivery.DURABLE:
            return self.state.growth(publication, retention)
        surplus = max(0, len(self._stream) - retention.entries + 1)
        return _size(publication) - sum(_size(entry.event) for entry in islice(self._stream, surplus))

    def append(self, publication: Publication, retention: Retention, now: float, removal_ttl: float = 0.0) -> Event:
        """Stores a publication under the next offset or state version, and drops what the retention does not cover.

        `removal_ttl`: seconds that a removal is kept.
        """
        if publication.delivery is Delivery.DURABLE:
            self.offset += 1
            self.last_id = publication.id
            self._stream_ttl = retention.ttl
            event = accepted_event(publication, self.epoch, offset=self.offset)
            if self._stream is _NO_STREAM:
                self._stream = deque()
            self._stream.append(Entry(now, event))
            self._size += _size(event)
            while len(self._stream) > retention.entries:
                self._drop_oldest_event()
        else:
            self.state_version += 1
            event = accepted_event(publication, self.epoch, state_version=self.state_version)
            if self.state is _NO_STATE:
                self.state = StoredState()
            if event.removed:
                self.state.remove(event, retention, now + removal_ttl)
            else:
                self.state.put(event, retention, now)
        return event

    def remove(self, event: Event) -> bool:
        """Replaces a stored durable event by its tombstone. False if it is not stored."""
        index = (event.offset or 0) - self.first
        if not 0 <= index < len(self._stream) or self._stream[index].event.id != event.id:
            return False
        stored = self._stream[index]
        removed = stored.event if is_tombstone(stored.event) else tombstone(stored.event)
        self._stream[index] = stored._replace(event=removed)
        self._size += _size(removed) - _size(stored.event)
        return True

    def purge(self, epoch: str) -> None:
        """Drops all entries, and begins an epoch, in which offsets and state versions continue."""
        self.epoch, self.epoch_start = epoch, self.offset
        self._stream, self.state = _NO_STREAM, _NO_STATE
        self._size = CHANNEL_BYTES

    def expire(self, now: float) -> None:
        """Drops entries that are older than the TTL of their retention."""
        while self._stream and self._stream[0].accepted + self._stream_ttl <= now:
            self._drop_oldest_event()
        if self.state is not _NO_STATE:
            self.state.expire(now)

    def _drop_oldest_event(self) -> None:
        self._size -= _size(self._stream.popleft().event)


def _size(event: Event | Publication) -> int:
    return STREAM_ENTRY_BYTES + len(event.data) + len(event.id)
