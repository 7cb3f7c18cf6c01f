"""The position up to which a node has delivered a channel, and the order of the next event."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

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


class Repeats(NamedTuple):
    """Events that were dropped because their offsets were delivered before. Perhaps the store has given these offsets again."""

    position: Position
    """The last durable event that had passed at the first repeat."""
    lowest: int
    """The lowest of their offsets."""


class StreamCursor:
    """Passes every durable event once and in order, and every state version once."""

    __slots__ = ("_epoch", "_id", "_offset", "_repeats", "_state_version")

    def __init__(self, snapshot: Snapshot) -> None:
        self.reset(snapshot)

    def reset(self, snapshot: Snapshot) -> None:
        """Continues after a snapshot."""
        position = snapshot.position
        self._epoch, self._offset, self._id = position.epoch, position.offset, position.id
        self._state_version = snapshot.state_version
        self._repeats: Repeats | None = None

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
        return DeliveredHead(
            self.position, self._state_version, None if self._repeats is None else self._repeats.lowest
        )

    @property
    def head_to_check(self) -> DeliveredHead:
        """What shows whether the store has lost the end of the stream. If there are repeats, the event before them: the store
        has later ones, also if it has given the offsets below them again."""
        return self.delivered if self._repeats is None else self.delivered._replace(position=self._repeats.position)

    @property
    def repeats(self) -> Repeats | None:
        """The repeats that no check has cleared. Each repeat replaces the object."""
        return self._repeats

    def record_repeat(self, event: Event) -> None:
        """Records a dropped event: a duplicate, or another event at the same offset."""
        if event.offset is None:
            return
        before = self._repeats
        if before is None:
            self._repeats = Repeats(self.position, event.offset)
        else:
            self._repeats = Repeats(before.position, min(before.lowest, event.offset))

    def clear_repeats(self, checked: Repeats | None) -> None:
        """Forgets the repeats after a check that knew them and has found the stream in the same epoch. Later ones stay."""
        if self._repeats is checked:
            self._repeats = None

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
