"""The order of entries in a queue: whatever the order of intents, publishes and results, a channel's events go by offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication
from service.core.webhooks import Cursor, Entry, EntryType
from service.realtime.webhooks.order import MAX_AHEAD, EntryOrder, Ready
from service.realtime.webhooks.records import Intent, Result, WholeEntry, intent_of, result_of

EPOCH = "00000000" + "6" * 13


def intent(id: str, channel: str = "room:1", delivery: Delivery = Delivery.DURABLE) -> Intent:
    key = "k" if delivery is Delivery.LATEST else None
    return intent_of(Publication(ChannelKey("t", channel), "chat.message", id, delivery, b'{"n":1}', "ann", 1_000, key))


class Log:
    """A queue's log, and an order that reads it."""

    def __init__(self, cursor: Cursor = Cursor(EPOCH)) -> None:  # noqa: B008  # immutable
        self.order = EntryOrder("t", cursor)
        self.head = cursor.offset

    def _next(self) -> int:
        self.head += 1
        return self.head

    def intent(self, id: str, channel: str = "room:1", delivery: Delivery = Delivery.DURABLE) -> int:
        self.order.add_intent(self._next(), id, 5, intent(id, channel, delivery))
        return self.head

    def result(self, *results: Result) -> None:
        self.order.add_results(self._next(), results)

    def published(self, id: str, offset: int, epoch: str = EPOCH) -> None:
        self.result(result_of(id, PublishResult(id, epoch, offset)))

    def whole(self, user: str) -> int:
        entry = Entry(f"wh_{user}", EntryType.CONNECTED.value, 5, user=user)
        self.order.add_whole(self._next(), 5, WholeEntry(entry, user))
        return self.head

    def take(self, limit: int = 100) -> list[Any]:
        """What is ready, by event or user; it counts as done."""
        ready = self.order.ready(limit)
        self.order.finish(len(ready))
        return [shown(one) for one in ready]


def shown(ready: Ready) -> Any:
    event = ready.entry.event
    return ready.entry.user if event is None else (event.id, event.rev if event.offset is None else event.offset)


def test_event_waits_for_the_intents_before_its_result() -> None:
    log = Log()
    log.intent("a")
    log.intent("b")
    log.published("b", 2)
    assert log.take() == []
    log.published("a", 1)
    assert log.take() == [("a", 1), ("b", 2)]
    assert log.order.cursor == Cursor(EPOCH, 4)


def test_event_does_not_wait_for_intents_after_its_result() -> None:
    log = Log()
    log.intent("a")
    log.published("a", 1)
    log.intent("b")
    assert log.take() == [("a", 1)]
    assert log.order.cursor == Cursor(EPOCH, 2)


def test_event_waits_for_a_lower_offset_whose_own_result_comes_later() -> None:
    log = Log()
    log.intent("first")
    log.intent("second")
    log.published("second", 2)
    log.intent("open")
    log.published("first", 1)
    assert log.take() == [("first", 1), ("second", 2)]
    log.published("open", 3)
    assert log.take() == [("open", 3)]


def test_other_channels_and_whole_entries_do_not_wait() -> None:
    log = Log()
    log.intent("open")
    log.intent("other", "room:2")
    log.published("other", 1)
    log.whole("ann")
    assert log.take() == [("other", 1), "ann"]
    assert log.order.cursor == Cursor(EPOCH, 0, (2, 4))
    log.published("open", 1)
    assert log.take() == [("open", 1)]
    assert log.order.cursor == Cursor(EPOCH, 5)


def test_latest_and_durable_events_have_no_common_order() -> None:
    log = Log()
    log.intent("durable")
    log.intent("latest", delivery=Delivery.LATEST)
    log.result(result_of("latest", PublishResult("latest", EPOCH, state_version=7)))
    assert log.take() == [("latest", 7)]


def test_refused_event_is_passed_over() -> None:
    log = Log()
    log.intent("a")
    log.intent("b")
    log.published("b", 1)
    log.result(Result("a"))
    assert log.take() == [("b", 1)]
    assert log.order.cursor == Cursor(EPOCH, 4)


def test_first_result_of_an_intent_counts() -> None:
    log = Log()
    log.intent("a")
    log.result(Result("a"))
    log.published("a", 1)
    assert log.take() == []
    assert log.order.cursor == Cursor(EPOCH, 3)


