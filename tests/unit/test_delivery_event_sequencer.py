"""The order of a channel's events: what passes, what waits for a read of the stream, and where a gap shows."""

from __future__ import annotations

from service.core.broker import Snapshot
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.core.position import Position
from service.core.stream_cursor import EventOrder
from service.realtime.delivery.event_sequencer import MAX_WAITING_EVENTS, EventSequencer

KEY = ChannelKey("t", "room:1")


def event(offset: int) -> Event:
    return Event(KEY, "a.b", str(offset), Delivery.DURABLE, b"{}", None, at=0, offset=offset, epoch="e")


def snapshot(offset: int) -> Snapshot:
    return Snapshot(Position("e", offset, str(offset)), (), (), None)


def started(offset: int) -> EventSequencer:
    sequencer = EventSequencer()
    sequencer.restart()
    assert sequencer.start(snapshot(offset), lambda event: None)
    return sequencer


def test_accept_passes_the_next_event_and_reports_gaps_and_duplicates() -> None:
    sequencer = started(4)
    orders = [sequencer.accept(event(offset)) for offset in (5, 5, 7, 6)]
    assert orders == [EventOrder.NEXT, EventOrder.DUPLICATE, EventOrder.GAP, EventOrder.NEXT]


def test_events_before_the_first_snapshot_wait_for_it() -> None:
    sequencer, delivered = EventSequencer(), list[Event]()
    sequencer.restart()
    assert [sequencer.accept(event(offset)) for offset in (4, 5, 6)] == [None] * 3
    assert sequencer.start(snapshot(4), delivered.append)
    assert [one.offset for one in delivered] == [5, 6]
    assert sequencer.accept(event(7)) is EventOrder.NEXT


def test_start_reports_a_gap_after_the_snapshot() -> None:
    sequencer, delivered = EventSequencer(), list[Event]()
    sequencer.restart()
    sequencer.accept(event(6))
    assert not sequencer.start(snapshot(4), delivered.append)
    assert delivered == []


def test_events_during_a_read_are_delivered_after_it() -> None:
    sequencer, delivered = started(4), list[Event]()
    read = sequencer.start_read()
    assert read is not None
    assert [sequencer.accept(event(offset)) for offset in (7, 8)] == [None, None]
    for missed in (5, 6):
        sequencer.advance(event(missed))
    assert sequencer.deliver_waiting(read, delivered.append)
    sequencer.end_read(read)
    assert [one.offset for one in delivered] == [7, 8]
    assert sequencer.accept(event(9)) is EventOrder.NEXT


def test_second_read_does_not_start_during_the_first() -> None:
    sequencer = started(4)
    assert sequencer.start_read() is not None
    assert sequencer.start_read() is None


def test_read_does_not_start_without_a_cursor() -> None:
    assert EventSequencer().start_read() is None


def test_restart_ends_the_current_read() -> None:
    sequencer = started(4)
    read = sequencer.start_read()
    assert read is not None
    sequencer.restart()
    assert not sequencer.is_current(read)
    sequencer.end_read(read)
    assert sequencer.is_reading, "the new order still waits for its snapshot"


def test_waiting_events_above_the_maximum_show_as_a_gap() -> None:
    sequencer = started(0)
    read = sequencer.start_read()
    assert read is not None
    for offset in range(1, MAX_WAITING_EVENTS + 2):
        sequencer.accept(event(offset))
    assert [one.offset for one in read.events] == [MAX_WAITING_EVENTS + 1]
    assert not sequencer.deliver_waiting(read, lambda event: None)
