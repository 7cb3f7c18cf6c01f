"""The oracle finds each kind of fault when one is planted, and nothing in a story without one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults.books import Ack, Diary, Key, Stretch, Told, Top, line
from tests.faults.oracle import Counts, judge

HALL = Key("red", "hall:1")


def acks(
    offsets: Sequence[int], epoch: str = "one", *, publisher: int = 1, start: int = 0, at: float = 0.0
) -> list[Ack]:
    """Acknowledged events: the publisher's `start`th on, one a second from `at`."""
    return [
        Ack(HALL, line(publisher, start + index), epoch, offset, at + index, at + index + 0.5)
        for index, offset in enumerate(offsets)
    ]


def stretch(
    events: Sequence[Ack], epoch: str = "one", *, base: int = 0, told: Told = Told.FRESH, at: float = 0.0, top: int = 0
) -> Stretch:
    """What a client applied."""
    offsets = [event.offset for event in events]
    return Stretch(epoch, base, told, at, max([*offsets, top, base]), offsets, [event.line for event in events])


def story(
    published: Sequence[Ack], *stretches: Stretch, tops: tuple[str, int] | None = None, foreign: int = 0
) -> Counts:
    """The judgement of one client."""
    diary = Diary(7, HALL, list(stretches), foreign)
    return judge(published, [diary], {HALL: Top(*tops)} if tops is not None else None)


def figures(counts: Counts) -> tuple[int, ...]:
    return counts.lost, counts.duplicated, counts.inverted, counts.foreign, counts.announced, counts.behind


CLEAN = (0, 0, 0, 0, 0, 0)


def test_everything_once_in_order_is_clean() -> None:
    events = acks(range(1, 11))
    counts = story(events, stretch(events), tops=("one", 10))
    assert figures(counts) == CLEAN
    assert counts.clean


def test_what_came_before_the_client_is_not_its_business() -> None:
    events = acks(range(1, 11))
    assert figures(story(events, stretch(events[4:], base=4), tops=("one", 10))) == CLEAN


@pytest.mark.parametrize("gone", [0, 4, 9])
def test_a_hole_is_a_loss(gone: int) -> None:
    events = acks(range(1, 11))
    counts = story(events, stretch(events[:gone] + events[gone + 1 :]))
    assert figures(counts) == (1, 0, 0, 0, 0, 0)
    assert str(events[gone].line) in counts.examples[0]
    assert not counts.clean


def test_a_position_that_moves_past_events_never_applied_is_a_loss() -> None:
    events = acks(range(1, 11))
    assert figures(story(events, stretch(events[:6], top=10), tops=("one", 10))) == (4, 0, 0, 0, 0, 0)


def test_a_client_left_behind_is_told_apart() -> None:
    events = acks(range(1, 11))
    assert figures(story(events, stretch(events[:8]), tops=("one", 10))) == (2, 0, 0, 0, 0, 1)
    assert figures(story(events, tops=("one", 10)))[5] == 1


def test_a_repetition_is_a_duplicate_even_at_another_offset() -> None:
    events = acks(range(1, 4))
    again = Ack(HALL, events[2].line, "one", 4, 9.0, 9.5)
    counts = story(events, stretch([*events, again]))
    assert figures(counts) == (0, 1, 0, 0, 0, 0)


def test_a_repetition_at_the_same_offset_is_an_inversion_too() -> None:
    events = acks(range(1, 4))
    assert figures(story(events, stretch([*events, events[2]]))) == (0, 1, 1, 0, 0, 0)


def test_a_swap_of_offsets_is_an_inversion() -> None:
    events = acks(range(1, 5))
    assert figures(story(events, stretch([events[0], events[2], events[1], events[3]]))) == (0, 0, 1, 0, 0, 0)


def test_a_publishers_events_in_the_wrong_order_are_an_inversion_though_offsets_rise() -> None:
    first, second = acks([2], start=0), acks([1], start=1)
    assert figures(story([*first, *second], stretch([*second, *first]))) == (0, 0, 1, 0, 0, 0)


def test_publishers_do_not_bind_each_other() -> None:
    mine, yours = acks([2, 4], publisher=1), acks([1, 3], publisher=2)
    assert figures(story([*mine, *yours], stretch([yours[0], mine[0], yours[1], mine[1]]))) == CLEAN


def test_a_payload_of_another_tenant_counts() -> None:
    assert figures(story([], stretch([]), foreign=3)) == (0, 0, 0, 3, 0, 0)


