"""The order of one channel's events in a room, and the events that wait while the channel's stream is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from service.core.broker import Snapshot
from service.core.event import Event
from service.core.stream_cursor import EventOrder, StreamCursor

MAX_WAITING_EVENTS = 1_000
"""Events that wait while the stream is read. With more, all are dropped: the stream is read again and returns them."""


class StreamRead:
    """One read of the channel's stream, and the events that arrive meanwhile."""

    __slots__ = ("_events",)

    def __init__(self) -> None:
        self._events: list[Event] = []

    @property
    def events(self) -> Iterable[Event]:
        """The events, in the order of their arrival."""
        return self._events

    def add(self, event: Event) -> None:
        """Keeps an event that arrived during the read."""
        if len(self._events) >= MAX_WAITING_EVENTS:
            self._events.clear()  # the next event then shows a gap
        self._events.append(event)

    def clear(self) -> None:
        """Drops the events: a read that starts now returns them, or they are lost."""
        self._events.clear()


class EventSequencer:
    """Passes each event of a channel once and in order.

    The order starts again with every first listener: events are kept until its snapshot says where the order starts.
    """

    __slots__ = ("_cursor", "_read")

    def __init__(self) -> None:
        self._cursor: StreamCursor | None = None
        self._read: StreamRead | None = None

    @property
    def cursor(self) -> StreamCursor | None:
        """How far the room has delivered; None until the first snapshot."""
        return self._cursor

    @property
    def is_reading(self) -> bool:
        """True while events wait for the stream to be read."""
        return self._read is not None

    def accept(self, event: Event) -> EventOrder | None:
        """Classifies an event from the broker. None: it waits until the stream has been read."""
        if self._read is not None and event.epoch:
            self._read.add(event)
            return None
        if self._cursor is None:  # no order is known yet
            return EventOrder.NEXT
        return self._cursor.advance(event)

    def restart(self) -> None:
        """Forgets the order, for a new first listener: events wait for its snapshot."""
        self._cursor, self._read = None, StreamRead()

    def start(self, snapshot: Snapshot, deliver: Callable[[Event], None]) -> bool:
        """Starts the order at a snapshot, and passes the events that waited for it. False if an event is missing."""
        self._cursor = StreamCursor(snapshot)
        read, self._read = self._read, None
        return read is None or self.deliver_waiting(read, deliver)

    def start_read(self) -> StreamRead | None:
        """Makes events wait while the stream is read. None if it is already being read, or without a cursor to read from."""
        if self._read is not None or self._cursor is None:
            return None
        self._read = StreamRead()
        return self._read

    def is_current(self, read: StreamRead) -> bool:
        """False if the read has ended, or the order has started again since."""
        return self._read is read

    def end_read(self, read: StreamRead) -> None:
        """Ends a read: events pass as they arrive. Does nothing if the read is not the current one."""
        if self._read is read:
            self._read = None

    def deliver_waiting(self, read: StreamRead, deliver: Callable[[Event], None]) -> bool:
        """Passes the events that waited for a read, until one is missing. False if one is."""
        for event in read.events:
            order = self.advance(event)
            if order is EventOrder.GAP:
                return False
            if order is EventOrder.NEXT:
                deliver(event)
        return True

    def advance(self, event: Event) -> EventOrder:
        """Classifies an event that was read from the stream, and moves the cursor to it if it is next."""
        return EventOrder.GAP if self._cursor is None else self._cursor.advance(event)

    def reset(self, snapshot: Snapshot) -> None:
        """Moves the cursor to a snapshot."""
        if self._cursor is not None:
            self._cursor.reset(snapshot)

    def record_repeat(self, event: Event) -> None:
        """Records an event whose offset was delivered before: a repeat, or a sign that the stream was set back."""
        if self._cursor is not None:
            self._cursor.record_repeat(event)

    def clear_repeats(self) -> None:
        """Forgets the repeats, after a comparison found the stream in the same epoch."""
        if self._cursor is not None:
            self._cursor.clear_repeats()
