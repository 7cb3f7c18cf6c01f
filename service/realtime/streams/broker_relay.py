"""The relay: hub ⇄ broker. First join, last leave, dense order, and the merge of a snapshot with what came while it was read.

Lock order: a room's lock is the only lock, taken by `join` and `leave`; nothing is awaited under it but the broker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Protocol

import structlog
from msgspec import Struct

from service.contract.model import ChannelSpec
from service.core.broker import Broker, EventSink, Snapshot
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.limits import OutboxLimits, RepairLimits
from service.core.position import Position
from service.core.session import Phase, PresenceAccess, Start, Subscription
from service.core.stream_cursor import EventOrder
from service.errors import ServiceError
from service.protocol.messages import PresenceView
from service.realtime.connections.frame import Frame, event_frame
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.realtime.runtime import Runtime
from service.realtime.streams.gap_recovery import GapRecovery

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection

_log = structlog.get_logger("relay")


class Joined(Struct, frozen=True):
    """A subscription that is live: what to tell the client first, then what to send after it."""

    snapshot: Snapshot
    presence: PresenceView | None
    recovered: bool | None
    """The snapshot's; None where the channel has no durable events, so that nothing was to be recovered."""
    after: list[Frame]


class PresenceObserver(Protocol):
    """Receives presence events and interruptions: presence events are in no stream that could be read after a gap."""

    def observe(self, event: Event) -> None:
        """Records an event without offset that goes out in a channel with presence."""

    def interrupted(self, channels: Collection[ChannelKey] | None) -> None:
        """See EventSink."""


