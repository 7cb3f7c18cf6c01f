"""The Broker of a service that runs as one node: it keeps everything in this process.

A restart loses history and state. A client that resumes detects the loss by the new epoch.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.adapters.memory.channel_store import ChannelStore, StoreLimits
from service.adapters.memory.idempotency_cache import IdempotencyCache
from service.adapters.memory.stored_channel import StoredChannel
from service.adapters.store.errors import check_version, unavailable
from service.core.broker import (
    ChannelInfo,
    DeliveredHead,
    EventSink,
    HistoryPage,
    PublishResult,
    Snapshot,
    StreamHead,
)
from service.core.channel import ChannelKey
from service.core.clock import Clock, Timer
from service.core.event import Delivery, Event, Publication, Retention, accepted_event, last_within
from service.core.limits import EMPTY_TTL
from service.core.position import Position, events_after
from service.core.removal import epoch_notice

_EPHEMERAL = Delivery.EPHEMERAL
SWEEP_INTERVAL = 1.0
MAX_SWEPT_CHANNELS = 500
"""Channels that one sweep checks. This takes about a millisecond, so a sweep causes no visible event loop lag."""


@dataclass(frozen=True, slots=True)
class BrokerStats:
    """What the broker holds, for metrics."""

    channels: int
    events: int
    state_entries: int
    bytes: int
    """An estimate of the memory used."""
    evicted: int
    """Channels that were evicted since the start."""


def _random_epoch() -> str:
    return secrets.token_hex(8)


class MemoryBroker:
    """Keeps the guarantee of the port within one process, limited as `ChannelStore` and `IdempotencyCache` say.

    No method yields to the event loop, so each is atomic, and a channel's order is the order of the calls. If a limit
    is reached and only channels with subscribers are left, publish and subscribe raise BROKER_UNAVAILABLE. `check`
    still succeeds, because calls that need no further space work.
    """

    delivers_synchronously = True

    def __init__(
        self,
        clock: Clock,
        *,
        idempotency_window: float,
        idempotency_entries: int,
        channels: int,
        max_bytes: int,
        empty_ttl: float = EMPTY_TTL,
        new_epoch: Callable[[], str] = _random_epoch,
    ) -> None:
        self._clock = clock
        self._channels = ChannelStore(StoreLimits(channels, max_bytes, empty_ttl, idempotency_window), new_epoch)
        self._results = IdempotencyCache(idempotency_window, idempotency_entries)
        self._sink: EventSink | None = None
        self._is_closed = False
        self._sweep_timer: Timer | None = None

    def stats(self) -> BrokerStats:
        """Returns what is held now, in constant time."""
        events, state_entries, size = self._channels.holdings
        return BrokerStats(len(self._channels), events, state_entries, size, self._channels.evicted)

    async def start(self, sink: EventSink) -> None:
        """Starts the sweeps."""
        if self._is_closed or self._sink is not None:
            raise unavailable("the broker has been started before")
        self._sink = sink
        self._sweep_timer = self._clock.call_later(SWEEP_INTERVAL, self._sweep)

    async def close(self) -> None:
        """Drops everything."""
        self._is_closed = True
        self._sink = None
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._channels.clear()
        self._results.clear()

    async def check(self) -> None:
        """Checks that the broker is started."""
        self._require_sink()

    async def publish(self, publication: Publication) -> PublishResult:
        """Stores and delivers the event.

        Raises ValueError for a durable or latest event without retention: a fault in the caller.
        """
        return self._publish(publication)

    def _publish(self, publication: Publication) -> PublishResult:
        sink = self._sink or self._require_sink()
        if publication.delivery is _EPHEMERAL:
            channel = self._channels.find(publication.channel)
            if channel is not None and channel.is_subscribed:
                sink.deliver(accepted_event(publication))
            return PublishResult(publication.id, "")
        now = self._clock.monotonic()
        if earlier := self._results.find(publication, now):
            return earlier
        channel = self._channels.open(publication.channel, now)
        if publication.if_version is not None:
            check_version(publication.if_version, channel.state.version_of(publication.type, publication.key))
        event = self._channels.append(channel, publication, _retention(publication), now)
        result = PublishResult(event.id, channel.epoch, event.offset, event.state_version)
        self._results.add(publication, result, now)
        if channel.is_subscribed:
            sink.deliver(event)
        return result

    start_publish = _publish
    """Does the same as `publish`, which never waits."""

    async def subscribe(self, channel: ChannelKey) -> None:
        """Keeps the channel from now on, and delivers its events."""
        self._channels.subscribe(self._open(channel))

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """Stops the delivery. The channel may be evicted."""
        self._require_sink()
        self._channels.unsubscribe(channel, self._clock.monotonic())

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        """Copies no more of the stream than was missed, and the tail."""
        stored = self._open(channel)
        missed = None if since is None else _missed(stored, since, max_events)
        if missed is not None and sum(len(event.data) for event in missed) > max_bytes:
            missed = None
        return Snapshot(
            stored.position,
            stored.state.events(self._clock.monotonic()),
            missed or (),
            None if since is None else missed is not None,
            stored.state_version,
            stored.epoch_start,
            last_within(stored.newest(tail), max_bytes) if tail else (),
        )

    async def stream_heads(
        self, channels: Sequence[ChannelKey], delivered: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        """Reads the heads. Ignores `delivered`, because this process never loses what it has delivered."""
        self._require_sink()
        found = map(self._channels.find, channels)
        return [
            StreamHead("", 0, 0)
            if channel is None
            else StreamHead(channel.epoch, channel.offset, channel.state_version)
            for channel in found
        ]

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """Copies the page."""
        stored = self._open(channel)
        low = stored.first if after is None else max(stored.first, after + 1)
        high = stored.offset if before is None else min(stored.offset, before - 1)
        size = max(0, high - low + 1)
        if after is not None:
            events = stored.between(low, min(high, low + limit - 1))
        else:
            events = stored.between(max(low, high - limit + 1), high)
        return HistoryPage(stored.position, events, has_more=size > limit)

    async def removed_values(self, channel: ChannelKey, after: int) -> Sequence[Event]:
        """Reads the channel's removals."""
        return self._open(channel).state.removals(after)

    async def list_channels(self, tenant: str, prefix: str, limit: int, after: str = "") -> Sequence[ChannelInfo]:
        """Lists from the sorted names."""
        self._require_sink()
        found = self._channels.list_channels(tenant, prefix, limit, after, self._clock.monotonic())
        return [ChannelInfo(channel.key.name, channel.position) for channel in found]

    async def remove_events(self, channel: ChannelKey, events: Sequence[Event]) -> Sequence[bool]:
        """Replaces them in the stream."""
        self._require_sink()
        stored = self._channels.find(channel)
        if stored is None:
            return [False] * len(events)
        return self._channels.remove(stored, events, self._clock.monotonic())

    async def purge(self, channel: ChannelKey) -> Position | None:
        """Drops the entries, and delivers an event of the new epoch."""
        sink = self._require_sink()
        stored = self._channels.find(channel)
        if stored is None or stored.is_empty:
            return None
        self._channels.purge(stored)
        if stored.is_subscribed:
            sink.deliver(epoch_notice(channel, stored.position, stored.state_version))
        return stored.position

    def _require_sink(self) -> EventSink:
        if self._sink is None:
            raise unavailable("the broker is closed" if self._is_closed else "the broker is not started yet")
        return self._sink

    def _open(self, channel: ChannelKey) -> StoredChannel:
        self._require_sink()
        return self._channels.open(channel, self._clock.monotonic())

    def _sweep(self) -> None:
        now = self._clock.monotonic()
        self._channels.sweep(now, MAX_SWEPT_CHANNELS)
        self._results.expire(now)
        self._sweep_timer = self._clock.call_later(SWEEP_INTERVAL, self._sweep)


def _retention(publication: Publication) -> Retention:
    if publication.retention is None:
        raise ValueError(f"a {publication.delivery.value} publication needs a retention")
    return publication.retention


def _missed(channel: StoredChannel, since: Position, max_events: int) -> Sequence[Event] | None:
    behind = channel.offset - since.offset
    if behind > max_events:
        return None
    # With the event at `since`, whose id is compared.
    return events_after(since, channel.position, channel.newest(max(0, behind + 1)))
