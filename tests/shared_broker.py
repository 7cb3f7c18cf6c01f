"""A broker that several services in one process share, each through a front of its own whose line can fail.

Another broker can stand in its place where a test takes `Bus` as a parameter.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

from msgspec import structs

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.adapters.memory.store import Entry
from service.core.broker import Broker, ChannelInfo, EventSink, Mark, Page, Receipt, Snapshot
from service.core.channel import ChannelKey
from service.core.clock import Clock
from service.core.event import Event, Publication
from service.core.position import Position
from service.errors import ErrorCode, ServiceError


class Line(Broker, Protocol):
    """One node's way to the shared broker."""

    def cut(self) -> None:
        """Deliveries are lost from now on; calls go through."""

    def mend(self) -> None:
        """Deliveries come again, and the sink is told of the interruption."""

    def go_away(self) -> None:
        """Every call fails and deliveries are lost, from now on."""

    def come_back(self) -> None:
        """The end of that; the sink is told."""


class Bus(Protocol):
    """What nodes share."""

    def line(self) -> Line:
        """The broker for one more node."""

    async def lose_everything(self) -> None:
        """The store starts anew without anything in it; every sink is told."""

    async def fail_over(self, lost: int = 0) -> None:
        """Another replica takes over, without the newest `lost` durable events of each channel; every sink is told."""

    async def close(self) -> None:
        """Lets everything go."""


class SharedBroker:
    """A Bus in memory. It delivers within the publish, so a test's faults come exactly where it puts them."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self.lines: list[SharedLine] = []
        self.store = self._store()
        self._started = False

    def _store(self) -> MemoryBroker:
        return MemoryBroker(
            self._clock, idempotency_window=300, idempotency_entries=100_000, channels=100_000, max_bytes=500_000_000
        )

    def line(self) -> SharedLine:
        """As Bus says."""
        line = SharedLine(self)
        self.lines.append(line)
        return line

    async def started(self) -> MemoryBroker:
        """The store, started."""
        if not self._started:
            self._started = True
            await self.store.start(self)
        return self.store

    def deliver(self, event: Event) -> None:
        """EventSink of the store: hands an event to every line that has subscribed."""
        for line in tuple(self.lines):
            line.take(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """EventSink of the store, which never says this."""

    async def unsubscribed(self, channel: ChannelKey) -> None:
        """Stops the store's delivery of a channel that no line carries any more."""
        if not any(channel in line.carried for line in self.lines):
            await self.store.unsubscribe(channel)

    async def lose_everything(self) -> None:
        """As Bus says."""
        await self.store.close()
        self.store = self._store()
        await self.store.start(self)
        for line in self.lines:
            for channel in line.carried:
                await self.store.subscribe(channel)
        for line in tuple(self.lines):
            line.tell()

    async def fail_over(self, lost: int = 0) -> None:
        """As Bus says."""
        epoch = secrets.token_hex(8)
        for channel in self.store._channels._channels.values():
            events = list(channel.tail(10_000))
            kept = events[: len(events) - lost]
            channel.epoch = epoch
            channel.offset -= len(events) - len(kept)
            channel.last_id = kept[-1].id if kept else None
            channel._stream = deque(Entry(entry.accepted, _in(epoch, entry.event)) for entry in channel._stream)
            for _ in events[len(kept) :]:
                channel._stream.pop()
            for place, entry in channel._state.items():
                channel._state[place] = Entry(entry.accepted, _in(epoch, entry.event))
        for line in tuple(self.lines):
            line.tell()

    async def close(self) -> None:
        """As Bus says."""
        await self.store.close()


def _in(epoch: str, event: Event) -> Event:
    return structs.replace(event, epoch=epoch)


class SharedLine:
    """A Line to a SharedBroker."""

    def __init__(self, bus: SharedBroker) -> None:
        self._bus = bus
        self._sink: EventSink | None = None
        self._deaf = self._away = False
        self.carried: set[ChannelKey] = set()
        self.lost = 0
        """Events that were not delivered because of a fault."""
        self.reads = 0
        """Snapshots and pages that were asked for."""

    # --- faults -------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """As Line says."""
        self._deaf = True

    def mend(self) -> None:
        """As Line says."""
        self._deaf = False
        self.tell()

    def go_away(self) -> None:
        """As Line says."""
        self._away = self._deaf = True

    def come_back(self) -> None:
        """As Line says."""
        self._away = False
        self.mend()

    def tell(self) -> None:
        """Tells the sink that events may be missing."""
        if self._sink is not None and not self._deaf:
            self._sink.interrupted()

    def take(self, event: Event) -> None:
        """For SharedBroker alone."""
        if self._sink is None or event.channel not in self.carried:
            return
        if self._deaf:
            self.lost += 1
        else:
            self._sink.deliver(event)

    async def _store(self) -> MemoryBroker:
        if self._away or self._sink is None:
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the line is down")
        return await self._bus.started()

    # --- the port -----------------------------------------------------------------------------------------------------

    async def start(self, sink: EventSink) -> None:
        """As the port says."""
        self._sink = sink
        await self._store()

    async def close(self) -> None:
        """As the port says."""
        self._sink = None
        channels, self.carried = self.carried, set()
        if self in self._bus.lines:
            self._bus.lines.remove(self)
        for channel in channels:
            await self._bus.unsubscribed(channel)

    async def check(self) -> None:
        """As the port says."""
        await (await self._store()).check()

    async def publish(self, publication: Publication) -> Receipt:
        """As the port says."""
        return await (await self._store()).publish(publication)

    async def subscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        await (await self._store()).subscribe(channel)
        self.carried.add(channel)

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        await self._store()
        self.carried.discard(channel)
        await self._bus.unsubscribed(channel)

    async def snapshot(self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int) -> Snapshot:
        """As the port says."""
        self.reads += 1
        return await (await self._store()).snapshot(channel, since, max_events, max_bytes)

    async def marks(self, channels: Sequence[ChannelKey]) -> Sequence[Mark]:
        """As the port says."""
        return await (await self._store()).marks(channels)

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> Page:
        """As the port says."""
        self.reads += 1
        return await (await self._store()).history(channel, after, before, limit)

    async def channels(self, tenant: str, prefix: str, limit: int) -> Sequence[ChannelInfo]:
        """As the port says."""
        return await (await self._store()).channels(tenant, prefix, limit)