class BrokerRelay:
    """The broker's sink on this node."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        runtime: Runtime,
        *,
        outbox: OutboxLimits,
        repair: RepairLimits,
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._clock = runtime.clock
        self._metrics = runtime.metrics
        self._limits = outbox
        self._taps: dict[ChannelKey, EventSink] = {}
        self.presence: PresenceObserver | None = None
        self.on_interrupted: Callable[[], None] | None = None
        """Called when the broker was away: what other stores keep beside it may be gone too."""
        self._unsubscribe_failed = runtime.outages.limited(_log, "unsubscribe failed", runtime.clock.monotonic)
        self._repair = GapRecovery(hub, broker, runtime, repair, self._push)

    def tap(self, channel: ChannelKey, sink: EventSink) -> None:
        """Gives a channel that no client can join to a part of this node."""
        self._taps[channel] = sink

    def start(self) -> None:
        """Begins to compare positions with the broker's."""
        self._repair.start()

    def close(self) -> None:
        """Ends that."""
        self._repair.close()

    def deliver(self, event: Event) -> None:
        """Takes one event from the broker (see core/broker.py EventSink), and hands it to its room when it is its turn."""
        room = self._hub.get(event.channel)
        if room is None:
            tap = self._taps.get(event.channel)
            if tap is not None:
                tap.deliver(event)
            return
        if not room.is_listening:
            return
        order = room.sequencer.accept(event)
        if order is EventOrder.NEXT:
            self._push(room, event)
        elif order is EventOrder.GAP:
            self._repair.begin(room, "jump")
        elif order is EventOrder.DUPLICATE:
            self._metrics.streams.repeats.inc()
            room.sequencer.record_repeat(event)
            self._repair.compare(room)  # or another event had its place before, and the stream was set back

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """See EventSink: every channel concerned is compared with its stream, and read where they differ."""
        self._repair.doubt(channels)
        if self.presence is not None:
            self.presence.interrupted(channels)
        if self.on_interrupted is not None:
            self.on_interrupted()
        for channel, tap in self._taps.items():
            if channels is None or channel in channels:
                tap.interrupted(channels)

    def _push(self, room: Room, event: Event) -> None:
        """Encodes an event once and hands it to its room."""
        if event.offset is None and room.spec.presence and self.presence is not None:
            self.presence.observe(event)
        spec = room.spec.events.get(event.type)
        if spec is None:  # one of the service's own
            room.push(event_frame(event, self._clock.monotonic()), 0.0)
        else:
            room.push(event_frame(event, self._clock.monotonic(), spec.compress), spec.window)

    async def join(self, connection: Connection, subscription: Subscription, spec: ChannelSpec) -> None:
        """Adds the connection to the channel's room; the first one makes the broker deliver. Rolled back on failure."""
        while True:
            room = self._hub.open(subscription.channel, spec)
            if room.is_broker_subscribed and not room.lock.locked():  # nobody is coming first or leaving last
                self._enter(room, connection, subscription)
                return
            async with room.lock:
                if room.is_discarded:
                    continue
                self._enter(room, connection, subscription)
                try:
                    if not room.is_broker_subscribed:
                        await self._broker.subscribe(room.key)
                        room.broker_subscribed()
                except BaseException:
                    if room.has_member(connection):  # else it has left meanwhile
                        room.remove(connection)
                        self._metrics.subscriptions.subscriptions.dec()
                    self._drop_if_empty(room)
                    raise
                break

    def _enter(self, room: Room, connection: Connection, subscription: Subscription) -> None:
        room.add_member(connection, subscription)
        self._metrics.subscriptions.subscriptions.inc()

    async def hold(self, subscription: Subscription) -> None:
        """Notes where a held subscription joined, so that what comes before `ready` can be read then."""
        if subscription.since is None:
            subscription.since = self._known_top(subscription) or await self._read_top(subscription)

    async def forgo_history(self, subscription: Subscription) -> None:
        """Has a subscription that has named a position start from the channel's present one, as if nothing were kept: its
        user may not read what came in between."""
        top = self._known_top(subscription) or await self._read_top(subscription)
        if subscription.since != top:
            subscription.since, subscription.start = top, Start.GAP

    def _known_top(self, subscription: Subscription) -> Position | None:
        room = self._hub.get(subscription.channel)
        return room.top if room is not None and self._broker.delivers_synchronously else None

    async def _read_top(self, subscription: Subscription) -> Position:
        return (await self._broker.snapshot(subscription.channel, None, 0, 0)).position

    async def go_live(
        self, connection: Connection, subscription: Subscription, view: Callable[[], Awaitable[PresenceView]] | None
    ) -> Joined | None:
        """Reads the snapshot, and who is there, and starts delivery behind both; None if the connection left meanwhile."""
        room = self._hub.get(subscription.channel)
        if room is None or not room.has_member(connection):
            return None
        if view is None and subscription.start is Start.JOIN:
            local_snapshot = self._local_snapshot(room)
            if local_snapshot is not None and subscription.since in (None, local_snapshot.position):
                room.make_live(connection, subscription)
                return Joined(local_snapshot, None, None, [])
        room.start_subscribing(connection, subscription)
        try:
            presence = await view() if view is not None else None
            while True:
                snapshot = await self._broker.snapshot(
                    subscription.channel, subscription.since, self._limits.recovery_events, self._limits.recovery_bytes
                )
                if not room.is_subscribing(connection):
                    return None
                self._settle(room, snapshot)
                if room.follows(connection, snapshot):
                    break
                # Another's newer snapshot came first, and the room began behind events that this one lacks: read again. If
                # the stream was set back it lacks them for good, until it has a new epoch.
                await self._repair.compare_now(room)
        except BaseException:
            room.cancel_subscribing(connection, subscription)
            raise
        recovered = False if subscription.start is Start.GAP else snapshot.recovered
        if room.spec.history is None:
            recovered = None
        return Joined(snapshot, presence, recovered, room.finish_subscribing(connection, subscription, snapshot))

    def _local_snapshot(self, room: Room | None) -> Snapshot | None:
        """For those who only need to know where they come in: whoever asks to resume is told what the stream says."""
        return room.local_snapshot() if room is not None and self._broker.delivers_synchronously else None

    def _settle(self, room: Room, snapshot: Snapshot) -> None:
        """The first snapshot of a room says where its order begins; one that is ahead of it may mean that it has a gap."""
        cursor = room.sequencer.cursor
        if cursor is None:
            self._repair.start_order(room, snapshot)
        elif not cursor.has_reached(snapshot.head):
            self._repair.suspect(room, snapshot.head)

    async def grant_presence(
        self, connection: Connection, subscription: Subscription, view: Callable[[], Awaitable[PresenceView]]
    ) -> tuple[PresenceView, list[Frame]] | None:
        """Lets a subscription see presence from now on. Returns who is there, and what is to be sent after that; None if it is
        not live, so that `go_live` tells."""
        room = self._hub.get(subscription.channel)
        if room is None or subscription.phase is not Phase.LIVE:
            subscription.presence = PresenceAccess.SEES
            return None
        room.start_presence_buffer(connection)
        try:
            there = await view()
        finally:
            after = room.take_presence_buffer(connection)
        if after is None:
            return None
        room.set_presence_access(connection, subscription, PresenceAccess.SEES)
        return there, after

    def withdraw_presence(self, connection: Connection, subscription: Subscription) -> None:
        """Shows a subscription nothing more of presence."""
        room = self._hub.get(subscription.channel)
        if room is None:
            subscription.presence = PresenceAccess.LISTED
        else:
            room.set_presence_access(connection, subscription, PresenceAccess.LISTED)

    def detach(self, connection: Connection, subscription: Subscription) -> None:
        """Stops delivery at once; `leave` must follow."""
        room = self._hub.get(subscription.channel)
        if room is not None:
            room.detach(connection)

    async def leave(self, connection: Connection, subscription: Subscription) -> None:
        """Takes the connection out of the room; with the last one the broker stops delivering."""
        room = self._hub.get(subscription.channel)
        if room is None or not room.has_member(connection):
            return
        room.remove(connection)
        self._metrics.subscriptions.subscriptions.dec()
        if not room.is_empty():
            return
        async with room.lock:
            if not room.is_empty() or room.is_discarded:
                return
            try:
                if room.is_broker_subscribed:
                    await self._broker.unsubscribe(room.key)
                    room.broker_unsubscribed()
            except ServiceError as error:  # the broker is away: what it still delivers meets no room
                self._unsubscribe_failed(code=error.code.code)
            finally:
                self._drop_if_empty(room)

    def _drop_if_empty(self, room: Room) -> None:
        if room.is_empty():
            self._hub.drop(room)
