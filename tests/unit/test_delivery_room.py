"""A room: when it writes frames, to which members, and in which batches. With a fake clock."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.model import ChannelSpec
from service.core.access import SubscribeRule
from service.core.broker import Snapshot
from service.core.channel import ChannelKey, ChannelPattern
from service.core.event import Delivery
from service.core.limits import Compression
from service.core.position import Position
from service.core.session import PresenceAccess, Subscription
from service.protocol.close import CloseCode
from service.realtime.connections.byte_budget import MAX_SMALL_REPLY
from service.realtime.connections.connection import MAX_GATHERED, Connection
from service.realtime.connections.context import RoomContext
from service.realtime.connections.encoder import MAX_BATCH_BYTES, Batch, FrameEncoder
from service.realtime.connections.frame import Frame
from service.realtime.connections.write_scheduler import MAX_FAN_OUT_SECONDS, MAX_SLICE_MEMBERS, WriteScheduler
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.harness import DEADLINE

KEY = ChannelKey("t", "room:1")
SPEC = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})


class Member:
    """A connection that records what is delivered to it."""

    is_clear = False
    window_bits = 15
    """Else the only member of a room would get its events without a batch."""
    fd = -1

    def __init__(self, *, keeps_up: bool = True) -> None:
        self.keeps_up = keeps_up
        self.batches: list[Any] = []
        self.closed: list[CloseCode] = []
        self.room: Room | None = None
        self.subscription = Subscription(KEY, None)
        self.on_deliver: Callable[[], None] = lambda: None
        self.written = asyncio.Event()
        """Set while nothing is queued for the member."""
        self.written.set()

    def deliver(self, batch: Batch) -> bool:
        self.on_deliver()
        self.batches.append(json.loads(batch.payload))
        return self.keeps_up

    async def wait_written(self) -> None:
        await self.written.wait()

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed.append(code)
        if self.room is not None:
            self.room.remove(cast("Connection", self))

    def fail(self) -> None:
        self.close(CloseCode.INTERNAL, "")


class Alone(Member):
    """A member that reads no compressed frames, so that it may get events without a batch."""

    window_bits = 0

    def __init__(self, *, keeps_up: bool = True, breaks: bool = False) -> None:
        super().__init__(keeps_up=keeps_up)
        self.gathered: list[Any] = []
        self._breaks = breaks

    def gather(self, frame: Frame) -> bool:
        if self._breaks:
            raise RuntimeError("unable to perform operation; the handler is closed")
        self.gathered.append(json.loads(frame.payload))
        return self.keeps_up


class ClearMember(Member):
    """A member with nothing queued: rooms write to it directly."""

    is_clear = True

    @property
    def writer(self) -> ClearMember:
        return self

    def write(self, wire: bytes) -> None:
        self.batches.append(json.loads(wire[2:]))


class BrokenMember(ClearMember):
    """A member whose transport raises."""

    def write(self, wire: bytes) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")


class BrokenEncoder(FrameEncoder):
    """Raises before a broadcast has members."""

    @staticmethod
    def encode_plain(payload: bytes) -> bytes:
        if b"poison" in payload:
            raise MemoryError
        return FrameEncoder.encode_plain(payload)


AnyMember = TypeVar("AnyMember", bound=Member)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def room(clock: FakeClock, metrics: Metrics) -> Room:
    return hub_of(clock, metrics=metrics).open(KEY, SPEC)


def hub_of(
    clock: FakeClock,
    *,
    metrics: Metrics | None = None,
    encoder: FrameEncoder | None = None,
    scheduler: WriteScheduler | None = None,
    max_batch: int = 100,
) -> Hub:
    return Hub(
        RoomContext(
            clock,
            metrics or Metrics(),
            scheduler or scheduler_of(clock),
            encoder or FrameEncoder(Compression()),
            max_batch,
        )
    )


def scheduler_of(clock: FakeClock) -> WriteScheduler:
    return WriteScheduler(clock, lambda callback: clock.call_later(0.0, callback))


def messages_out(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("tidewire_messages_out_total", {"type": "other"})


def add_live(room: Room, member: AnyMember, access: PresenceAccess = PresenceAccess.NONE) -> AnyMember:
    connection = cast("Connection", member)
    member.subscription = Subscription(KEY, None, presence=access)
    room.add_member(connection)
    room.make_live(connection, member.subscription)
    return member


def flat(batches: list[Any]) -> list[str]:
    return [name for batch in batches for name in (batch if isinstance(batch, list) else [batch])]


def frame(name: str, key: str | None = None) -> Frame:
    replaced_by = None if key is None else ("room:1", "a.b", key)
    return Frame(json.dumps(name).encode(), "a.b", Delivery.DURABLE if key is None else Delivery.LATEST, replaced_by)


def test_events_of_one_loop_iteration_are_one_batch(room: Room, clock: FakeClock) -> None:
    member = add_live(room, Member())
    for name in ("1", "2", "3"):
        room.push(frame(name), 0.0)
    assert member.batches == []
    clock.advance(0)
    assert member.batches == [["1", "2", "3"]]
    room.push(frame("4"), 0.0)
    clock.advance(0)
    assert member.batches[1:] == ["4"], "a single frame is not wrapped in an array"


def test_first_event_is_written_at_once_and_later_ones_after_the_window(room: Room, clock: FakeClock) -> None:
    member = add_live(room, Member())
    room.push(frame("1"), 0.1)
    clock.advance(0)
    assert member.batches == ["1"]
    for name in ("2", "3"):
        clock.advance(0.03)
        room.push(frame(name), 0.1)
    assert member.batches == ["1"]
    clock.advance(0.05)
    assert member.batches == ["1", ["2", "3"]]
    clock.advance(0.2)
    room.push(frame("4"), 0.1)
    clock.advance(0)
    assert member.batches[-1] == "4"


def test_event_without_window_flushes_pending_events(room: Room, clock: FakeClock) -> None:
    member = add_live(room, Member())
    room.push(frame("0"), 0.1)
    clock.advance(0)
    room.push(frame("slow"), 0.1)
    room.push(frame("urgent"), 0.0)
    clock.advance(0)
    assert member.batches == ["0", ["slow", "urgent"]]
    clock.advance(1)
    assert len(member.batches) == 2, "the timer of the window has nothing to write"


def test_newest_value_of_a_key_replaces_the_pending_one(room: Room, clock: FakeClock) -> None:
    member = add_live(room, Member())
    for name, key in (("a1", "a"), ("b1", "b"), ("a2", "a")):
        room.push(frame(name, key), 0.0)
    clock.advance(0)
    assert member.batches == [["a2", "b1"]]


def test_replacement_that_keeps_order_goes_to_the_end(room: Room, clock: FakeClock) -> None:
    member = add_live(room, Member())
    for kind in ("joined", "left", "joined"):
        key = ("room:1", kind, "ann")
        room.push(Frame(json.dumps(kind).encode(), kind, Delivery.LATEST, key, keeps_order=True), 0.0)
    clock.advance(0)
    assert member.batches == [["left", "joined"]]


def test_slow_member_is_closed_and_others_get_the_event(room: Room, clock: FakeClock) -> None:
    members = [add_live(room, Member(keeps_up=index != 1)) for index in range(3)]
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert [member.batches for member in members] == [["1"]] * 3
    assert [member.closed for member in members] == [[], [CloseCode.SLOW_CONSUMER], []]


def test_slow_member_gets_no_later_batch(room: Room, clock: FakeClock) -> None:
    slow = add_live(room, Member(keeps_up=False))
    slow.room = room
    for _ in range(3):
        room.push(frame("x" * MAX_BATCH_BYTES), 0.0)
    clock.advance(0)
    assert (len(slow.batches), slow.closed) == (1, [CloseCode.SLOW_CONSUMER])


def test_broadcast_is_counted_for_each_member_and_its_latency_once(
    room: Room, clock: FakeClock, metrics: Metrics
) -> None:
    for _ in range(3):
        add_live(room, Member())
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert metrics.registry.get_sample_value("tidewire_publish_to_write_seconds_count") == 1
    assert messages_out(metrics) == 3


def test_clear_member_is_written_to_directly(room: Room, clock: FakeClock) -> None:
    member = add_live(room, ClearMember())
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert member.batches == ["1"]


# --- one member: without batches --------------------------------------------------------------------------------------


def test_only_member_gets_an_event_without_a_batch(room: Room, clock: FakeClock, metrics: Metrics) -> None:
    member = add_live(room, Alone())
    room.push(frame("1"), 0.0)
    assert member.gathered == ["1"], "before the end of the loop iteration"
    assert messages_out(metrics) == 1
    other = add_live(room, Alone())
    room.push(frame("2"), 0.0)
    clock.advance(0)
    assert [(one.gathered, one.batches) for one in (member, other)] == [(["1"], ["2"]), ([], ["2"])]


@pytest.mark.parametrize("window", [0.0, 0.1])
def test_only_member_gets_an_event_after_the_pending_batch(room: Room, clock: FakeClock, window: float) -> None:
    member = add_live(room, Alone())
    room.push(frame("0"), 0.0)
    room.push(frame("1", key=None if window else "k"), window)
    room.push(frame("2"), 0.0)
    assert (member.gathered, member.batches) == (["0"], [])
    clock.advance(0)
    assert member.batches == [["1", "2"]]
    room.push(frame("3"), 0.0)
    assert member.gathered == ["0", "3"]


def test_event_without_a_batch_starts_the_window(room: Room, clock: FakeClock) -> None:
    member = add_live(room, Alone())
    room.push(Frame(b'"0"', "a.b", Delivery.DURABLE, received_at=clock.monotonic()), 0.0)
    room.push(frame("1"), 0.1)
    clock.advance(0)
    assert member.batches == []
    clock.advance(0.1)
    assert member.batches == ["1"]


def test_large_event_is_not_copied_for_the_only_member(room: Room, clock: FakeClock) -> None:
    member = add_live(room, Alone())
    room.push(frame("x" * MAX_SMALL_REPLY), 0.0)
    clock.advance(0)
    assert (len(member.gathered), len(member.batches)) == (0, 1)


def test_events_gathered_for_the_only_member_are_no_larger_than_a_batch(room: Room, clock: FakeClock) -> None:
    """Once 64 events of 4 kB were one message of 256 kB, of which the outbox could drop none."""
    member = add_live(room, Alone())
    for size in range(0, MAX_SMALL_REPLY, 16):
        room.push(frame("x" * size), 0.0)
        clock.advance(0)
    assert member.gathered
    assert max(map(len, member.gathered)) * MAX_GATHERED <= MAX_BATCH_BYTES


@pytest.mark.parametrize(("breaks", "code"), [(False, CloseCode.SLOW_CONSUMER), (True, CloseCode.INTERNAL)])
def test_only_member_that_misses_an_event_is_closed(room: Room, breaks: bool, code: CloseCode) -> None:
    member = add_live(room, Alone(keeps_up=False, breaks=breaks))
    member.room = room
    room.push(frame("1"), 0.0)
    room.push(frame("2"), 0.0)
    assert member.closed == [code]
    assert "2" not in member.gathered


# --- many members: in slices ------------------------------------------------------------------------------------------


def add_members(room: Room, size: int) -> list[Member]:
    return [add_live(room, Member()) for _ in range(size)]


def test_small_room_is_written_after_one_slice_of_a_large_room(clock: FakeClock) -> None:
    hub = hub_of(clock)
    huge, small = hub.open(KEY, SPEC), hub.open(ChannelKey("t", "room:2"), SPEC)
    many, one = add_members(huge, 5 * MAX_SLICE_MEMBERS), add_live(small, Member())
    written_before: list[int] = []
    one.on_deliver = lambda: written_before.append(sum(bool(member.batches) for member in many))
    huge.push(frame("1"), 0.0)
    small.push(frame("1"), 0.0)
    clock.advance(0)
    assert written_before == [MAX_SLICE_MEMBERS]
    assert all(member.batches == ["1"] for member in many)


class SteppingClock(FakeClock):
    """A clock that runs immediate callbacks one at a time, as iterations of a loop."""

    def step(self) -> None:
        due = [timer for timer in sorted(self._timers) if not timer.cancelled]
        due[0].cancelled = True
        due[0].callback()


def test_fan_out_continues_in_the_next_iteration_after_its_time_limit() -> None:
    clock = SteppingClock()
    room = hub_of(clock).open(KEY, SPEC)
    members = add_members(room, 5 * MAX_SLICE_MEMBERS)
    for member in members:
        member.on_deliver = lambda: clock.advance(MAX_FAN_OUT_SECONDS / MAX_SLICE_MEMBERS / 1.5)
    room.push(frame("1"), 0.0)
    written_per_iteration = []
    while clock.pending:
        clock.step()
        written_per_iteration.append(sum(bool(member.batches) for member in members))
    assert written_per_iteration == [2 * MAX_SLICE_MEMBERS, 4 * MAX_SLICE_MEMBERS, 5 * MAX_SLICE_MEMBERS], (
        "two slices per iteration"
    )


@pytest.fixture
def stepping_clock() -> SteppingClock:
    return SteppingClock()


@pytest.fixture
def half_written(monkeypatch: pytest.MonkeyPatch, stepping_clock: SteppingClock) -> tuple[Room, list[Member]]:
    """A room that has written to its first slice of members."""
    monkeypatch.setattr(
        "service.realtime.connections.write_scheduler.MAX_FAN_OUT_SECONDS", -1.0
    )  # one slice per iteration
    clock = stepping_clock
    room = hub_of(clock).open(KEY, SPEC)
    members = add_members(room, 2 * MAX_SLICE_MEMBERS)
    room.push(frame("1"), 0.0)
    clock.step()
    assert [len(member.batches) for member in members] == [1] * MAX_SLICE_MEMBERS + [0] * MAX_SLICE_MEMBERS
    return room, members


async def turns() -> None:
    """Lets tasks run until they wait for something else."""
    for _ in range(10):
        await asyncio.sleep(0)


def run_all(clock: SteppingClock) -> None:
    while clock.pending:
        clock.step()


def test_event_during_a_broadcast_is_in_the_same_write_for_members_still_left(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    room, members = half_written
    for name in ("2", "3"):
        room.push(frame(name), 0.0)
    run_all(stepping_clock)
    assert [member.batches for member in members] == [
        *[["1", ["2", "3"]]] * MAX_SLICE_MEMBERS,
        *[[["1", "2", "3"]]] * MAX_SLICE_MEMBERS,
    ]


def test_each_event_reaches_all_members_within_one_round(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    """Once an event waited for the rest of a round, and then for a round of its own."""
    room, members = half_written
    clock = stepping_clock
    for number in range(2, 8):
        room.push(frame(str(number)), 0.0)
        clock.step()  # the other half of the members
        assert [flat(member.batches)[-1] for member in members].count(str(number)) == MAX_SLICE_MEMBERS
    run_all(clock)
    assert all(flat(member.batches) == [str(number) for number in range(1, 8)] for member in members)
    assert {len(member.batches) for member in members} == {4}, "two events in one write"


def test_event_during_a_compressed_broadcast_waits_for_the_next_round(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    """Else each part of the members would have its own batch compressed."""
    room, members = half_written
    compressed = set[bytes]()

    def compress(member: Member, batch: Batch) -> bool:
        compressed.add(batch.wire(15))
        return Member.deliver(member, batch)

    for member in members:
        member.deliver = partial(compress, member)  # type: ignore[method-assign]  # from now on
    room.push(frame("2"), 0.0)
    for number in range(3, 9):
        stepping_clock.step()
        room.push(frame(str(number)), 0.0)
    run_all(stepping_clock)
    assert all(flat(member.batches) == [str(number) for number in range(1, 9)] for member in members)
    assert len(compressed) == 5, "not one for each part of the members"


def test_event_that_makes_a_batch_too_large_waits_for_the_next_round(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    room, members = half_written
    room.push(frame("x" * MAX_BATCH_BYTES), 0.0)
    room.push(frame("3"), 0.0)
    run_all(stepping_clock)
    assert all(member.batches == ["1", "x" * MAX_BATCH_BYTES, "3"] for member in members)


def test_member_that_leaves_during_a_broadcast_gets_nothing(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    room, members = half_written
    room.remove(cast("Connection", members[-1]))
    run_all(stepping_clock)
    assert [member.batches for member in members[-2:]] == [["1"], []]


def test_member_that_rejoins_during_a_broadcast_gets_no_event_twice(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    """Its new snapshot contains what is still on its way to others."""
    room, members = half_written
    back, connection = members[-1], cast("Connection", members[-1])
    room.remove(connection)
    subscription = Subscription(KEY, None)
    room.start_subscribing(connection, subscription)
    assert room.finish_subscribing(connection, subscription, Snapshot(Position("e", 1), (), (), None)) == []
    room.push(frame("2"), 0.0)
    run_all(stepping_clock)
    assert back.batches == ["2"]
    assert members[0].batches == ["1", "2"]


def test_member_that_joins_during_a_broadcast_gets_later_events(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    room, members = half_written
    room.push(frame("2"), 0.0)
    new, subscription = Member(), Subscription(KEY, None)
    connection = cast("Connection", new)
    room.start_subscribing(connection, subscription)
    room.push(frame("3"), 0.0)
    waiting = room.finish_subscribing(connection, subscription, Snapshot(Position("e", 0), (), (), None))
    assert [json.loads(item.payload) for item in waiting] == ["3"]
    room.push(frame("4"), 0.0)
    run_all(stepping_clock)
    assert new.batches == ["4"]
    assert all(flat(member.batches) == ["1", "2", "3", "4"] for member in members)


def test_subscribing_member_gets_buffered_events_after_its_snapshot(room: Room, clock: FakeClock) -> None:
    old, new = add_live(room, Member()), Member()
    subscription = Subscription(KEY, None)
    connection = cast("Connection", new)
    room.push(frame("before"), 0.1)
    room.start_subscribing(connection, subscription)
    clock.advance(0)
    assert old.batches == ["before"], "earlier events are in the snapshot"
    room.push(frame("on_deliver"), 0.1)
    waiting = room.finish_subscribing(connection, subscription, Snapshot(Position("e", 0), (), (), None))
    assert [json.loads(item.payload) for item in waiting] == ["on_deliver"]
    clock.advance(0)
    assert old.batches == ["before", "on_deliver"]
    room.push(frame("after"), 0.0)
    clock.advance(0)
    assert new.batches == ["after"]


def test_snapshot_of_another_epoch_is_contiguous_only_during_a_recovery(room: Room) -> None:
    connection = cast("Connection", Member())
    room.start_subscribing(connection, Subscription(KEY, None))
    room.sequencer.start(Snapshot(Position("e", 3), (), (), None), lambda event: None)
    assert room.is_contiguous(connection, Snapshot(Position("e", 3), (), (), None))
    newer = Snapshot(Position("f", 3), (), (), None)
    assert not room.is_contiguous(connection, newer)
    assert room.sequencer.start_read() is not None
    assert room.is_contiguous(connection, newer), "the recovery resyncs all members"


async def test_wait_written_ends_when_batches_and_outboxes_are_written(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    room, members = half_written
    members[-1].written.clear()
    waiting = asyncio.create_task(room.wait_written())
    await turns()
    assert not waiting.done(), "half of the members have the batch"
    run_all(stepping_clock)
    await turns()
    assert not waiting.done(), "the last member has it in its outbox"
    members[-1].written.set()
    async with asyncio.timeout(DEADLINE):
        await waiting


async def test_wait_written_ends_when_the_room_fails(half_written: tuple[Room, list[Member]]) -> None:
    room, members = half_written
    waiting = asyncio.create_task(room.wait_written())
    await turns()
    assert not waiting.done()
    room.fail()
    await turns()
    assert waiting.done()
    assert all(member.closed == [CloseCode.INTERNAL] for member in members)


def test_discarded_room_has_no_timer(room: Room, clock: FakeClock) -> None:
    add_live(room, Member())
    room.push(frame("1"), 0.0)
    room.discard()
    clock.advance(1)
    assert clock.pending == 0


def test_flush_above_max_batch_is_several_batches(room: Room, clock: FakeClock) -> None:
    member = add_live(room, Member())
    for number in range(250):
        room.push(frame(str(number)), 0.0)
    clock.advance(0)
    assert [len(batch) for batch in member.batches] == [100, 100, 50]
    assert [name for batch in member.batches for name in batch] == [str(number) for number in range(250)]


def test_member_whose_write_raises_is_closed_alone(room: Room, clock: FakeClock) -> None:
    before, broken, after = add_live(room, ClearMember()), add_live(room, BrokenMember()), add_live(room, ClearMember())
    broken.room = room
    room.push(frame("1"), 0.0)
    clock.advance(0)
    room.push(frame("2"), 0.0)
    clock.advance(0)
    assert broken.closed == [CloseCode.INTERNAL]
    assert before.batches == after.batches == ["1", "2"]


def test_failed_room_closes_its_members_and_no_others(clock: FakeClock) -> None:
    hub = hub_of(clock, encoder=BrokenEncoder(Compression()))
    failing, other = hub.open(KEY, SPEC), hub.open(ChannelKey("t", "room:2"), SPEC)
    member, witness = add_live(failing, ClearMember()), add_live(other, ClearMember())
    failing.push(Frame(b'"poison"', "a.b", Delivery.DURABLE), 0.0)
    other.push(frame("1"), 0.0)
    clock.advance(0)
    assert (member.batches, member.closed) == ([], [CloseCode.INTERNAL])
    assert witness.batches == ["1"]
    newcomer = add_live(failing, ClearMember())
    for room in (failing, other):
        room.push(frame("2"), 0.0)
    clock.advance(0)
    assert (newcomer.batches, witness.batches) == (["2"], ["1", "2"]), "rooms continue"


def test_failed_flush_does_not_affect_other_connections(clock: FakeClock) -> None:
    class Peer:
        flushed = failed = False

        def __init__(self, *, breaks: bool) -> None:
            self.breaks = breaks

        def flush(self) -> None:
            if self.breaks:
                raise RuntimeError("a bug")
            self.flushed = True

        def fail(self) -> None:
            self.failed = True

    scheduler = scheduler_of(clock)
    broken, whole, later = Peer(breaks=True), Peer(breaks=False), Peer(breaks=False)
    scheduler.schedule_flush(broken)
    scheduler.schedule_flush(whole)
    clock.advance(0)
    scheduler.schedule_flush(later)
    clock.advance(0)
    assert broken.failed
    assert whole.flushed
    assert later.flushed


def test_broadcasts_between_joins_are_merged(
    half_written: tuple[Room, list[Member]], stepping_clock: SteppingClock
) -> None:
    """Each join starts a new batch."""
    room, members = half_written
    newcomers = [Member() for _ in range(50)]
    for number, newcomer in enumerate(newcomers):
        room.push(frame(f"before {number}"), 0.0)
        room.flush()
        add_live(room, newcomer)
    room.push(frame("last"), 0.0)
    run_all(stepping_clock)
    before = [f"before {number}" for number in range(50)]
    assert all(flat(member.batches) == ["1", *before, "last"] for member in members)
    assert max(len(member.batches) for member in members) == 4, "not a write for each join"
    for number, newcomer in enumerate(newcomers):
        assert flat(newcomer.batches) == [*before[number + 1 :], "last"], "exactly those events, in order"


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "flush", "join", "leave", "step"]), st.integers(0, 7)),
        min_size=20,
        max_size=120,
    ),
    st.integers(1, 4),
)
def test_members_that_join_and_leave_get_the_batches_of_their_stay(
    actions: list[tuple[str, int]], max_batch: int
) -> None:
    clock = FakeClock()
    scheduler = WriteScheduler(clock, lambda callback: None)  # the test writes each slice itself
    room = hub_of(clock, scheduler=scheduler, max_batch=max_batch).open(KEY, SPEC)
    room.push(frame("0"), 0.0)
    room.flush()  # what is pushed in the next second waits for `flush`
    members = [Member() for _ in range(8)]
    present: set[int] = set()
    expected: dict[int, list[list[str]]] = {number: [] for number in range(8)}
    waiting: list[str] = []
    serial = 0

    def flush() -> None:
        room.flush()
        for number in present:
            expected[number][-1].extend(waiting)
        waiting.clear()

    for action, number in actions:
        if action == "push":
            serial += 1
            waiting.append(str(serial))
            room.push(frame(str(serial)), 1.0)
        elif action == "flush":
            flush()
        elif action == "join" and number not in present:
            flush()
            add_live(room, members[number])
            present.add(number)
            expected[number].append([])
        elif action == "leave" and number in present:
            room.remove(cast("Connection", members[number]))
            present.discard(number)
        elif action == "step":
            room.fan_out(3)
    flush()
    while room.fan_out(3):
        pass
    for number, member in enumerate(members):
        got = flat(member.batches)
        stays = expected[number]
        for at, stay in enumerate(stays):  # of each stay the first events; of the present stay, all
            lasts = number in present and at == len(stays) - 1
            length = 0
            while length < len(stay) and length < len(got) and got[length] == stay[length]:
                length += 1
            assert not lasts or length == len(stay)
            got = got[length:]
        assert not got


# --- members that may not see presence --------------------------------------------------------------------------------


def presence_frame(name: str) -> Frame:
    return Frame(json.dumps(name).encode(), "presence.joined", Delivery.LATEST)


def test_presence_event_goes_to_members_that_see_presence(room: Room, clock: FakeClock, metrics: Metrics) -> None:
    seeing, restricted = add_live(room, Member(), PresenceAccess.SEES), add_live(room, Member(), PresenceAccess.LISTED)
    room.push(frame("1"), 0.0)
    room.push(presence_frame("p"), 0.0)
    room.push(frame("2"), 0.0)
    clock.advance(0)
    assert (seeing.batches, restricted.batches) == ([["1", "p", "2"]], [["1", "2"]])
    room.push(presence_frame("q"), 0.0)
    clock.advance(0)
    assert (seeing.batches[1:], restricted.batches[1:]) == (["q"], []), "and no empty message"
    assert messages_out(metrics) == 6


def test_both_groups_share_a_batch_without_presence_events(room: Room, clock: FakeClock) -> None:
    made: list[Batch] = []

    class Recording(Member):
        def deliver(self, batch: Batch) -> bool:
            made.append(batch)
            return True

    add_live(room, Recording(), PresenceAccess.SEES)
    add_live(room, Recording(), PresenceAccess.LISTED)
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert len(made) == 2
    assert made[0] is made[1]


def test_room_with_only_restricted_members_delivers_events(room: Room, clock: FakeClock) -> None:
    restricted = add_live(room, Member(), PresenceAccess.LISTED)
    assert room.is_listening()
    room.push(presence_frame("p"), 0.0)
    clock.advance(0)
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert restricted.batches == ["1"]
    room.remove(cast("Connection", restricted))
    assert not room.is_listening()


def test_restricted_subscribing_member_gets_no_presence_events(room: Room, clock: FakeClock) -> None:
    subscription = Subscription(KEY, None, presence=PresenceAccess.LISTED)
    connection = cast("Connection", Member())
    room.start_subscribing(connection, subscription)
    room.push(frame("1"), 0.0)
    room.push(presence_frame("p"), 0.0)
    waiting = room.finish_subscribing(connection, subscription, Snapshot(Position("e", 0), (), (), None))
    assert [json.loads(one.payload) for one in waiting] == ["1"]


def test_slow_member_is_closed_when_its_presence_access_changes(room: Room) -> None:
    member = add_live(room, Member(keeps_up=False), PresenceAccess.SEES)
    member.room = room
    room.push(frame("1"), 0.0)
    connection = cast("Connection", member)
    room.set_presence_access(connection, member.subscription, PresenceAccess.LISTED)
    assert member.closed == [CloseCode.SLOW_CONSUMER]
    assert not room.is_listening()


def test_subscribing_and_replaying_members_do_not_get_excluded_frames(room: Room, clock: FakeClock) -> None:
    member, subscription = Member(), Subscription(KEY, None)
    connection = cast("Connection", member)
    other = add_live(room, Member())
    room.start_subscribing(connection, subscription)
    room.push_except(frame("1"), 0.0, connection)
    room.push(frame("2"), 0.0)
    waiting = room.finish_subscribing(connection, subscription, Snapshot(Position("e", 0), (), (), None))
    assert [json.loads(one.payload) for one in waiting] == ["2"]
    room.push_except(frame("3"), 0.0, connection)
    room.push_except(frame("4"), 0.0, cast("Connection", other))
    clock.advance(0)
    assert flat(member.batches) == ["4"]
    assert flat(other.batches) == ["1", "2", "3"]


def test_excluded_frame_is_counted_for_those_who_get_it(room: Room, clock: FakeClock, metrics: Metrics) -> None:
    member, *_ = [add_live(room, Member()) for _ in range(3)]
    room.push_except(frame("1"), 0.0, cast("Connection", member))
    room.push(frame("2"), 0.0)
    clock.advance(0)
    assert messages_out(metrics) == 5


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["push", "except", "tell", "flush", "join", "leave", "change", "step"]), st.integers(0, 7)
        ),
        min_size=20,
        max_size=120,
    ),
    st.integers(1, 4),
)
def test_member_whose_presence_access_changes_misses_no_event(actions: list[tuple[str, int]], max_batch: int) -> None:
    clock = FakeClock()
    scheduler = WriteScheduler(clock, lambda callback: None)  # the test writes each slice itself
    room = hub_of(clock, scheduler=scheduler, max_batch=max_batch).open(KEY, SPEC)
    room.push(frame("0"), 0.0)
    room.flush()  # what is pushed in the next second waits for `flush`
    members = [Member() for _ in range(8)]
    access: dict[int, PresenceAccess] = {}
    expected: dict[int, list[str]] = {number: [] for number in range(8)}
    waiting: list[tuple[str, int | None]] = []
    serial = 0

    def flush() -> None:
        room.flush()
        for number, sees in access.items():
            expected[number] += [
                one
                for one, excluded in waiting
                if (one[0] == "e" or sees is PresenceAccess.SEES) and excluded != number
            ]
        waiting.clear()

    for action, number in actions:
        connection = cast("Connection", members[number])
        if action in ("push", "tell"):
            serial += 1
            name = f"{'e' if action == 'push' else 'p'}{serial}"
            waiting.append((name, None))
            room.push(frame(name) if action == "push" else presence_frame(name), 1.0)
        elif action == "except":
            serial += 1
            waiting.append((f"e{serial}", number))
            room.push_except(frame(f"e{serial}"), 1.0, connection)
        elif action == "flush":
            flush()
        elif action == "join" and not expected[number] and number not in access:
            flush()
            access[number] = PresenceAccess.SEES if serial % 2 else PresenceAccess.LISTED
            add_live(room, members[number], access[number])
        elif action == "leave" and number in access:
            flush()
            room.remove(connection)
            del access[number]
            expected[number] = [*flat(members[number].batches)]  # what is on its way is dropped
        elif action == "change" and number in access:
            flush()
            now = PresenceAccess.LISTED if access[number] is PresenceAccess.SEES else PresenceAccess.SEES
            room.set_presence_access(connection, members[number].subscription, now)
            access[number] = now
            assert flat(members[number].batches) == expected[number], "what is on its way is written first"
        elif action == "step":
            room.fan_out(3)
    flush()
    while room.fan_out(3):
        pass
    for number, member in enumerate(members):
        assert flat(member.batches) == expected[number]
