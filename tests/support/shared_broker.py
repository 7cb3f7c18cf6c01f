"""Brokers that several services in one process share. Each service uses its own Line, which can fail."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Collection, Sequence
from typing import Protocol

import nats
from msgspec import structs

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.adapters.memory.shared_broker import SharedMemoryBroker
from service.adapters.memory.stored_channel import Entry
from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.config import NatsConfig
from service.adapters.redis.address import parse_redis_url
from service.adapters.redis.broker import RedisBroker
from service.adapters.redis.config import RedisConfig
from service.core.broker import (
    Broker,
    ChannelInfo,
    DeliveredHead,
    EventSink,
    HistoryPage,
    PublishResult,
    Snapshot,
    StreamHead,
)
from service.core.channel import ChannelKey
from service.core.clock import Clock
from service.core.event import Event, Publication
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics
from tests.stores import Flavour, NatsServer, RedisServer, shared_redis

PREFIX = "bus"
"""The prefix at a NATS server that only one bus uses; also the name of the stream."""


class Line:
    """One node's connection to the shared broker: a Broker that forwards every call, unless a test breaks it."""

    delivers_synchronously = False

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._sink: EventSink | None = None
        self._away = False
        self.deaf = False
        """Whether deliveries are lost."""
        self.lost: list[Event] = []
        """The deliveries that were lost."""

    # --- faults -------------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Loses deliveries from now on. Calls still work."""
        self.deaf = True

    def hear_again(self) -> None:
        """Delivers again, without a report of the interruption."""
        self.deaf = self._away

    def mend(self) -> None:
        """Delivers again, and reports the interruption to the sink."""
        self.deaf = self._away
        self.interrupted()

    def go_away(self) -> None:
        """Fails every call and loses deliveries, from now on."""
        self._away = self.deaf = True

    def come_back(self) -> None:
        """Works again, and reports the interruption to the sink."""
        self._away = False
        self.mend()

    def _reached(self) -> Broker:
        if self._away:
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the line is down")
        return self._broker

    # --- the sink of the broker behind it -----------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """See EventSink."""
        if self.deaf:
            self.lost.append(event)
        elif self._sink is not None:
            self._sink.deliver(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """See EventSink."""
        if self._sink is not None and not self.deaf:
            self._sink.interrupted(channels)

    # --- the port -----------------------------------------------------------------------------------------------------

    async def start(self, sink: EventSink) -> None:
        """As the port says."""
        self._sink = sink
        await self._reached().start(self)

    async def close(self) -> None:
        """As the port says."""
        self._sink = None
        await self._broker.close()

    async def check(self) -> None:
        """As the port says."""
        await self._reached().check()

    def start_publish(self, publication: Publication) -> None:
        pass

    async def publish(self, publication: Publication) -> PublishResult:
        """As the port says."""
        return await self._reached().publish(publication)

    async def subscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        await self._reached().subscribe(channel)

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """As the port says."""
        await self._reached().unsubscribe(channel)

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        """As the port says."""
        return await self._reached().snapshot(channel, since, max_events, max_bytes, tail)

    async def stream_heads(
        self, channels: Sequence[ChannelKey], known: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        """As the port says."""
        return await self._reached().stream_heads(channels, known)

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """As the port says."""
        return await self._reached().history(channel, after, before, limit)

    async def removed_values(self, channel: ChannelKey, after: int) -> Sequence[Event]:
        """As the port says."""
        return await self._reached().removed_values(channel, after)

    async def list_channels(self, tenant: str, prefix: str, limit: int, after: str = "") -> Sequence[ChannelInfo]:
        """As the port says."""
        return await self._reached().list_channels(tenant, prefix, limit, after)

    async def remove_events(self, channel: ChannelKey, events: Sequence[Event]) -> Sequence[bool]:
        """As the port says."""
        return await self._reached().remove_events(channel, events)

    async def purge(self, channel: ChannelKey) -> Position | None:
        """As the port says."""
        return await self._reached().purge(channel)


class Bus(Protocol):
    """A broker that nodes share."""

    async def start(self) -> None:
        """Starts the store; called first."""

    def line(self, clock: Clock | None = None) -> Line:
        """Returns the broker for one more node. `clock`: the node's clock, for stores that use it."""

    async def lose_everything(self) -> None:
        """Restarts the store without its data, and reports an interruption to every sink."""

    async def close(self) -> None:
        """Closes everything."""


class SharedBroker(SharedMemoryBroker):
    """A Bus in memory. It delivers during the publish, so that a test controls exactly where faults occur."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        super().__init__(self._store())

    def _store(self) -> MemoryBroker:
        return MemoryBroker(
            self._clock, idempotency_window=300, idempotency_entries=100_000, channels=100_000, max_bytes=500_000_000
        )

    def line(self, clock: Clock | None = None) -> Line:
        """As Bus says."""
        return Line(self.node_broker())

    async def lose_everything(self) -> None:
        """As Bus says."""
        await self.store.close()
        self.store = self._store()
        await self.store.start(self)
        for node in self.nodes:
            for channel in node.channels:
                await self.store.subscribe(channel)
        self._report()

    async def fail_over(self, lost: int = 0) -> None:
        """Simulates a failover to a replica without the newest `lost` durable events of each channel. Reports it to
        every sink."""
        epoch = secrets.token_hex(8)
        for channel in self.store._channels._channels.values():
            events = list(channel.newest(10_000))
            kept = events[: len(events) - lost]
            channel.epoch = epoch
            channel.offset -= len(events) - len(kept)
            channel.last_id = kept[-1].id if kept else None
            channel._stream = deque(Entry(entry.accepted, _in(epoch, entry.event)) for entry in channel._stream)
            for _ in events[len(kept) :]:
                channel._stream.pop()
            for place, value in channel.state.values.items():
                channel.state.values[place] = value._replace(event=_in(epoch, value.event))
        self._report()

    def _report(self) -> None:
        for node in tuple(self.nodes):
            node.report_interruption()


def _in(epoch: str, event: Event) -> Event:
    return structs.replace(event, epoch=epoch)


class RedisBus:
    """A Bus at a real Redis or Valkey, under a prefix of its own."""

    def __init__(self, flavour: Flavour) -> None:
        self._flavour = flavour
        self.prefix = f"bus{secrets.token_hex(4)}"
        self._lines: list[Line] = []
        self._server: RedisServer | None = None

    @property
    def server(self) -> RedisServer:
        """The server, once started."""
        assert self._server is not None
        return self._server

    async def start(self) -> None:
        """As Bus says."""
        self._server = await shared_redis(self._flavour)

    def line(self, clock: Clock | None = None) -> Line:
        """As Bus says."""
        line = Line(RedisBroker(RedisConfig(parse_redis_url(self.server.url), prefix=self.prefix), Metrics()))
        self._lines.append(line)
        return line

    async def lose_everything(self) -> None:
        """See Bus; keys of other tests stay."""
        keys = await self.server.keys(f"{self.prefix}:*")
        if keys:
            await self.server.command("DEL", *keys)
        for line in self._lines:
            line.interrupted()

    async def close(self) -> None:
        """As Bus says."""


class NatsBus:
    """A Bus on its own real NATS server."""

    def __init__(self) -> None:
        self._server = NatsServer()
        self._lines: list[Line] = []

    async def start(self) -> None:
        """As Bus says."""
        await self._server.start()

    def line(self, clock: Clock | None = None) -> Line:
        """As Bus says."""
        line = Line(NatsBroker(NatsConfig((self._server.url,), prefix=PREFIX), clock or SystemClock(), Metrics()))
        self._lines.append(line)
        return line

    async def lose_everything(self) -> None:
        """As Bus says."""
        client = await nats.connect(self._server.url)
        await client.jetstream().purge_stream(PREFIX)
        await client.close()
        for line in self._lines:
            line.interrupted()

    async def close(self) -> None:
        """As Bus says."""
        self._server.end()