def test_lost_event_is_told_without_a_place() -> None:
    log = Log()
    log.intent("a")
    log.result(Result("a", is_lost=True))
    [ready] = log.order.ready(1)
    event = ready.entry.event
    assert event is not None
    assert (event.id, event.offset, event.rev, event.epoch) == ("a", None, None, "")
    assert ready.entry.id.startswith("wh_")


def test_next_owner_continues_behind_what_is_done() -> None:
    first = Log()
    first.intent("open")  # 1
    first.intent("done", "room:2")  # 2
    first.published("done", 1)  # 3
    assert first.take() == [("done", 1)]
    second = Log(first.order.cursor)
    second.order = EntryOrder("t", Cursor.parse(str(first.order.cursor)))
    second.intent("open")
    second.intent("done", "room:2")
    second.published("done", 1)
    assert second.take() == []
    second.published("open", 1)
    assert second.take() == [("open", 1)]
    assert second.order.cursor == Cursor(EPOCH, 4)


def test_entry_has_the_same_id_after_a_takeover_and_another_one_in_another_place() -> None:
    ids = []
    for offset in (1, 1, 2):
        log = Log()
        log.intent("a")
        log.published("a", offset)
        ids.append(log.order.ready(1)[0].entry.id)
    assert ids[0] == ids[1] != ids[2]


def test_later_epoch_comes_after_the_one_before() -> None:
    later = "00000000" + "7" * 13
    log = Log()
    log.intent("new")
    log.intent("old")
    log.published("new", 1, later)
    log.published("old", 9)
    assert log.take() == [("old", 9), ("new", 1)]


def test_too_many_entries_ahead_of_an_open_intent_wait_for_it() -> None:
    log = Log()
    log.intent("open")
    for number in range(MAX_AHEAD + 10):
        log.whole(str(number))
    assert len(log.take(MAX_AHEAD)) == MAX_AHEAD
    assert log.take() == []
    log.result(Result("open"))
    assert len(log.take()) == 10
    assert log.order.cursor.ahead == ()


def test_entry_that_is_ready_behind_many_others_does_not_hold_them_up() -> None:
    log = Log()
    log.intent("slow")
    for number in range(MAX_AHEAD + 10):
        log.whole(str(number))
    log.published("slow", 1)
    assert len(log.take(MAX_AHEAD)) == MAX_AHEAD
    assert len(log.take()) == 11


# Publishers take three steps each, in this order: intent, publish, result. Anything may happen in between.
Steps = st.lists(st.integers(0, 11), max_size=80)


@given(Steps, st.lists(st.integers(0, 3), min_size=12, max_size=12), st.integers(1, 3), st.integers(0, 100))
@settings(max_examples=400, deadline=None)
def test_events_of_a_channel_go_by_offset_and_none_is_missing(
    steps: Sequence[int], fates: Sequence[int], channels: int, takeover: int
) -> None:
    """Twelve publishers in some channels; `fates` says which are refused (3). In the middle, another node takes over."""
    records: list[tuple[str, int, int]] = []  # kind, publisher, offset in the channel
    offsets = dict.fromkeys(range(channels), 0)
    place: dict[int, int] = {}
    progress = [0] * 12
    for who in [*steps, *(one for one in range(12) for _ in range(3))]:
        if progress[who] == 0:
            records.append(("intent", who, 0))
        elif progress[who] == 1 and fates[who] != 3:
            offsets[who % channels] += 1
            place[who] = offsets[who % channels]
        elif progress[who] == 2:
            records.append(("result", who, place.get(who, 0)))
        progress[who] += 1
    cut = takeover * len(records) // 100
    told: list[tuple[int, int]] = []

    def read(order: EntryOrder, until: int) -> None:
        for at in range(order.read_offset, until):
            kind, who, offset = records[at]
            if kind == "intent":
                order.add_intent(at + 1, str(who), 5, intent(str(who), f"room:{who % channels}"))
            else:
                order.add_results(at + 1, [Result(str(who), EPOCH if offset else "", offset)])
            ready = order.ready(2)
            order.finish(len(ready))
            for one in ready:
                event = one.entry.event
                assert event is not None
                told.append((int(event.id) % channels, event.offset or 0))

    first = EntryOrder("t", Cursor(EPOCH))
    read(first, cut)
    second = EntryOrder("t", first.cursor)
    read(second, len(records))
    while ready := second.ready(5):
        second.finish(len(ready))
        told += [(int(one.entry.event.id) % channels, one.entry.event.offset or 0) for one in ready if one.entry.event]
    for channel, count in offsets.items():
        assert [offset for found, offset in told if found == channel] == list(range(1, count + 1))
    assert second.cursor == Cursor(EPOCH, len(records))
