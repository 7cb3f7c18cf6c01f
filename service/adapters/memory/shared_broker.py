"""A memory broker that several nodes of one process share: for the demo's inspector, and for tests of several nodes.

It delivers during the publish, in the order of the calls, so that each node gets every event exactly once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from service.adapters.memory.broker import MemoryBroker
from service.adapters.store.errors import unavailable
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
from service.core.event import Event, Publication
from service.core.position import Position


class SharedMemoryBroker:
    """The store, and the nodes that use it. Start it before the nodes, and close it after them."""

    def __init__(self, store: MemoryBroker) -> None:
        self.store = store
        self.nodes: list[NodeBroker] = []
        """The brokers of the nodes that have started."""

    async def start(self) -> None:
        """Starts the store."""
        await self.store.start(self)

    async def close(self) -> None:
        """Drops everything."""
        await self.store.close()

    def node_broker(self) -> NodeBroker:
        """Returns the broker for one more node."""
        return NodeBroker(self)

    def deliver(self, event: Event) -> None:
        """EventSink of the store: delivers an event to every subscribed node."""
        for node in tuple(self.nodes):
            node.take(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """EventSink of the store, which never reports interruptions."""

    async def unsubscribed(self, channel: ChannelKey) -> None:
        """Unsubscribes the store from a channel to which no node is subscribed."""
        if not any(channel in node.channels for node in self.nodes):
            await self.store.unsubscribe(channel)


class NodeBroker:
    """The Broker of one node. Every method does what the port says."""

    delivers_synchronously = False
    """Another node's publish reaches this sink, too, so the node cannot know by its own publishes what was delivered."""

    def __init__(self, shared: SharedMemoryBroker) -> None:
        self._shared = shared
        self._sink: EventSink | None = None
        self.channels: set[ChannelKey] = set()
        """The channels that the node has subscribed to."""

    @property
    def _store(self) -> MemoryBroker:
        if self._sink is None:
            raise unavailable("not started, or closed")
        return self._shared.store

    def take(self, event: Event) -> None:
        """Delivers an event of a channel that the node has subscribed to."""
        if self._sink is not None and event.channel in self.channels:
            self._sink.deliver(event)

    def report_interruption(self) -> None:
        """Tells the node that events may be missing."""
        if self._sink is not None:
            self._sink.interrupted()

    async def start(self, sink: EventSink) -> None:
        """Delivers to the sink from now on."""
        self._sink = sink
        self._shared.nodes.append(self)

    async def close(self) -> None:
        """Leaves the store. It keeps its events for the other nodes."""
        if self._sink is None:
            return
        self._sink = None
        self._shared.nodes.remove(self)
        for channel in self.channels:
            await self._shared.unsubscribed(channel)

    async def check(self) -> None:
        """Asks the store."""
        await self._store.check()

    def start_publish(self, publication: Publication) -> None:
        """Leaves it to `publish`."""

    async def publish(self, publication: Publication) -> PublishResult:
        """Asks the store."""
        return await self._store.publish(publication)

    async def subscribe(self, channel: ChannelKey) -> None:
        """Delivers the channel's events to this node."""
        await self._store.subscribe(channel)
        self.channels.add(channel)

    async def unsubscribe(self, channel: ChannelKey) -> None:
        """Stops that."""
        self.channels.discard(channel)
        await self._shared.unsubscribed(channel)

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        """Asks the store."""
        return await self._store.snapshot(channel, since, max_events, max_bytes, tail)

    async def stream_heads(
        self, channels: Sequence[ChannelKey], delivered: Sequence[DeliveredHead | None] = ()
    ) -> Sequence[StreamHead | None]:
        """Asks the store."""
        return await self._store.stream_heads(channels, delivered)

    async def history(self, channel: ChannelKey, after: int | None, before: int | None, limit: int) -> HistoryPage:
        """Asks the store."""
        return await self._store.history(channel, after, before, limit)

    async def removed_values(self, channel: ChannelKey, after: int) -> Sequence[Event]:
        """Asks the store."""
        return await self._store.removed_values(channel, after)

    async def list_channels(self, tenant: str, prefix: str, limit: int, after: str = "") -> Sequence[ChannelInfo]:
        """Asks the store."""
        return await self._store.list_channels(tenant, prefix, limit, after)

    async def remove_events(self, channel: ChannelKey, events: Sequence[Event]) -> Sequence[bool]:
        """Asks the store."""
        return await self._store.remove_events(channel, events)

    async def purge(self, channel: ChannelKey) -> Position | None:
        """Asks the store."""
        return await self._store.purge(channel)
