"""The hub's rooms: when frames go out, to whom, and joined how. Time is the test's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

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
from service.realtime.connections.connection import Connection
from service.realtime.connections.context import RoomContext
from service.realtime.connections.encoder import MAX_BATCH_BYTES, Batch, FrameEncoder
from service.realtime.connections.frame import Frame
from service.realtime.connections.write_scheduler import MAX_FAN_OUT_SECONDS, MAX_SLICE_MEMBERS, WriteScheduler
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock

KEY = ChannelKey("t", "room:1")


class Member:
    """Stands for a connection and writes down what it is given."""

    is_clear = False
    window_bits = 0
    fd = -1

    def __init__(self, *, keeps_up: bool = True) -> None:
        self.keeps_up = keeps_up
        self.bursts: list[Any] = []
        self.closed: list[CloseCode] = []
        self.room: Room | None = None
        self.subscription = Subscription(KEY, None)
        self.meanwhile: Callable[[], None] = lambda: None

    def deliver(self, burst: Batch) -> bool:
        self.meanwhile()
        self.bursts.append(json.loads(burst.payload))
        return self.keeps_up

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed.append(code)
        if self.room is not None:
            self.room.remove(cast("Connection", self))

    def fail(self) -> None:
        self.close(CloseCode.INTERNAL, "")


class ClearMember(Member):
    """One that has nothing waiting: rooms write to it themselves."""

    is_clear = True

    def write(self, wire: bytes) -> None:
        self.bursts.append(json.loads(wire[2:]))


class BrokenMember(ClearMember):
    """One whose transport raises, against its promise."""

    def write(self, wire: bytes) -> None:
        raise RuntimeError("unable to perform operation; the handler is closed")


class BrokenPress(FrameEncoder):
    """Stands for whatever may go wrong before a round has members."""

    @staticmethod
    def encode_plain(payload: bytes) -> bytes:
        if b"poison" in payload:
            raise MemoryError
        return FrameEncoder.encode_plain(payload)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def room(clock: FakeClock, metrics: Metrics) -> Room:
    spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
    return Hub(RoomContext(clock, metrics, turn_of(clock), FrameEncoder(Compression()), max_batch=100)).open(KEY, spec)


def turn_of(clock: FakeClock) -> WriteScheduler:
    return WriteScheduler(clock, lambda callback: clock.call_later(0.0, callback))


def enter(room: Room, member: Member, access: PresenceAccess = PresenceAccess.NONE) -> Member:
    connection = cast("Connection", member)
    member.subscription = Subscription(KEY, None, presence=access)
    room.add_member(connection, member.subscription)
    room.make_live(connection, member.subscription)
    return member


def flat(bursts: list[Any]) -> list[str]:
    return [name for burst in bursts for name in (burst if isinstance(burst, list) else [burst])]


def frame(name: str, key: str | None = None) -> Frame:
    replaced_by = None if key is None else ("room:1", "a.b", key)
    return Frame(json.dumps(name).encode(), "a.b", Delivery.DURABLE if key is None else Delivery.LATEST, replaced_by)


def test_what_comes_in_one_turn_goes_out_joined(room: Room, clock: FakeClock) -> None:
    member = enter(room, Member())
    for name in ("1", "2", "3"):
        room.push(frame(name), 0.0)
    assert member.bursts == []
    clock.advance(0)
    assert member.bursts == [["1", "2", "3"]]
    room.push(frame("4"), 0.0)
    clock.advance(0)
    assert member.bursts[1:] == ["4"], "a lone frame is no batch"


def test_the_first_event_after_idle_goes_at_once_and_the_next_wait_for_the_window(room: Room, clock: FakeClock) -> None:
    member = enter(room, Member())
    room.push(frame("1"), 0.1)
    clock.advance(0)
    assert member.bursts == ["1"]
    for name in ("2", "3"):
        clock.advance(0.03)
        room.push(frame(name), 0.1)
    assert member.bursts == ["1"]
    clock.advance(0.05)
    assert member.bursts == ["1", ["2", "3"]]
    clock.advance(0.2)
    room.push(frame("4"), 0.1)
    clock.advance(0)
    assert member.bursts[-1] == "4"


def test_an_urgent_event_takes_along_what_waits_so_that_order_holds(room: Room, clock: FakeClock) -> None:
    member = enter(room, Member())
    room.push(frame("0"), 0.1)
    clock.advance(0)
    room.push(frame("slow"), 0.1)
    room.push(frame("urgent"), 0.0)
    clock.advance(0)
    assert member.bursts == ["0", ["slow", "urgent"]]
    clock.advance(1)
    assert len(member.bursts) == 2, "the window's timer has nothing left to send"


def test_within_a_window_the_newest_value_of_a_key_counts(room: Room, clock: FakeClock) -> None:
    member = enter(room, Member())
    for name, key in (("a1", "a"), ("b1", "b"), ("a2", "a")):
        room.push(frame(name, key), 0.0)
    clock.advance(0)
    assert member.bursts == [["a2", "b1"]]


def test_a_replacement_that_must_keep_the_order_goes_last(room: Room, clock: FakeClock) -> None:
    member = enter(room, Member())
    for kind in ("joined", "left", "joined"):
        key = ("room:1", kind, "ann")
        room.push(Frame(json.dumps(kind).encode(), kind, Delivery.LATEST, key, keeps_order=True), 0.0)
    clock.advance(0)
    assert member.bursts == [["left", "joined"]]


def test_a_member_who_is_too_slow_is_closed_and_the_others_get_everything(room: Room, clock: FakeClock) -> None:
    members = [enter(room, Member(keeps_up=index != 1)) for index in range(3)]
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert [member.bursts for member in members] == [["1"]] * 3
    assert [member.closed for member in members] == [[], [CloseCode.SLOW_CONSUMER], []]


def test_who_is_too_slow_for_a_burst_gets_none_after_it(room: Room, clock: FakeClock) -> None:
    slow = enter(room, Member(keeps_up=False))
    slow.room = room
    for _ in range(3):
        room.push(frame("x" * MAX_BATCH_BYTES), 0.0)
    clock.advance(0)
    assert (len(slow.bursts), slow.closed) == (1, [CloseCode.SLOW_CONSUMER])


def test_the_latency_of_each_fan_out_is_measured_once(room: Room, clock: FakeClock, metrics: Metrics) -> None:
    for _ in range(3):
        enter(room, Member())
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert metrics.registry.get_sample_value("tidewire_publish_to_write_seconds_count") == 1


def test_who_keeps_up_is_written_to_without_a_detour(room: Room, clock: FakeClock) -> None:
    member = enter(room, ClearMember())
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert member.bursts == ["1"]


# --- many members: in slices, in turn with other rooms ---------------------------------------------------------------------


def crowd(room: Room, size: int) -> list[Member]:
    return [enter(room, Member()) for _ in range(size)]


def test_a_huge_room_goes_out_in_slices_and_a_small_one_does_not_wait_for_it(clock: FakeClock) -> None:
    hub = Hub(RoomContext(clock, Metrics(), turn_of(clock), FrameEncoder(Compression()), max_batch=100))
    spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
    huge, small = hub.open(KEY, spec), hub.open(ChannelKey("t", "room:2"), spec)
    many, one = crowd(huge, 5 * MAX_SLICE_MEMBERS), enter(small, Member())
    served_before: list[int] = []
    one.meanwhile = lambda: served_before.append(sum(bool(member.bursts) for member in many))
    huge.push(frame("1"), 0.0)
    small.push(frame("1"), 0.0)
    clock.advance(0)
    assert served_before == [MAX_SLICE_MEMBERS]
    assert all(member.bursts == ["1"] for member in many)


class Stepper(FakeClock):
    """A clock whose immediate callbacks are run one at a time, as turns of a loop are."""

    def step(self) -> None:
        due = [timer for timer in sorted(self._timers) if not timer.cancelled]
        due[0].cancelled = True
        due[0].callback()


def test_fan_outs_give_the_loop_back_after_their_budget() -> None:
    clock = Stepper()
    spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
    room = Hub(RoomContext(clock, Metrics(), turn_of(clock), FrameEncoder(Compression()), max_batch=100)).open(
        KEY, spec
    )
    members = crowd(room, 5 * MAX_SLICE_MEMBERS)
    for member in members:
        member.meanwhile = lambda: clock.advance(MAX_FAN_OUT_SECONDS / MAX_SLICE_MEMBERS / 1.5)
    room.push(frame("1"), 0.0)
    served = []
    while any(not timer.cancelled for timer in clock._timers):
        clock.step()
        served.append(sum(bool(member.bursts) for member in members))
    assert served == [2 * MAX_SLICE_MEMBERS, 4 * MAX_SLICE_MEMBERS, 5 * MAX_SLICE_MEMBERS], "two slices a turn"


@pytest.fixture
def stepper() -> Stepper:
    return Stepper()


@pytest.fixture
def halfway(monkeypatch: pytest.MonkeyPatch, stepper: Stepper) -> tuple[Room, list[Member]]:
    """A room whose first slice has gone out."""
    monkeypatch.setattr("service.realtime.connections.write_scheduler.MAX_FAN_OUT_SECONDS", -1.0)  # one slice a turn
    clock = stepper
    spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
    room = Hub(RoomContext(clock, Metrics(), turn_of(clock), FrameEncoder(Compression()), max_batch=100)).open(
        KEY, spec
    )
    members = crowd(room, 2 * MAX_SLICE_MEMBERS)
    room.push(frame("1"), 0.0)
    clock.step()
    assert [len(member.bursts) for member in members] == [1] * MAX_SLICE_MEMBERS + [0] * MAX_SLICE_MEMBERS
    return room, members


def steps(clock: Stepper) -> None:
    while any(not timer.cancelled for timer in clock._timers):
        clock.step()


def test_what_comes_during_a_fan_out_goes_out_behind_it(halfway: tuple[Room, list[Member]], stepper: Stepper) -> None:
    room, members = halfway
    for name in ("2", "3"):
        room.push(frame(name), 0.0)
    steps(stepper)
    assert all(member.bursts == ["1", ["2", "3"]] for member in members)


def test_who_leaves_during_a_fan_out_gets_no_more_of_it(halfway: tuple[Room, list[Member]], stepper: Stepper) -> None:
    room, members = halfway
    room.remove(cast("Connection", members[-1]))
    steps(stepper)
    assert [member.bursts for member in members[-2:]] == [["1"], []]


def test_who_leaves_and_comes_back_during_a_fan_out_gets_nothing_twice(
    halfway: tuple[Room, list[Member]], stepper: Stepper
) -> None:
    """Its new snapshot holds what is still on its way to the others."""
    room, members = halfway
    back, connection = members[-1], cast("Connection", members[-1])
    room.remove(connection)
    subscription = Subscription(KEY, None)
    room.start_subscribing(connection, subscription)
    assert room.finish_subscribing(connection, subscription, Snapshot(Position("e", 1), (), (), None)) == []
    room.push(frame("2"), 0.0)
    steps(stepper)
    assert back.bursts == ["2"]
    assert members[0].bursts == ["1", "2"]


def test_who_joins_during_a_fan_out_gets_what_was_cut_after_it(
    halfway: tuple[Room, list[Member]], stepper: Stepper
) -> None:
    room, members = halfway
    room.push(frame("2"), 0.0)
    new, subscription = Member(), Subscription(KEY, None)
    connection = cast("Connection", new)
    room.start_subscribing(connection, subscription)
    room.push(frame("3"), 0.0)
    waiting = room.finish_subscribing(connection, subscription, Snapshot(Position("e", 0), (), (), None))
    assert [json.loads(item.payload) for item in waiting] == ["3"]
    room.push(frame("4"), 0.0)
    steps(stepper)
    assert new.bursts == ["4"]
    assert all(flat(member.bursts) == ["1", "2", "3", "4"] for member in members)


def test_who_joins_gets_behind_the_snapshot_what_came_meanwhile(room: Room, clock: FakeClock) -> None:
    old, new = enter(room, Member()), Member()
    subscription = Subscription(KEY, None)
    connection = cast("Connection", new)
    room.push(frame("before"), 0.1)
    room.start_subscribing(connection, subscription)
    clock.advance(0)
    assert old.bursts == ["before"], "what came before belongs to the snapshot"
    room.push(frame("meanwhile"), 0.1)
    waiting = room.finish_subscribing(connection, subscription, Snapshot(Position("e", 0), (), (), None))
    assert [json.loads(item.payload) for item in waiting] == ["meanwhile"]
    clock.advance(0)
    assert old.bursts == ["before", "meanwhile"]
    room.push(frame("after"), 0.0)
    clock.advance(0)
    assert new.bursts == ["after"]


def test_a_forgotten_room_leaves_no_timer(room: Room, clock: FakeClock) -> None:
    enter(room, Member())
    room.push(frame("1"), 0.0)
    room.discard()
    clock.advance(1)
    assert clock.pending == 0


def test_a_large_flush_is_cut_into_bursts(room: Room, clock: FakeClock) -> None:
    member = enter(room, Member())
    for number in range(250):
        room.push(frame(str(number)), 0.0)
    clock.advance(0)
    assert [len(burst) for burst in member.bursts] == [100, 100, 50]
    assert [name for burst in member.bursts for name in burst] == [str(number) for number in range(250)]


def test_a_member_that_cannot_be_written_to_is_ended_alone(room: Room, clock: FakeClock) -> None:
    before, broken, after = enter(room, ClearMember()), enter(room, BrokenMember()), enter(room, ClearMember())
    broken.room = room
    room.push(frame("1"), 0.0)
    clock.advance(0)
    room.push(frame("2"), 0.0)
    clock.advance(0)
    assert broken.closed == [CloseCode.INTERNAL]
    assert before.bursts == after.bursts == ["1", "2"]


def test_a_room_that_fails_ends_its_members_and_no_other_room_notices(clock: FakeClock) -> None:
    hub = Hub(RoomContext(clock, Metrics(), turn_of(clock), BrokenPress(Compression()), max_batch=100))
    spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
    failing, other = hub.open(KEY, spec), hub.open(ChannelKey("t", "room:2"), spec)
    member, witness = enter(failing, ClearMember()), enter(other, ClearMember())
    failing.push(Frame(b'"poison"', "a.b", Delivery.DURABLE), 0.0)
    other.push(frame("1"), 0.0)
    clock.advance(0)
    assert (member.bursts, member.closed) == ([], [CloseCode.INTERNAL])
    assert witness.bursts == ["1"]
    newcomer = enter(failing, ClearMember())
    for room in (failing, other):
        room.push(frame("2"), 0.0)
    clock.advance(0)
    assert (newcomer.bursts, witness.bursts) == (["2"], ["1", "2"]), "rooms and loop go on"


def test_a_peer_that_cannot_be_flushed_costs_no_other_its_replies(clock: FakeClock) -> None:
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

    turn = turn_of(clock)
    broken, whole, later = Peer(breaks=True), Peer(breaks=False), Peer(breaks=False)
    turn.schedule_flush(broken)
    turn.schedule_flush(whole)
    clock.advance(0)
    turn.schedule_flush(later)
    clock.advance(0)
    assert broken.failed
    assert whole.flushed
    assert later.flushed


def test_a_crowd_that_joins_does_not_make_a_write_of_every_event(
    halfway: tuple[Room, list[Member]], stepper: Stepper
) -> None:
    """Each join draws a line between what came before it and after it."""
    room, members = halfway
    newcomers = [Member() for _ in range(50)]
    for number, newcomer in enumerate(newcomers):
        room.push(frame(f"before {number}"), 0.0)
        room.flush()
        enter(room, newcomer)
    room.push(frame("last"), 0.0)
    steps(stepper)
    before = [f"before {number}" for number in range(50)]
    assert all(member.bursts == ["1", before, "last"] for member in members), "in one write"
    for number, newcomer in enumerate(newcomers):
        assert flat(newcomer.bursts) == [*before[number + 1 :], "last"], "neither more nor less, in order"


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "cut", "come", "go", "step"]), st.integers(0, 7)), min_size=20, max_size=120
    ),
    st.integers(1, 4),
)
def test_whoever_comes_and_goes_gets_what_was_cut_while_it_was_there(
    doings: list[tuple[str, int]], max_batch: int
) -> None:
    clock = FakeClock()
    spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
    turn = WriteScheduler(clock, lambda callback: None)  # the test asks for each slice itself
    room = Hub(RoomContext(clock, Metrics(), turn, FrameEncoder(Compression()), max_batch)).open(KEY, spec)
    members = [Member() for _ in range(8)]
    inside: set[int] = set()
    owed: dict[int, list[list[str]]] = {number: [] for number in range(8)}
    waiting: list[str] = []
    serial = 0

    def cut() -> None:
        room.flush()
        for number in inside:
            owed[number][-1].extend(waiting)
        waiting.clear()

    for doing, number in doings:
        if doing == "push":
            serial += 1
            waiting.append(str(serial))
            room.push(frame(str(serial)), 0.0)
        elif doing == "cut":
            cut()
        elif doing == "come" and number not in inside:
            cut()
            enter(room, members[number])
            inside.add(number)
            owed[number].append([])
        elif doing == "go" and number in inside:
            room.remove(cast("Connection", members[number]))
            inside.discard(number)
        elif doing == "step" and room._members.is_writing:
            room._members.write(3)
    cut()
    while room._members.is_writing:
        room._members.write(3)
    for number, member in enumerate(members):
        got = flat(member.bursts)
        stays = owed[number]
        for at, stay in enumerate(stays):  # of each stay a beginning; of one that lasts, all
            lasts = number in inside and at == len(stays) - 1
            length = 0
            while length < len(stay) and length < len(got) and got[length] == stay[length]:
                length += 1
            assert not lasts or length == len(stay)
            got = got[length:]
        assert not got


# --- two audiences ---------------------------------------------------------------------------------------------------


def presence_frame(name: str) -> Frame:
    return Frame(json.dumps(name).encode(), "presence.joined", Delivery.LATEST)


def test_presence_goes_to_those_who_may_see_it(room: Room, clock: FakeClock) -> None:
    seeing, blind = enter(room, Member(), PresenceAccess.SEES), enter(room, Member(), PresenceAccess.LISTED)
    room.push(frame("1"), 0.0)
    room.push(presence_frame("p"), 0.0)
    room.push(frame("2"), 0.0)
    clock.advance(0)
    assert (seeing.bursts, blind.bursts) == ([["1", "p", "2"]], [["1", "2"]])
    room.push(presence_frame("q"), 0.0)
    clock.advance(0)
    assert (seeing.bursts[1:], blind.bursts[1:]) == (["q"], []), "nor an empty message"


def test_without_presence_among_them_both_audiences_get_the_same_burst(room: Room, clock: FakeClock) -> None:
    made: list[Batch] = []

    class Noting(Member):
        def deliver(self, burst: Batch) -> bool:
            made.append(burst)
            return True

    enter(room, Noting(), PresenceAccess.SEES)
    enter(room, Noting(), PresenceAccess.LISTED)
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert len(made) == 2
    assert made[0] is made[1]


def test_a_room_of_blind_members_alone_gets_its_events(room: Room, clock: FakeClock) -> None:
    blind = enter(room, Member(), PresenceAccess.LISTED)
    assert room.is_listening
    room.push(presence_frame("p"), 0.0)
    clock.advance(0)
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert blind.bursts == ["1"]
    room.remove(cast("Connection", blind))
    assert not room.is_listening


def test_a_snapshot_s_wait_keeps_presence_from_those_who_may_not_see_it(room: Room, clock: FakeClock) -> None:
    subscription = Subscription(KEY, None, presence=PresenceAccess.LISTED)
    connection = cast("Connection", Member())
    room.start_subscribing(connection, subscription)
    room.push(frame("1"), 0.0)
    room.push(presence_frame("p"), 0.0)
    waiting = room.finish_subscribing(connection, subscription, Snapshot(Position("e", 0), (), (), None))
    assert [json.loads(one.payload) for one in waiting] == ["1"]


def test_a_member_that_changes_audience_is_too_slow_for_what_is_under_way(room: Room) -> None:
    member = enter(room, Member(keeps_up=False), PresenceAccess.SEES)
    member.room = room
    room.push(frame("1"), 0.0)
    connection = cast("Connection", member)
    room.set_presence_access(connection, member.subscription, PresenceAccess.LISTED)
    assert member.closed == [CloseCode.SLOW_CONSUMER]
    assert not room.is_listening


@given(
    st.lists(
        st.tuples(st.sampled_from(["push", "tell", "cut", "come", "go", "change", "step"]), st.integers(0, 7)),
        min_size=20,
        max_size=120,
    ),
    st.integers(1, 4),
)
def test_whoever_changes_audience_misses_nothing_and_sees_presence_only_while_it_may(
    doings: list[tuple[str, int]], max_batch: int
) -> None:
    clock = FakeClock()
    spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {}, presence=True)
    turn = WriteScheduler(clock, lambda callback: None)  # the test asks for each slice itself
    room = Hub(RoomContext(clock, Metrics(), turn, FrameEncoder(Compression()), max_batch)).open(KEY, spec)
    members = [Member() for _ in range(8)]
    access: dict[int, PresenceAccess] = {}
    owed: dict[int, list[str]] = {number: [] for number in range(8)}
    waiting: list[str] = []
    serial = 0

    def cut() -> None:
        room.flush()
        for number, sees in access.items():
            owed[number] += [one for one in waiting if one[0] == "e" or sees is PresenceAccess.SEES]
        waiting.clear()

    for doing, number in doings:
        connection = cast("Connection", members[number])
        if doing in ("push", "tell"):
            serial += 1
            name = f"{'e' if doing == 'push' else 'p'}{serial}"
            waiting.append(name)
            room.push(frame(name) if doing == "push" else presence_frame(name), 0.0)
        elif doing == "cut":
            cut()
        elif doing == "come" and not owed[number] and number not in access:
            cut()
            access[number] = PresenceAccess.SEES if serial % 2 else PresenceAccess.LISTED
            enter(room, members[number], access[number])
        elif doing == "go" and number in access:
            cut()
            room.remove(connection)
            del access[number]
            owed[number] = [*flat(members[number].bursts)]  # what was on its way is dropped
        elif doing == "change" and number in access:
            cut()
            now = PresenceAccess.LISTED if access[number] is PresenceAccess.SEES else PresenceAccess.SEES
            room.set_presence_access(connection, members[number].subscription, now)
            access[number] = now
            assert flat(members[number].bursts) == owed[number], "what was on its way has gone out"
        elif doing == "step" and room._members.is_writing:
            room._members.write(3)
    cut()
    while room._members.is_writing:
        room._members.write(3)
    for number, member in enumerate(members):
        assert flat(member.bursts) == owed[number]
