"""When a client can resume from a position: compared with a naive model, and by example."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.core.position import Position, events_after

EPOCH = "a1b2c3d4e5f60718"
ROOM = ChannelKey("acme", "room:1")


def event(offset: int, id: str) -> Event:
    return Event(ROOM, "chat.message", id, Delivery.DURABLE, b"{}", "ann", 0, offset=offset)


def stream(ids: Sequence[str]) -> list[Event]:
    return [event(offset, id) for offset, id in enumerate(ids, 1)]


def end_of(events: Sequence[Event], epoch: str = EPOCH) -> Position:
    return Position(epoch, len(events), events[-1].id if events else None)


def naive(since: Position, top: Position, kept: Sequence[Event]) -> list[Event] | None:
    """Maps every position that the stream can confirm to the events after it."""
    if since.epoch != top.epoch:
        return None
    confirmed = {(top.offset, top.id): list[Event]()}
    for index, entry in enumerate(kept):
        confirmed[entry.offset or 0, entry.id] = list(kept[index + 1 :])
    if kept and kept[0].offset == 1:
        confirmed[0, None] = list(kept)
    return confirmed.get((since.offset, since.id))


@given(
    length=st.integers(0, 12),
    trimmed=st.integers(0, 12),
    offset=st.integers(0, 14),
    id=st.none() | st.integers(0, 14).map("m-{}".format),
    epoch=st.sampled_from([EPOCH, "another"]),
)
def test_events_after_any_position_agrees_with_naive_model(
    length: int, trimmed: int, offset: int, id: str | None, epoch: str
) -> None:
    events = stream([f"m-{n}" for n in range(1, length + 1)])
    top, kept = end_of(events), events[trimmed:]
    for since in (Position(epoch, offset, id), Position(EPOCH, offset, f"m-{offset}" if offset else None)):
        found = events_after(since, top, kept)
        assert (None if found is None else list(found)) == naive(since, top, kept)


@given(
    common=st.integers(0, 8),
    lost=st.integers(0, 8),
    later=st.integers(0, 16),
    seen=st.integers(0, 16),
    kept=st.integers(0, 24),
)
def test_events_after_lossy_failover_never_leaves_a_hole(
    common: int, lost: int, later: int, seen: int, kept: int
) -> None:
    """A client of the old branch resumes on the new one."""
    old = stream([f"m-{n}" for n in range(common)] + [f"lost-{n}" for n in range(lost)])
    new = stream([f"m-{n}" for n in range(common)] + [f"new-{n}" for n in range(later)])
    applied = old[: min(seen, len(old))]
    found = events_after(end_of(applied), end_of(new), new[max(0, len(new) - kept) :])
    if found is not None:
        assert [*applied, *found] == new


@given(length=st.integers(1, 12), suffix=st.integers(0, 12), offset=st.integers(0, 12))
def test_events_after_with_shorter_tail_is_equal_or_none(length: int, suffix: int, offset: int) -> None:
    events = stream([f"m-{n}" for n in range(1, length + 1)])
    offset = min(offset, length)
    since = end_of(events[:offset])
    whole, part = (
        events_after(since, end_of(events), events),
        events_after(since, end_of(events), events[length - min(suffix, length) :]),
    )
    assert part is None or part == whole or list(part) == list(whole or [])
    if suffix >= length - offset + 1:
        assert part is not None


@pytest.mark.parametrize(
    ("since", "offsets"),
    [
        pytest.param(Position(EPOCH, 10, "m-10"), [], id="at the newest position"),
        pytest.param(Position(EPOCH, 9, "m-9"), [10], id="one behind"),
        pytest.param(Position(EPOCH, 6, "m-6"), [7, 8, 9, 10], id="the oldest kept"),
        pytest.param(Position(EPOCH, 5, "m-5"), None, id="before the oldest kept"),
        pytest.param(Position(EPOCH, 0, None), None, id="at the beginning of a trimmed stream"),
        pytest.param(Position(EPOCH, 11, "m-11"), None, id="ahead of the stream"),
        pytest.param(Position(EPOCH, 10, "m-9"), None, id="another id at the newest position"),
        pytest.param(Position(EPOCH, 10, None), None, id="no id at the newest position"),
        pytest.param(Position(EPOCH, 8, "x"), None, id="another id in the middle"),
        pytest.param(Position(EPOCH, 8, None), None, id="no id in the middle"),
        pytest.param(Position("another", 10, "m-10"), None, id="another epoch"),
        pytest.param(Position(EPOCH, -1, None), None, id="below the beginning"),
        pytest.param(Position(EPOCH, -1, "m-10"), None, id="below the beginning, with the newest id"),
    ],
)
def test_events_after_position_in_trimmed_stream_returns_kept_events_or_none(
    since: Position, offsets: list[int] | None
) -> None:
    events = stream([f"m-{n}" for n in range(1, 11)])
    found = events_after(since, end_of(events), events[5:])
    assert (None if found is None else [entry.offset for entry in found]) == offsets


def test_events_after_in_empty_stream_accepts_only_its_start() -> None:
    empty = Position(EPOCH, 0)
    assert events_after(empty, empty, ()) == ()
    assert events_after(replace(empty, id="m-1"), empty, ()) is None
    assert events_after(Position(EPOCH, 1, "m-1"), empty, ()) is None


def test_events_after_beginning_of_whole_stream_returns_all() -> None:
    events = stream(["a", "b"])
    assert events_after(Position(EPOCH, 0), end_of(events), events) == events
    assert events_after(Position(EPOCH, 0, "a"), end_of(events), events) is None


def test_events_after_newest_position_needs_no_kept_events() -> None:
    top = Position(EPOCH, 3, "m-3")
    assert events_after(top, top, ()) == ()
    assert events_after(Position(EPOCH, 2, "m-2"), top, ()) is None
