"""What the in-memory broker holds: channels with their streams and state, and the bounds on all of them together.

Bytes are an estimate: the data plus what CPython takes for an entry or a channel, measured with tracemalloc on 3.11.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication, Retention
from service.core.position import Position
from service.errors import ErrorCode, ServiceError

CHANNEL_BYTES = 1_700
STREAM_ENTRY_BYTES = 360
STATE_ENTRY_BYTES = 620


class Entry(NamedTuple):
    """A kept event and when it was accepted (monotonic, so that a jump of the wall clock expires nothing)."""

    accepted: float
    event: Event


class Holdings(NamedTuple):
    """What a channel, or all of them, hold."""

    events: int
    state_entries: int
    bytes: int


class StoredChannel:
    """One channel: its stream, its state, and the epoch, offset and id that outlive the entries."""

    __slots__ = (
        "_size",
        "_state",
        "_state_ttl",
        "_stream",
        "_stream_ttl",
        "base",
        "counted",
        "epoch",
        "is_listed",
        "key",
        "last_id",
        "offset",
        "state_version",
        "subscribed",
    )

    def __init__(self, key: ChannelKey, epoch: str) -> None:
        self.key = key
        self.epoch = epoch
        self.base = 0
        """The offset at which the epoch began."""
        self.offset = 0
        self.last_id: str | None = None
        self.state_version = 0
        self.subscribed = False
        self.is_listed = False
        """Whether it is among the names that can be listed; only the store writes it."""
        self.counted = Holdings(0, 0, 0)
        """What the store has counted this channel with; only the store writes it."""
        self._stream: deque[Entry] = deque()
        self._state: OrderedDict[tuple[str, str | None], Entry] = OrderedDict()
        self._stream_ttl = self._state_ttl = 0.0
        self._size = CHANNEL_BYTES

    @property
    def top(self) -> Position:
        """The newest position, whether or not its event is still kept."""
        return Position(self.epoch, self.offset, self.last_id)

    @property
    def is_blank(self) -> bool:
        """Whether nothing was ever kept here, so that forgetting the channel costs nobody an event."""
        return self.offset == 0 and self.state_version == 0

    @property
    def holdings(self) -> Holdings:
        """What it holds now."""
        return Holdings(len(self._stream), len(self._state), self._size)

    @property
    def first(self) -> int:
        """The offset of the oldest kept event; one above the top's if none is."""
        return self.offset - len(self._stream) + 1

    def tail(self, count: int) -> Sequence[Event]:
        """The newest `count` kept events, oldest first."""
        newest = [entry.event for entry in islice(reversed(self._stream), count)]
        newest.reverse()
        return newest

    def between(self, low: int, high: int) -> Sequence[Event]:
        """The kept events with offsets from `low` to `high`, both included."""
        first = self.first
        return [entry.event for entry in islice(self._stream, max(0, low - first), max(0, high - first + 1))]

    def state(self) -> Sequence[Event]:
        """The newest event of every (type, key), by state version."""
        return [entry.event for entry in self._state.values()]

    def growth(self, publication: Publication, retention: Retention) -> int:
        """By how many bytes `keep` would grow the channel (less than zero when more goes than comes)."""
        if retention.entries == 0:
            return 0
        size = _size(publication)
        if publication.delivery is Delivery.DURABLE:
            surplus = max(0, len(self._stream) - retention.entries + 1)
            return size - sum(_size(entry.event) for entry in islice(self._stream, surplus))
        replaced = self._state.get((publication.type, publication.key))
        if replaced is not None:
            return size - _size(replaced.event)
        surplus = max(0, len(self._state) - retention.entries + 1)
        return size - sum(_size(entry.event) for entry in islice(self._state.values(), surplus))

    def keep(self, publication: Publication, retention: Retention, now: float) -> Event:
        """Gives the publication its offset or state version, keeps it, and drops what the retention no longer covers."""
        if publication.delivery is Delivery.DURABLE:
            self.offset += 1
            self.last_id = publication.id
            self._stream_ttl = retention.ttl
            event = accepted(publication, self.epoch, offset=self.offset)
            self._stream.append(Entry(now, event))
            self._size += _size(event)
            while len(self._stream) > retention.entries:
                self._drop_oldest_event()
        else:
            self.state_version += 1
            self._state_ttl = retention.ttl
            event = accepted(publication, self.epoch, state_version=self.state_version)
            replaced = self._state.pop(
                (event.type, event.key), None
            )  # so that the new value goes last: order is by state version
            self._size += _size(event) - (_size(replaced.event) if replaced else 0)
            self._state[event.type, event.key] = Entry(now, event)
            while len(self._state) > retention.entries:
                self._drop_oldest_value()
        return event

    def expire(self, now: float) -> None:
        """Drops what is older than its retention's ttl."""
        while self._stream and self._stream[0].accepted + self._stream_ttl <= now:
            self._drop_oldest_event()
        while self._state and next(iter(self._state.values())).accepted + self._state_ttl <= now:
            self._drop_oldest_value()

    def _drop_oldest_event(self) -> None:
        self._size -= _size(self._stream.popleft().event)

    def _drop_oldest_value(self) -> None:
        self._size -= _size(self._state.popitem(last=False)[1].event)


