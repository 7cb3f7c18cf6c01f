"""Brings events from the broker to the rooms of this node, in order and without gaps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from service.core.broker import Broker, EventSink
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.limits import RepairLimits
from service.core.stream_cursor import EventOrder
from service.realtime.connections.frame import event_frame
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.realtime.runtime import Runtime
from service.realtime.streams.gap_recovery import GapRecovery
from service.realtime.streams.position_checker import PositionChecker


class PresenceObserver(Protocol):
    """Receives presence events and interruptions: presence events are in no stream that could be read after a gap."""

    def observe(self, event: Event) -> None:
        """Records an event without offset that goes out in a channel with presence."""

    def interrupted(self, channels: Collection[ChannelKey] | None) -> None:
        """Records that events of these channels may have been missed. None: of all channels."""


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
        on_interrupted: Callable[[], None],
    ) -> None:
        """`on_interrupted` is called after the broker was away: data that other stores keep beside it may be lost, too."""
        self._presence = presence
        self._on_interrupted = on_interrupted
        self._hub = hub
        self._clock = runtime.clock
        self._metrics = runtime.metrics
        self._internal: dict[ChannelKey, EventSink] = {}
        self.recovery = GapRecovery(broker, runtime, repair, self._push)
        self.checker = PositionChecker(hub, broker, runtime, self.recovery.recover, interval=repair.check)

    def subscribe_internally(self, channel: ChannelKey, sink: EventSink) -> None:
        """Delivers a channel that no client can join to a part of this node."""
        self._internal[channel] = sink

    def start(self) -> None:
        """Starts to check the positions of rooms."""
        self.checker.start()

    def close(self) -> None:
        """Ends the checks."""
        self.checker.close()

    def deliver(self, event: Event) -> None:
        """Hands an event to its room, in order. A gap starts a recovery; until it ends, later events wait."""
        room = self._hub.get(event.channel)
        if room is None:
            sink = self._internal.get(event.channel)
            if sink is not None:
                sink.deliver(event)
            return
        if not room.is_listening:
            return
        order = room.sequencer.accept(event)
        if order is EventOrder.NEXT:
            self._push(room, event)
        elif order is EventOrder.GAP:
            self.recovery.recover(room, "jump")
        elif order is EventOrder.DUPLICATE:
            self._metrics.streams.repeats.inc()
            room.sequencer.record_repeat(event)
            self.checker.check_room(room)  # if another event had this offset before, the stream was set back

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Checks these channels, of which events may have been missed, against their streams. None: all channels."""
        self.checker.check_channels(channels)
        self._presence.interrupted(channels)
        self._on_interrupted()
        for channel, sink in self._internal.items():
            if channels is None or channel in channels:
                sink.interrupted(channels)

    def _push(self, room: Room, event: Event) -> None:
        """Encodes an event once, and pushes it to its room."""
        if event.offset is None and room.spec.presence:
            self._presence.observe(event)
        spec = room.spec.events.get(event.type)
        if spec is None:  # an event of the service itself, as of presence
            room.push(event_frame(event, self._clock.monotonic()), 0.0)
        else:
            room.push(event_frame(event, self._clock.monotonic(), spec.compress), spec.window)
