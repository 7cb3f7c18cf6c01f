"""A smoke test of the oracle: it finds each kind of fault that is planted, and none in a clean story."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.faults.books import Ack, Diary, Key, Stretch, Told, Top, line
from tests.faults.oracle import Counts, judge
from tests.faults.slowdown import CpuTimes, slowdown

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


@pytest.mark.parametrize("gone", [0, 4, 9])
def test_hole_is_a_loss(gone: int) -> None:
    events = acks(range(1, 11))
    counts = story(events, stretch(events[:gone] + events[gone + 1 :]))
    assert figures(counts) == (1, 0, 0, 0, 0, 0)
    assert str(events[gone].line) in counts.examples[0]
    assert not counts.clean


def test_client_left_behind_is_counted_apart() -> None:
    events = acks(range(1, 11))
    assert figures(story(events, stretch(events[:8]), tops=("one", 10))) == (2, 0, 0, 0, 0, 1)
    assert figures(story(events, tops=("one", 10)))[5] == 1


def test_repetition_at_another_offset_is_a_duplicate() -> None:
    events = acks(range(1, 4))
    again = Ack(HALL, events[2].line, "one", 4, 9.0, 9.5)
    counts = story(events, stretch([*events, again]))
    assert figures(counts) == (0, 1, 0, 0, 0, 0)


def test_swapped_offsets_are_an_inversion() -> None:
    events = acks(range(1, 5))
    assert figures(story(events, stretch([events[0], events[2], events[1], events[3]]))) == (0, 0, 1, 0, 0, 0)


def test_payload_of_another_tenant_is_counted() -> None:
    assert figures(story([], stretch([]), foreign=3)) == (0, 0, 0, 3, 0, 0)


def test_announced_loss_is_counted_apart() -> None:
    before, after = acks(range(1, 11)), acks(range(1, 4), "two", start=10, at=20)
    counts = story(
        [*before, *after],
        stretch(before[:7]),
        stretch(after[1:], "two", base=1, told=Told.LOST, at=21),
        tops=("two", 3),
    )
    assert figures(counts) == (0, 0, 0, 0, 4, 0)
    assert counts.clean


def test_unannounced_epoch_change_is_a_loss() -> None:
    before, after = acks(range(1, 11)), acks(range(1, 4), "two", start=10, at=20)
    counts = story([*before, *after], stretch(before[:7]), stretch(after[1:], "two", base=1, told=Told.KEPT, at=21))
    assert figures(counts) == (4, 0, 0, 0, 0, 0)


def test_lagging_failover_with_equal_offsets_is_a_loss() -> None:
    """Offset and epoch go on as if nothing had happened; five events are other ones."""
    first, others = acks(range(1, 6)), acks(range(1, 6), publisher=2, at=10)
    counts = story([*first, *others], stretch(first), tops=("one", 5))
    assert figures(counts) == (5, 0, 0, 0, 0, 0)


def test_waiting_for_a_core_is_a_slowdown_and_running_is_none() -> None:
    second = 1_000_000_000
    assert slowdown(CpuTimes(second, second), CpuTimes(2 * second, 5 * second)) == 5.0
    assert slowdown(CpuTimes(), CpuTimes(9 * second, second)) == 1.0
