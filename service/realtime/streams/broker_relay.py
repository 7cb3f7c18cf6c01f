"""Delivers the broker's events to the rooms of this node, in order and without gaps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from service.core.broker import Broker, EventSink
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.core.limits import RepairLimits
from service.core.stream_cursor import EventOrder
from service.realtime.connections.connection import Connection
from service.realtime.connections.frame import event_frame
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.realtime.runtime import Runtime
from service.realtime.streams.gap_recovery import GapRecovery
from service.realtime.streams.position_checker import PositionChecker

_NEXT = EventOrder.NEXT


class PresenceObserver(Protocol):
    """Receives presence events and interruptions. Presence events are in no stream, so missed ones cannot be read later."""

    def observe(self, event: Event) -> None:
        """Records an event without an offset in a channel with presence."""

    def interrupted(self, channels: Collection[ChannelKey] | None) -> None:
        """Records that events of these channels may have been missed. None means all channels."""


class BrokerRelay:
    """Receives all events that the broker delivers to this node."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        presence: PresenceObserver,
        runtime: Runtime,
        *,
        repair: RepairLimits,
        find_connection: Callable[[str], Connection | None],
        on_interrupted: Callable[[], None],
    ) -> None:
        """`find_connection` returns the connection of this node with an id. `on_interrupted` is called after an interruption:
        the broker's server may have lost data of other stores, too."""
        self._presence = presence
        self._find_connection = find_connection
        self._on_interrupted = on_interrupted
        self._hub = hub
        self._clock = runtime.clock
        self._metrics = runtime.metrics
        self._internal: dict[ChannelKey, EventSink] = {}
        self.recovery = GapRecovery(broker, runtime, repair, self._push)
        self.checker = PositionChecker(hub, broker, runtime, self.recovery.recover, interval=repair.check)

    def subscribe_internally(self, channel: ChannelKey, sink: EventSink) -> None:
        """Delivers an internal channel, to which no client can subscribe, to a part of this node."""
        self._internal[channel] = sink

    def start(self) -> None:
        """Starts to check the positions of rooms."""
        self.checker.start()

    def close(self) -> None:
        """Ends the checks."""
        self.checker.close()

    def deliver(self, event: Event) -> None:
        """Passes an event to its room, in order. A gap starts gap recovery. Later events wait until it ends."""
        room = self._hub.get(event.channel)
        if room is None:
            sink = self._internal.get(event.channel)
            if sink is not None:
                sink.deliver(event)
            return
        if not room.is_listening():
            return
        # An event without an epoch is in no stream, and has no order.
        order = room.sequencer.accept(event) if event.epoch else _NEXT
        if order is _NEXT:
            self._push(room, event)
        elif order is EventOrder.GAP:
            self.recovery.recover(room, "jump")
        elif order is EventOrder.DUPLICATE:
            self._metrics.streams.repeats.inc()
            room.sequencer.record_repeat(event)
            self.checker.check_room(room)  # the store may have lost the stream's end and given the offset again

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Compares these channels with their streams, because events may have been missed. None means all channels."""
        self.checker.check_channels(channels)
        self._presence.interrupted(channels)
        self._on_interrupted()
        for channel, sink in self._internal.items():
            if channels is None or channel in channels:
                sink.interrupted(channels)

    def _push(self, room: Room, event: Event) -> None:
        """Encodes an event and pushes it to its room."""
        if event.offset is None and room.spec.presence:
            self._presence.observe(event)
        spec = room.spec.events.get(event.type)
        if event.exclude is not None and event.delivery is Delivery.EPHEMERAL and spec is not None:
            connection = self._find_connection(event.exclude)
            if connection is not None and room.has_member(connection) and _belongs_to(connection, event.sender):
                frame = event_frame(event, self._clock.monotonic(), spec.compress)
                room.push_except(frame, spec.window, connection)
                return
        if spec is None:  # an event of the service itself, such as `presence.joined`
            room.push(event_frame(event, self._clock.monotonic()), 0.0)
        else:
            room.push(event_frame(event, self._clock.monotonic(), spec.compress), spec.window)


def _belongs_to(connection: Connection, sender: str | None) -> bool:
    """Whether it is a connection of the publishing user: nobody can keep an event from the connections of others."""
    return sender == (connection.session.identity.user or f"anonymous-{connection.id}")