@dataclass(frozen=True, slots=True)
class StoreBounds:
    """How much all channels together may hold."""

    channels: int
    bytes: int
    empty_ttl: float = 60.0
    """Seconds that a channel is known in which nothing was ever published and nobody is subscribed."""


class ChannelStore:
    """At most so many channels and bytes, so that memory is bounded whatever clients do.

    A channel in which nothing was ever kept is forgotten `empty_ttl` seconds after its last use, unless it has subscribers. To
    make room it forgets whole channels that have no subscribers: first those in which nothing was ever kept (anyone who may
    subscribe can make them, so making many must not push out history), then the least recently used. A forgotten channel
    comes back with a new epoch, which tells every resumer that its history is gone. A channel with subscribers is never
    forgotten; when only those are left, the store refuses.
    """

    def __init__(self, bounds: StoreBounds, new_epoch: Callable[[], str]) -> None:
        self._bounds = bounds
        self._new_epoch = new_epoch
        self._channels: dict[ChannelKey, StoredChannel] = {}
        # Both least recently used first; a channel with subscribers is on neither.
        self._blank: OrderedDict[ChannelKey, float] = OrderedDict()
        """With the time of its last use."""
        self._idle: OrderedDict[ChannelKey, None] = OrderedDict()
        # Channels that hold entries, the one swept longest ago first.
        self._filled: OrderedDict[ChannelKey, None] = OrderedDict()
        self._names: dict[str, list[str]] = {}
        """Each tenant's channels with subscribers or entries, in order."""
        self._total = Holdings(0, 0, 0)
        self._pinned_bytes = 0
        """Of channels with subscribers."""
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def holdings(self) -> Holdings:
        """What all channels together hold."""
        return self._total

    def find(self, key: ChannelKey) -> StoredChannel | None:
        """The channel, if it is known; this is not a use of it."""
        return self._channels.get(key)

    def open(self, key: ChannelKey, now: float) -> StoredChannel:
        """The channel, without what has expired; made if it is unknown. Counts as a use."""
        channel = self._channels.get(key)
        if channel is None:
            self._make_room(CHANNEL_BYTES)
            if len(self._channels) >= self._bounds.channels:
                self._evict_one()
            channel = self._channels[key] = StoredChannel(key, self._new_epoch())
        else:
            channel.expire(now)
        self._recount(channel)
        self._shelve(channel, now)
        return channel

    def keep(self, channel: StoredChannel, publication: Publication, retention: Retention, now: float) -> Event:
        """Keeps a publication in an open channel, or refuses it and changes nothing in that channel."""
        self._unshelve(channel)  # it must not be forgotten to make room for itself
        try:
            self._make_room(channel.growth(publication, retention), beside=channel)
            event = channel.keep(publication, retention, now)
            self._recount(channel)
        finally:
            self._shelve(channel, now)
        return event

    def pin(self, channel: StoredChannel) -> None:
        """Marks an open channel as having subscribers."""
        if not channel.subscribed:
            self._unshelve(channel)
            channel.subscribed = True
            self._list(channel)
            self._pinned_bytes += channel.counted.bytes

    def unpin(self, key: ChannelKey, now: float) -> None:
        """Marks a channel as having none; harmless if it is unknown."""
        channel = self._channels.get(key)
        if channel is not None and channel.subscribed:
            channel.subscribed = False
            self._pinned_bytes -= channel.counted.bytes
            self._list(channel)
            self._shelve(channel, now)

    def sweep(self, now: float, most: int) -> None:
        """Drops what has expired in the `most` channels that were swept longest ago, and at most ten times as many channels
        in which nothing was ever kept."""
        for key, used in list(islice(self._blank.items(), 10 * most)):
            if used + self._bounds.empty_ttl > now:
                break
            self._forget(key)
        for key in list(islice(self._filled, most)):
            self._filled.move_to_end(key)
            channel = self._channels[key]
            channel.expire(now)
            self._recount(channel)

    def named(self, tenant: str, prefix: str, limit: int, now: float) -> Sequence[StoredChannel]:
        """The tenant's channels with subscribers or entries whose names start with `prefix`, by name."""
        names = self._names.get(tenant, [])
        found: list[StoredChannel] = []
        at = bisect_left(names, prefix)
        while len(found) < limit and at < len(names) and names[at].startswith(prefix):
            channel = self._channels[ChannelKey(tenant, names[at])]
            channel.expire(now)
            self._recount(channel)
            if channel.is_listed:  # else it is no longer among the names, and the next one is in its place
                found.append(channel)
                at += 1
        return found

    def clear(self) -> None:
        """Forgets everything."""
        for shelf in (self._channels, self._blank, self._idle, self._filled, self._names):
            shelf.clear()
        self._total, self._pinned_bytes = Holdings(0, 0, 0), 0

    def _list(self, channel: StoredChannel) -> None:
        """Keeps the names that can be listed."""
        is_listed = channel.subscribed or channel.key in self._filled
        if is_listed == channel.is_listed:
            return
        channel.is_listed = is_listed
        tenant, name = channel.key
        names = self._names.setdefault(tenant, [])
        if is_listed:
            insort(names, name)
            return
        del names[bisect_left(names, name)]
        if not names:
            del self._names[tenant]

    def _make_room(self, needed: int, beside: StoredChannel | None = None) -> None:
        if self._total.bytes + needed <= self._bounds.bytes:
            return
        # Whether it can be done is known before anything is given up for it.
        fixed = self._pinned_bytes + (beside.counted.bytes if beside and not beside.subscribed else 0)
        if fixed + needed > self._bounds.bytes:
            raise _full("bytes", self._bounds.bytes)
        while self._total.bytes + needed > self._bounds.bytes:
            self._evict_one()

    def _evict_one(self) -> None:
        shelf = self._blank or self._idle
        if not shelf:
            raise _full("channels", self._bounds.channels)
        self._forget(next(iter(shelf)))
        self.evicted += 1

    def _forget(self, key: ChannelKey) -> None:
        channel = self._channels.pop(key)
        self._unshelve(channel)
        self._filled.pop(key, None)
        self._list(channel)
        self._total = _changed(self._total, channel.counted, Holdings(0, 0, 0))

    def _shelve(self, channel: StoredChannel, now: float) -> None:
        self._unshelve(channel)
        if channel.subscribed:
            return
        if channel.is_blank:
            self._blank[channel.key] = now
        else:
            self._idle[channel.key] = None

    def _unshelve(self, channel: StoredChannel) -> None:
        self._blank.pop(channel.key, None)
        self._idle.pop(channel.key, None)

    def _recount(self, channel: StoredChannel) -> None:
        was, now = channel.counted, channel.holdings
        if was == now:
            return
        channel.counted = now
        self._total = _changed(self._total, was, now)
        if channel.subscribed:
            self._pinned_bytes += now.bytes - was.bytes
        if not now.events and not now.state_entries:
            self._filled.pop(channel.key, None)
        elif channel.key not in self._filled:
            self._filled[channel.key] = None
        self._list(channel)


