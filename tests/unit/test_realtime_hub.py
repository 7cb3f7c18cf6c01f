"""The hub's rooms: when frames go out, to whom, and joined how. Time is the test's."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from service.contract.model import ChannelSpec
from service.core.access import SubscribeRule
from service.core.broker import Snapshot
from service.core.channel import ChannelKey, ChannelPattern
from service.core.event import Delivery
from service.core.position import Position
from service.core.session import Subscription
from service.protocol.close import CloseCode
from service.realtime.connection import Connection
from service.realtime.frame import MAX_BURST_BYTES, Burst, Frame
from service.realtime.hub import Hub, Room
from service.telemetry.metrics import Metrics
from tests.clock import FakeClock

KEY = ChannelKey("t", "room:1")


class Member:
    """Stands for a connection and writes down what it is given."""

    def __init__(self, *, keeps_up: bool = True) -> None:
        self.keeps_up = keeps_up
        self.bursts: list[Any] = []
        self.measured = 0
        self.closed: list[CloseCode] = []
        self.room: Room | None = None

    def deliver(self, burst: Burst, *, measured: bool) -> bool:
        self.measured += measured
        self.bursts.append(json.loads(burst.payload))
        return self.keeps_up

    def close(self, code: CloseCode, reason: str) -> None:
        self.closed.append(code)
        if self.room is not None:
            self.room.remove(cast("Connection", self))


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def room(clock: FakeClock) -> Room:
    spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
    return Hub(clock, Metrics(), most_batch=100).open(KEY, spec)


def enter(room: Room, member: Member) -> Member:
    connection = cast("Connection", member)
    room.occupants[connection] = room.live[connection] = Subscription(KEY, None)
    return member


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
        room.push(Frame(json.dumps(kind).encode(), kind, Delivery.LATEST, key, ordered=True), 0.0)
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
        room.push(frame("x" * MAX_BURST_BYTES), 0.0)
    clock.advance(0)
    assert (len(slow.bursts), slow.closed) == (1, [CloseCode.SLOW_CONSUMER])


def test_the_latency_of_each_fan_out_is_measured_once_at_its_last_member(room: Room, clock: FakeClock) -> None:
    members = [enter(room, Member()) for _ in range(3)]
    room.push(frame("1"), 0.0)
    clock.advance(0)
    assert [member.measured for member in members] == [0, 0, 1]


def test_who_joins_gets_behind_the_snapshot_what_came_meanwhile(room: Room, clock: FakeClock) -> None:
    old, new = enter(room, Member()), Member()
    subscription = Subscription(KEY, None)
    connection = cast("Connection", new)
    room.push(frame("before"), 0.1)
    room.begin(connection, subscription)
    assert old.bursts == ["before"], "what came before belongs to the snapshot"
    room.push(frame("meanwhile"), 0.1)
    waiting = room.go_live(connection, subscription, Snapshot(Position("e", 0), (), (), None))
    assert [json.loads(item.payload) for item in waiting] == ["meanwhile"]
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
