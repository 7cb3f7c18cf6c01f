"""All channels of the in-memory broker, and the limits on them together."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from service.adapters.memory.stored_channel import CHANNEL_BYTES, Holdings, StoredChannel
from service.core.channel import ChannelKey
from service.core.event import Event, Publication, Retention
from service.core.limits import EMPTY_TTL
from service.errors import ErrorCode, ServiceError


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much all channels together may hold."""

    max_channels: int
    max_bytes: int
    empty_ttl: float = EMPTY_TTL
    """Seconds that an empty channel without subscribers is kept."""
    removal_ttl: float = 300.0
    """Seconds that a removal is kept."""


class ChannelStore:
    """Holds a limited number of channels and bytes, whatever clients do.

    An empty channel without subscribers is dropped `empty_ttl` seconds after its last use. To free space, the store
    evicts whole channels without subscribers: first empty ones, then the least recently used. Anyone who may subscribe
    can create many empty channels, and these must not evict history. An evicted channel returns with a new epoch, so
    clients notice that their history is lost. A channel with subscribers is never evicted: if only such channels are
    left, the store refuses.
    """

    def __init__(self, limits: StoreLimits, new_epoch: Callable[[], str]) -> None:
        self._limits = limits
        self._new_epoch = new_epoch
        self._channels: dict[ChannelKey, StoredChannel] = {}
        self.find: Callable[[ChannelKey], StoredChannel | None] = self._channels.get
        """Returns a channel if it is known. Does not count as a use."""
        # `_empty` and `_idle` begin with the least recently used. A channel with subscribers is in neither.
        self._empty: OrderedDict[ChannelKey, float] = OrderedDict()
        """Empty channels, with the time of their last use."""
        self._idle: OrderedDict[ChannelKey, None] = OrderedDict()
        """Other channels."""
        self._filled: OrderedDict[ChannelKey, None] = OrderedDict()
        """Channels with entries or removals, the one that `sweep` checked longest ago first."""
        self._listed = _ListedNames()
        self._total = Holdings()
        self._subscribed_bytes = 0
        """Bytes of channels with subscribers."""
        self.evicted = 0
        """Channels that were evicted."""

    def __len__(self) -> int:
        return len(self._channels)

    @property
    def holdings(self) -> Holdings:
        """What all channels together hold."""
        return self._total

    def open(self, key: ChannelKey, now: float) -> StoredChannel:
        """Returns a channel without expired entries; creates it if it is unknown. Counts as a use."""
        channel = self._channels.get(key)
        if channel is None:
            self._free(CHANNEL_BYTES)
            if len(self._channels) >= self._limits.max_channels:
                self._evict_one()
            channel = self._channels[key] = StoredChannel(key, self._new_epoch())
        else:
            channel.expire(now)
        self._recount(channel)
        self._make_evictable(channel, now)
        return channel

    def append(self, channel: StoredChannel, publication: Publication, retention: Retention, now: float) -> Event:
        """Stores a publication in an open channel, or raises ServiceError and changes nothing in that channel."""
        self._make_unevictable(channel)  # it must not be evicted to free space for itself
        try:
            self._free(channel.growth(publication, retention), for_channel=channel)
            event = channel.append(publication, retention, now, self._limits.removal_ttl)
            self._recount(channel)
        finally:
            self._make_evictable(channel, now)
        return event

    def remove(self, channel: StoredChannel, events: Sequence[Event], now: float) -> Sequence[bool]:
        """Replaces durable events by their tombstones. False for each that is not stored. Does not count as a use."""
        channel.expire(now)
        removed = [channel.remove(event) for event in events]
        self._recount(channel)
        return removed

    def purge(self, channel: StoredChannel) -> None:
        """Drops what a channel holds, and begins a new epoch."""
        channel.purge(self._new_epoch())
        self._recount(channel)

    def subscribe(self, channel: StoredChannel) -> None:
        """Marks an open channel as subscribed."""
        if not channel.is_subscribed:
            self._make_unevictable(channel)
            channel.is_subscribed = True
            self._update_listing(channel)
            self._subscribed_bytes += channel.counted.bytes

    def unsubscribe(self, key: ChannelKey, now: float) -> None:
        """Marks a channel as not subscribed. Harmless if it is unknown."""
        channel = self._channels.get(key)
        if channel is not None and channel.is_subscribed:
            channel.is_subscribed = False
            self._subscribed_bytes -= channel.counted.bytes
            self._update_listing(channel)
            self._make_evictable(channel, now)

    def sweep(self, now: float, max_channels: int) -> None:
        """Drops expired entries in the `max_channels` that were checked longest ago, and ten times as many empty channels."""
        for key, last_use in list(islice(self._empty.items(), 10 * max_channels)):
            if last_use + self._limits.empty_ttl > now:
                break
            self._drop(key)
        for key in list(islice(self._filled, max_channels)):
            self._filled.move_to_end(key)
            channel = self._channels[key]
            channel.expire(now)
            self._recount(channel)

    def list_channels(self, tenant: str, prefix: str, limit: int, after: str, now: float) -> Sequence[StoredChannel]:
        """Returns the tenant's channels with subscribers or entries whose names start with `prefix` and come after `after`."""
        found: list[StoredChannel] = []
        name = self._listed.next_name(tenant, max(prefix, after), is_included=after < prefix or not after)
        while len(found) < limit and name is not None and name.startswith(prefix):
            channel = self._channels[ChannelKey(tenant, name)]
            channel.expire(now)
            self._recount(channel)  # which may remove it from the names
            if channel.is_listed:
                found.append(channel)
            name = self._listed.next_name(tenant, name, is_included=False)
        return found

    def clear(self) -> None:
        """Drops everything."""
        for channels in (self._channels, self._empty, self._idle, self._filled):
            channels.clear()
        self._listed.clear()
        self._total, self._subscribed_bytes = Holdings(), 0

    def _update_listing(self, channel: StoredChannel) -> None:
        is_listed = channel.is_subscribed or bool(channel.counted.events or channel.counted.state_entries)
        if is_listed != channel.is_listed:
            channel.is_listed = is_listed
            (self._listed.add if is_listed else self._listed.remove)(channel.key)

    def _free(self, needed: int, for_channel: StoredChannel | None = None) -> None:
        """Evicts channels until `needed` bytes are free. Raises ServiceError, before it evicts any, if that is impossible."""
        if self._total.bytes + needed <= self._limits.max_bytes:
            return
        fixed = self._subscribed_bytes
        if for_channel is not None and not for_channel.is_subscribed:
            fixed += for_channel.counted.bytes
        if fixed + needed > self._limits.max_bytes:
            raise _full("bytes", self._limits.max_bytes)
        while self._total.bytes + needed > self._limits.max_bytes:
            self._evict_one()

    def _evict_one(self) -> None:
        candidates = self._empty or self._idle
        if not candidates:
            raise _full("channels", self._limits.max_channels)
        self._drop(next(iter(candidates)))
        self.evicted += 1

    def _drop(self, key: ChannelKey) -> None:
        channel = self._channels.pop(key)
        self._make_unevictable(channel)
        self._filled.pop(key, None)
        self._total = self._total.replaced(channel.counted, Holdings())
        channel.counted = Holdings()
        self._update_listing(channel)

    def _make_evictable(self, channel: StoredChannel, now: float) -> None:
        self._make_unevictable(channel)
        if channel.is_subscribed:
            return
        if channel.is_empty:
            self._empty[channel.key] = now
        else:
            self._idle[channel.key] = None

    def _make_unevictable(self, channel: StoredChannel) -> None:
        self._empty.pop(channel.key, None)
        self._idle.pop(channel.key, None)

    def _recount(self, channel: StoredChannel) -> None:
        before, after = channel.counted, channel.holdings
        if before == after:
            return
        channel.counted = after
        self._total = self._total.replaced(before, after)
        if channel.is_subscribed:
            self._subscribed_bytes += after.bytes - before.bytes
        if not after.events and channel.state.is_empty:
            self._filled.pop(channel.key, None)
        elif channel.key not in self._filled:
            self._filled[channel.key] = None
        self._update_listing(channel)


class _ListedNames:
    """The names of the channels that can be listed, in order."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, key: ChannelKey) -> None:
        """Adds a name that is not there."""
        insort(self._names.setdefault(key.tenant, []), key.name)

    def remove(self, key: ChannelKey) -> None:
        """Removes a name that is there."""
        names = self._names[key.tenant]
        del names[bisect_left(names, key.name)]
        if not names:
            del self._names[key.tenant]

    def next_name(self, tenant: str, name: str, *, is_included: bool) -> str | None:
        """Returns the first name of a tenant after `name`, or from it on if `is_included`."""
        names = self._names.get(tenant, [])
        index = bisect_left(names, name)
        if not is_included and index < len(names) and names[index] == name:
            index += 1
        return names[index] if index < len(names) else None

    def clear(self) -> None:
        """Forgets all names."""
        self._names.clear()


def _full(what: str, limit: int) -> ServiceError:
    # Not OVERLOADED, which sends clients to another node: there is no other node here. A publisher may retry the same
    # id.
    return ServiceError(
        ErrorCode.BROKER_UNAVAILABLE,
        f"the in-memory broker is full: its {limit} {what} are taken by channels that have subscribers",
        bound=what,
        most=limit,
    )
