"""The Broker of a service that runs as one node: everything in this process, nothing across a restart.

A restart loses history and state; the new epochs say so to every client that resumes.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.adapters.memory.channel_store import ChannelStore, StoreBounds, StoredChannel, accepted
from service.adapters.memory.idempotency_cache import Receipts
from service.core.broker import ChannelInfo, DeliveredHead, EventSink, HistoryPage, PublishResult, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.clock import Clock, Timer
from service.core.event import Delivery, Event, Publication, Retention
from service.core.position import Position, events_after
from service.errors import ErrorCode, ServiceError

SWEEP_SECONDS = 1.0
SWEEP_CHANNELS = 500
"""Channels looked through in one sweep: a millisecond or so, so that it never shows as lag."""


@dataclass(frozen=True, slots=True)
class BrokerStats:
    """What the broker holds, for metrics."""

    channels: int
    events: int
    state_entries: int
    bytes: int
    """An estimate of the memory taken."""
    evicted: int
    """Channels forgotten to make room, since the start."""


def _random_epoch() -> str:
    return secrets.token_hex(8)


class MemoryBroker:
    """Keeps the port's guarantee within one process; bounded as `ChannelStore` and `Receipts` say.

    No method gives way to the event loop, so each one happens as of one moment and a channel's order is the order of the
    calls. When only channels with subscribers are left and a bound is reached, publish and subscribe raise
    BROKER_UNAVAILABLE; that is no reason to fail `check`, as everything that needs no more room still works.
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
        empty_ttl: float = 60.0,
        new_epoch: Callable[[], str] = _random_epoch,
    ) -> None:
        self._clock = clock
        self._channels = ChannelStore(StoreBounds(channels, max_bytes, empty_ttl), new_epoch)
        self._receipts = Receipts(idempotency_window, idempotency_entries)
        self._sink: EventSink | None = None
        self._closed = False
        self._sweep_timer: Timer | None = None

    def stats(self) -> BrokerStats:
        """What is held now; costs nothing."""
        events, state_entries, size = self._channels.holdings
        return BrokerStats(len(self._channels), events, state_entries, size, self._channels.evicted)

    async def start(self, sink: EventSink) -> None:
        """As the port says."""
        if self._closed or self._sink is not None:
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the broker has been started before")
        self._sink = sink
        self._sweep_timer = self._clock.call_later(SWEEP_SECONDS, self._sweep)

    async def close(self) -> None:
        """As the port says."""
        self._closed = True
        self._sink = None
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self._channels.clear()
        self._receipts.clear()

    async def check(self) -> None:
        """As the port says."""
        self._started()

    async def publish(self, publication: Publication) -> PublishResult:
        """As the port says. Raises ValueError for a durable or latest event without retention: a fault in the caller."""
        sink = self._started()
        if publication.delivery is Delivery.EPHEMERAL:
            channel = self._channels.find(publication.channel)
            _deliver(sink, channel, accepted(publication))
            return PublishResult(publication.id, epoch="")
        now = self._clock.monotonic()
        if earlier := self._receipts.find(publication, now):
            return earlier
        channel = self._channels.open(publication.channel, now)
        event = self._channels.keep(channel, publication, _retention(publication), now)
        receipt = PublishResult(event.id, channel.epoch, event.offset, event.state_version)
        self._receipts.add(publication, receipt, now)
        _deliver(sink, channel, event)
        return receipt

    async def subscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        self._channels.pin(self._open(channel))

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        self._started()
        self._channels.unpin(channel, self._clock.monotonic())

    async def snapshot(self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int) -> Snapshot:
        """As the port says."""
        stored = self._open(channel)
        if since is None:
            return Snapshot(stored.top, stored.state(), (), None, stored.state_version, stored.base)
        found = _missed(stored, since, max_events)
        if found is None or sum(len(event.data) for event in found) > max_bytes:
            return Snapshot(
                stored.top,
                stored.state(),
                (),
                recovered=False,
                state_version=stored.state_version,
                epoch_start=stored.base,
            )
        return Snapshot(
            stored.top,
            stored.state(),
            found,
            recovered=True,
            state_version=stored.state_version,
            epoch_start=stored.base,
        )

    async def stream_heads(
        self, channels: Sequence[ChannelKey], known: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        """As the port says; a process does not forget what its sink has got from it, so nothing depends on `known`."""
        self._started()
        found = map(self._channels.find, channels)
        return [
            StreamHead("", 0, 0) if one is None else StreamHead(one.epoch, one.offset, one.state_version)
            for one in found
        ]

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """As the port says."""
        stored = self._open(channel)
        low = stored.first if after is None else max(stored.first, after + 1)
        high = stored.offset if before is None else min(stored.offset, before - 1)
        size = max(0, high - low + 1)
        if after is not None:
            events = stored.between(low, min(high, low + limit - 1))
        else:
            events = stored.between(max(low, high - limit + 1), high)
        return HistoryPage(stored.top, events, has_more=size > limit)

    async def list_channels(self, tenant: str, prefix: str, limit: int) -> Sequence[ChannelInfo]:
        """As the port says."""
        self._started()
        found = self._channels.named(tenant, prefix, limit, self._clock.monotonic())
        return [ChannelInfo(channel.key.name, channel.top) for channel in found]

    def _started(self) -> EventSink:
        if self._sink is None:
            raise ServiceError(
                ErrorCode.BROKER_UNAVAILABLE,
                "the broker is closed" if self._closed else "the broker is not started yet",
            )
        return self._sink

    def _open(self, channel: ChannelKey) -> StoredChannel:
        self._started()
        return self._channels.open(channel, self._clock.monotonic())

    def _sweep(self) -> None:
        now = self._clock.monotonic()
        self._channels.sweep(now, SWEEP_CHANNELS)
        self._receipts.expire(now)
        self._sweep_timer = self._clock.call_later(SWEEP_SECONDS, self._sweep)


def _retention(publication: Publication) -> Retention:
    if publication.retention is None:
        raise ValueError(f"a {publication.delivery.value} publication needs a retention")
    return publication.retention


def _missed(channel: StoredChannel, since: Position, most: int) -> Sequence[Event] | None:
    behind = channel.offset - since.offset
    if behind > most:
        return None
    # The event at `since` too, whose id is compared: no more of the stream than that is copied.
    return events_after(since, channel.top, channel.tail(max(0, behind + 1)))


def _deliver(sink: EventSink, channel: StoredChannel | None, event: Event) -> None:
    if channel is not None and channel.subscribed:
        sink.deliver(event)