def accepted(
    publication: Publication, epoch: str = "", offset: int | None = None, state_version: int | None = None
) -> Event:
    """The event that a publication becomes."""
    return Event(
        channel=publication.channel,
        type=publication.type,
        id=publication.id,
        delivery=publication.delivery,
        data=publication.data,
        sender=publication.sender,
        at=publication.at,
        offset=offset,
        state_version=state_version,
        key=publication.key,
        epoch=epoch,
    )


def _size(event: Event | Publication) -> int:
    if event.delivery is Delivery.DURABLE:
        return STREAM_ENTRY_BYTES + len(event.data) + len(event.id)
    return STATE_ENTRY_BYTES + len(event.data) + len(event.id) + len(event.key or "")


def _changed(total: Holdings, was: Holdings, now: Holdings) -> Holdings:
    return Holdings(
        total.events - was.events + now.events,
        total.state_entries - was.state_entries + now.state_entries,
        total.bytes - was.bytes + now.bytes,
    )


def _full(what: str, most: int) -> ServiceError:
    # Not OVERLOADED: that speaks of taking new work, and sends clients to another node, which an in-memory broker doesn't
    # have. To a publisher this is the port's one refusal: nothing was accepted, and the same id may be tried again.
    return ServiceError(
        ErrorCode.BROKER_UNAVAILABLE,
        f"the in-memory broker is full: its {most} {what} are taken by channels that have subscribers",
        bound=what,
        most=most,
    )
