"""How far a node has delivered a channel, and what the next event means for that."""

from __future__ import annotations

from enum import Enum

from service.core.broker import Known, Snapshot, StreamHead
from service.core.event import Event
from service.core.position import Position


class Verdict(Enum):
    """What to do with an event."""

    DELIVER = "deliver"
    DROP = "drop"
    """It has been delivered before."""
    GAP = "gap"
    """Something before it is missing, or the stream has started anew: read the stream first."""


class StreamCursor:
    """Lets every durable event through once and in order, and every change of state once."""

    __slots__ = ("_again", "_epoch", "_id", "_offset", "_state_version")

    def __init__(self, snapshot: Snapshot) -> None:
        self.jump(snapshot)

    def jump(self, snapshot: Snapshot) -> None:
        """Goes on from what a snapshot holds."""
        top = snapshot.top
        self._epoch, self._offset, self._id, self._state_version = top.epoch, top.offset, top.id, snapshot.state_version
        self._again: int | None = None

    @property
    def position(self) -> Position:
        """The last durable event that was let through."""
        return Position(self._epoch, self._offset, self._id)

    @property
    def state_version(self) -> int:
        """The revision of its mark."""
        return self._state_version

    @property
    def mark(self) -> StreamHead:
        """How far it has come."""
        return StreamHead(self._epoch, self._offset, self._state_version)

    @property
    def known(self) -> Known:
        """What the store must not have forgotten."""
        return Known(self.position, self._state_version, self._again)

    def note_repeat(self, event: Event) -> None:
        """An event was dropped: it came twice, or another one came for its place."""
        if event.offset is not None and (self._again is None or event.offset < self._again):
            self._again = event.offset

    def forget_repeats(self) -> None:
        """The stream was found to be what has been let through."""
        self._again = None

    def has_reached(self, mark: StreamHead) -> bool:
        """Whether everything up to a mark has been let through. A mark of another epoch is never reached."""
        return self._epoch == mark.epoch and self._offset >= mark.offset and self._state_version >= mark.state_version

    def take(self, event: Event) -> Verdict:
        """Judges an event; with DELIVER it has gone through. An event of no stream always does."""
        if event.offset is not None:
            if event.epoch != self._epoch:
                return Verdict.GAP
            if event.offset <= self._offset:
                return Verdict.DROP
            if event.offset > self._offset + 1:
                return Verdict.GAP
            self._offset, self._id = event.offset, event.id
        elif event.state_version is not None:
            if event.epoch != self._epoch:
                return Verdict.GAP
            if event.state_version <= self._state_version:
                return Verdict.DROP
            if event.state_version > self._state_version + 1:
                return Verdict.GAP
            self._state_version = event.state_version
        return Verdict.DELIVER