def test_an_announced_loss_is_counted_apart() -> None:
    before, after = acks(range(1, 11)), acks(range(1, 4), "two", start=10, at=20)
    counts = story(
        [*before, *after],
        stretch(before[:7]),
        stretch(after[1:], "two", base=1, told=Told.LOST, at=21),
        tops=("two", 3),
    )
    assert figures(counts) == (0, 0, 0, 0, 4, 0)
    assert counts.clean


def test_the_same_without_the_announcement_is_a_loss() -> None:
    before, after = acks(range(1, 11)), acks(range(1, 4), "two", start=10, at=20)
    counts = story([*before, *after], stretch(before[:7]), stretch(after[1:], "two", base=1, told=Told.KEPT, at=21))
    assert figures(counts) == (4, 0, 0, 0, 0, 0)


def test_an_announcement_does_not_excuse_a_hole_before_it() -> None:
    before, after = acks(range(1, 11)), acks(range(1, 4), "two", start=10, at=20)
    counts = story(
        [*before, *after],
        stretch([*before[:3], *before[4:7]]),
        stretch(after, "two", told=Told.LOST, at=20),
    )
    assert figures(counts) == (1, 0, 0, 0, 3, 0)


def test_an_epoch_passed_over_with_an_announcement_is_announced() -> None:
    events = [*acks([1, 2]), *acks([1, 2], "two", start=2, at=10), *acks([1], "three", start=4, at=20)]
    counts = story(events, stretch(events[:2]), stretch(events[4:], "three", told=Told.LOST, at=20))
    assert figures(counts) == (0, 0, 0, 0, 2, 0)


def test_an_epoch_that_a_client_never_hears_of_is_lost() -> None:
    events = [*acks([1, 2]), *acks([1, 2], "two", start=2, at=10)]
    assert figures(story(events, stretch(events[:2]), tops=("two", 2))) == (2, 0, 0, 0, 0, 1)


def test_an_epoch_before_the_clients_time_is_not_its_business() -> None:
    events = [*acks([1, 2]), *acks([1, 2], "two", start=2, at=10)]
    assert figures(story(events, stretch(events[2:], "two", at=9))) == CLEAN


def test_a_lagging_failover_whose_numbers_match_is_found() -> None:
    """Offset and epoch go on as if nothing had happened; five events are other ones."""
    first, others = acks(range(1, 6)), acks(range(1, 6), publisher=2, at=10)
    counts = story([*first, *others], stretch(first), tops=("one", 5))
    assert figures(counts) == (5, 0, 0, 0, 0, 0)


def test_a_retry_accepted_again_after_an_announcement_is_no_duplicate() -> None:
    events = acks([1, 2])
    again = Ack(HALL, events[1].line, "two", 2, 9.0, 9.5)
    counts = story([events[0], again], stretch(events), stretch([again], "two", base=1, told=Told.LOST, at=9))
    assert figures(counts) == CLEAN


def test_an_acknowledgement_without_an_epoch_belongs_to_the_one_told_around_it() -> None:
    events = acks(range(1, 4))
    silent = Ack(HALL, line(2, 0), "", 4, 1.6, 1.9)
    counts = story([*events, silent], stretch(events, top=4))
    assert figures(counts) == (1, 0, 0, 0, 0, 0)


def test_an_acknowledgement_of_a_doubtful_epoch_is_lost_only_if_it_is_in_every_one() -> None:
    before, after = acks([1, 2, 3]), acks([1], "two", start=3, at=10)
    silent = Ack(HALL, line(2, 0), "", 4, 5.0, 6.0)
    told = story([*before, silent, *after], stretch(before), stretch(after, "two", told=Told.LOST, at=10))
    assert figures(told) == (0, 0, 0, 0, 1, 0)
    untold = story([*before, silent, *after], stretch(before), stretch(after, "two", told=Told.KEPT, at=10))
    assert figures(untold) == (1, 0, 0, 0, 0, 0)


def test_examples_are_few() -> None:
    events = acks(range(1, 101))
    counts = story(events, stretch([], top=100))
    assert counts.lost == 100
    assert len(counts.examples) == 12


@pytest.mark.parametrize("told", [Told.LOST, Told.KEPT, None])
def test_of_two_events_at_one_place_the_one_that_was_not_seen_has_to_be_announced(told: Told | None) -> None:
    first, again = acks(range(1, 6)), acks([4, 5], start=10, at=20.0)
    after = acks([6, 7], "two", start=20, at=30.0)
    way = [stretch(first)] if told is None else [stretch(first), stretch(after, "two", base=5, told=told, at=30.0)]
    counts = story([*first, *again, *after], *way)
    assert (counts.lost, counts.announced) == {Told.LOST: (0, 2), Told.KEPT: (2, 0), None: (4, 0)}[told]
