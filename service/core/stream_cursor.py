"""The position up to which a node has delivered a channel, and the order of the next event."""

from __future__ import annotations

from enum import Enum

from service.core.broker import DeliveredHead, Snapshot, StreamHead
from service.core.event import Event
from service.core.position import Position


class EventOrder(Enum):
    """The relation of an event to the events before it."""

    NEXT = "next"
    """In order: deliver it."""
    DUPLICATE = "duplicate"
    """Delivered before: drop it."""
    GAP = "gap"
    """An earlier event is missing, or the stream has a new epoch: read the stream first."""


class StreamCursor:
    """Passes every durable event once and in order, and every state version once."""

    __slots__ = ("_epoch", "_id", "_lowest_repeat", "_offset", "_state_version")

    def __init__(self, snapshot: Snapshot) -> None:
        self.reset(snapshot)

    def reset(self, snapshot: Snapshot) -> None:
        """Continues after a snapshot."""
        position = snapshot.position
        self._epoch, self._offset, self._id = position.epoch, position.offset, position.id
        self._state_version = snapshot.state_version
        self._lowest_repeat: int | None = None

    @property
    def position(self) -> Position:
        """The last durable event that passed."""
        return Position(self._epoch, self._offset, self._id)

    @property
    def state_version(self) -> int:
        """The last state version that passed."""
        return self._state_version

    @property
    def head(self) -> StreamHead:
        """The last offset and state version that passed."""
        return StreamHead(self._epoch, self._offset, self._state_version)

    @property
    def delivered(self) -> DeliveredHead:
        """The last event and state version that passed, which the store must still have."""
        return DeliveredHead(self.position, self._state_version, self._lowest_repeat)

    def record_repeat(self, event: Event) -> None:
        """Records a dropped event: a duplicate, or another event at the same offset."""
        if event.offset is not None and (self._lowest_repeat is None or event.offset < self._lowest_repeat):
            self._lowest_repeat = event.offset

    def clear_repeats(self) -> None:
        """Forgets the repeats, after a check has found the stream in the same epoch."""
        self._lowest_repeat = None

    def has_reached(self, head: StreamHead) -> bool:
        """True if everything up to a head has passed. A head of another epoch is never reached."""
        return self._epoch == head.epoch and self._offset >= head.offset and self._state_version >= head.state_version

    def advance(self, event: Event) -> EventOrder:
        """Classifies an event; NEXT moves the cursor to it. An ephemeral event is always NEXT."""
        if event.offset is not None:
            if event.epoch != self._epoch:
                return EventOrder.GAP
            if event.offset <= self._offset:
                return EventOrder.DUPLICATE
            if event.offset > self._offset + 1:
                return EventOrder.GAP
            self._offset, self._id = event.offset, event.id
        elif event.state_version is not None:
            if event.epoch != self._epoch:
                return EventOrder.GAP
            if event.state_version <= self._state_version:
                return EventOrder.DUPLICATE
            if event.state_version > self._state_version + 1:
                return EventOrder.GAP
            self._state_version = event.state_version
        return EventOrder.NEXT
