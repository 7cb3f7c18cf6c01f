"""The cursor of a stream: how an event relates to the events before it."""

from __future__ import annotations

from service.core.broker import Snapshot
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.core.position import Position
from service.core.stream_cursor import EventOrder, StreamCursor

ROOM = ChannelKey("t", "room:1")


def durable(offset: int, epoch: str = "e") -> Event:
    return Event(ROOM, "a.b", f"m-{offset}", Delivery.DURABLE, b"{}", None, 0, offset, epoch=epoch)


def latest(version: int, epoch: str = "e") -> Event:
    return Event(ROOM, "a.b", f"v-{version}", Delivery.LATEST, b"{}", None, 0, state_version=version, epoch=epoch)


def cursor(offset: int = 3, state_version: int = 3) -> StreamCursor:
    return StreamCursor(Snapshot(Position("e", offset), (), (), None, state_version))


def test_event_of_another_epoch_is_a_gap() -> None:
    at = cursor()
    assert [at.advance(durable(4, "f")), at.advance(latest(4, "f"))] == [EventOrder.GAP] * 2
    assert [at.advance(durable(4)), at.advance(latest(4))] == [EventOrder.NEXT] * 2, "a gap moves nothing"


def test_delivered_head_has_the_lowest_repeat_until_it_is_cleared() -> None:
    at = cursor()
    seen = [at.delivered.lowest_repeat]
    for event in (durable(3), durable(2), durable(3), latest(1)):
        at.record_repeat(event)
    seen.append(at.delivered.lowest_repeat)
    at.clear_repeats(at.repeats)
    assert [*seen, at.delivered.lowest_repeat] == [None, 2, None]


def test_check_after_a_repeat_asks_about_the_event_before_it() -> None:
    at = cursor()
    at.record_repeat(durable(3))
    checked = at.repeats
    at.advance(durable(4))
    assert (at.head_to_check.position.offset, at.head_to_check.lowest_repeat) == (3, 3)
    assert at.delivered.position.offset == 4
    at.record_repeat(durable(4))
    at.clear_repeats(checked)
    assert at.head_to_check.position.offset == 3, "the second repeat came after the check had begun"
    at.clear_repeats(at.repeats)
    assert (at.head_to_check.position.offset, at.head_to_check.lowest_repeat) == (4, None)
