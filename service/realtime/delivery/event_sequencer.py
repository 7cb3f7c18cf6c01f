"""Orders the events of one channel for a room, and keeps events that arrive while the channel's stream is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from service.core.broker import Snapshot
from service.core.event import Event
from service.core.stream_cursor import EventOrder, Repeats, StreamCursor

MAX_WAITING_EVENTS = 1_000
"""Events kept while the stream is read. One more drops them all; the gap then causes another read, which returns them."""


class StreamRead:
    """One read of the channel's stream, with the events that arrive during it."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: list[Event] = []

    @property
    def events(self) -> Iterable[Event]:
        """The events that arrived during the read, in order of arrival."""
        return self._events

    def add(self, event: Event) -> None:
        """Keeps an event that arrived during the read."""
        if len(self._events) >= MAX_WAITING_EVENTS:
            self._events.clear()  # the next event then reveals a gap
        self._events.append(event)

    def clear(self) -> None:
        """Drops the events. A read that starts now returns those that the stream still holds."""
        self._events.clear()


class EventSequencer:
    """Passes each event of a channel once, in offset order, and detects gaps.

    When a room gets its first listening member, events are kept until that member's snapshot. The order starts at its position.
    """

    __slots__ = ("_cursor", "_read")

    def __init__(self) -> None:
        self._cursor: StreamCursor | None = None
        self._read: StreamRead | None = None

    @property
    def cursor(self) -> StreamCursor | None:
        """The position that the room has delivered up to; None until the first snapshot."""
        return self._cursor

    @property
    def is_reading(self) -> bool:
        """True while the stream is read, so that new events wait."""
        return self._read is not None

    @property
    def settled_cursor(self) -> StreamCursor | None:
        """The cursor; None while the stream is read, too."""
        return self._cursor if self._read is None else None

    def accept(self, event: Event) -> EventOrder | None:
        """Classifies an event from the broker. None if the event waits for a read of the stream."""
        if self._read is not None and event.epoch:
            self._read.add(event)
            return None
        if self._cursor is None:  # no order is known yet
            return EventOrder.NEXT
        return self._cursor.advance(event)

    def restart(self) -> None:
        """Resets the cursor for a new first listening member. Events wait for its snapshot."""
        self._cursor, self._read = None, StreamRead()

    def start(self, snapshot: Snapshot, deliver: Callable[[Event], None]) -> bool:
        """Starts the order at a snapshot, and passes the events that waited for it. False if there is a gap."""
        self._cursor = StreamCursor(snapshot)
        read, self._read = self._read, None
        return read is None or self.deliver_waiting(read, deliver)

    def start_read(self) -> StreamRead | None:
        """Starts a read: new events wait until it ends. None if a read is in progress, or if there is no cursor yet."""
        if self._read is not None or self._cursor is None:
            return None
        self._read = StreamRead()
        return self._read

    def is_current(self, read: StreamRead) -> bool:
        """False if the read has ended, or `restart` was called since."""
        return self._read is read

    def end_read(self, read: StreamRead) -> None:
        """Ends a read, so that events no longer wait. Does nothing if another read is the current one."""
        if self._read is read:
            self._read = None

    def deliver_waiting(self, read: StreamRead, deliver: Callable[[Event], None]) -> bool:
        """Passes the events that waited for a read, up to the first gap. False if there is a gap."""
        for event in read.events:
            order = self.advance(event)
            if order is EventOrder.GAP:
                return False
            if order is EventOrder.NEXT:
                deliver(event)
        return True

    def advance(self, event: Event) -> EventOrder:
        """Classifies an event from the stream. If it is the next one, moves the cursor to it."""
        return EventOrder.GAP if self._cursor is None else self._cursor.advance(event)

    def reset(self, snapshot: Snapshot) -> None:
        """Moves the cursor to a snapshot."""
        if self._cursor is not None:
            self._cursor.reset(snapshot)

    def record_repeat(self, event: Event) -> None:
        """Records an event whose offset was delivered before. It is a duplicate, or the store has lost the stream's end."""
        if self._cursor is not None:
            self._cursor.record_repeat(event)

    def clear_repeats(self, checked: Repeats | None) -> None:
        """Forgets the repeats after a check that knew them and has found the stream in the same epoch. Later ones stay."""
        if self._cursor is not None:
            self._cursor.clear_repeats(checked)
