"""A room with a Sender: who is written to in one call, who alone, and what comes behind a part of a frame."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import cast

import pytest

from service.contract.model import ChannelSpec
from service.core.access import SubscribeRule
from service.core.channel import ChannelKey, ChannelPattern
from service.core.event import Delivery
from service.core.limits import Compression
from service.core.session import Subscription
from service.protocol.close import CloseCode
from service.realtime.connections.connection import Connection
from service.realtime.connections.context import RoomContext
from service.realtime.connections.encoder import Batch, FrameEncoder
from service.realtime.connections.frame import Frame
from service.realtime.connections.write_scheduler import MAX_SLICE_MEMBERS, WriteScheduler
from service.realtime.delivery.broadcast import MAX_SINGLE_WRITES
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock

KEY = ChannelKey("t", "room:1")
MANY = MAX_SINGLE_WRITES + 4
"""Enough that they are still many without the few who cannot be written to at once."""


class Member:
    """Stands for a connection that has nothing waiting; `got` is what its peer reads."""

    def __init__(self, fd: int, window_bits: int = 0) -> None:
        self.fd = fd
        self.window_bits = window_bits
        self.is_clear = True
        self.got = b""
        self.calls: list[str] = []
        self.keeps_up = True
        self.meanwhile: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        self.calls.append("write")
        self.got += data

    def write_rest(self, part: bytes) -> None:
        self.calls.append("write_rest")
        self.meanwhile()
        self.got += part

    def deliver(self, burst: Batch) -> bool:
        self.calls.append("deliver")
        self.got += burst.wire(self.window_bits)
        return self.keeps_up

    def close(self, code: CloseCode, reason: str) -> None:
        self.calls.append(f"close {code.code}")

    def fail(self) -> None:
        self.calls.append("fail")
        self.meanwhile()


class Wires:
    """A Sender to members, by their descriptors."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = {member.fd: member for member in members}
        self.takes: dict[int, int] = {}
        """Bytes that a descriptor takes at most."""
        self.breaks_on = -2
        self.calls: list[list[int]] = []

    def __call__(self, fds: list[int], frame: bytes) -> Sequence[tuple[int, int]]:
        self.calls.append(fds)
        if self.breaks_on in fds:
            raise MemoryError
        short = []
        for index, fd in enumerate(fds):
            taken = min(len(frame), self.takes.get(fd, len(frame)))
            self.members[fd].got += frame[:taken]
            if taken < len(frame):
                short.append((index, taken))
        return short


class Stage:
    """A room of members, whose sender is `wires`."""

    def __init__(self, members: Sequence[Member], encoder: FrameEncoder | None = None) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.wires = Wires(members)
        self.members = members
        turn = WriteScheduler(self.clock, lambda callback: self.clock.call_later(0.0, callback))
        ways = RoomContext(
            self.clock,
            self.metrics,
            turn,
            encoder or FrameEncoder(Compression()),
            max_batch=100,
            batch_sender=self.wires,
        )
        spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
        self.room: Room = Hub(ways).open(KEY, spec)
        for member in members:
            connection = cast("Connection", member)
            self.room.add_member(connection, subscription := Subscription(KEY, None))
            self.room.make_live(connection, subscription)

    def push(self, *names: str) -> bytes:
        """Has an event go out for each name, and gives the frame that it is when it is sent plain."""
        frames = [Frame(json.dumps(name).encode(), "a.b", Delivery.DURABLE) for name in names]
        for frame in frames:
            self.room.push(frame, 0.0)
        return Batch(tuple(frames), FrameEncoder(Compression())).plain

    def sent(self) -> tuple[float, float]:
        """The metric: frames that were taken whole, and in part."""
        whole, short = self.metrics.delivery.sent_natively
        return whole.value, short.value


def members(count: int = MANY) -> list[Member]:
    return [Member(100 + number) for number in range(count)]


def test_many_are_written_to_in_one_call_and_each_gets_the_frame_once() -> None:
    stage = Stage(members())
    wire = stage.push("1")
    stage.clock.advance(0)
    assert stage.wires.calls == [[member.fd for member in stage.members]]
    assert [(member.got, member.calls) for member in stage.members] == [(wire, [])] * MANY
    assert stage.sent() == (MANY, 0)


def test_few_are_written_to_one_by_one() -> None:
    stage = Stage(members(MAX_SINGLE_WRITES))
    wire = stage.push("1")
    stage.clock.advance(0)
    assert stage.wires.calls == []
    assert [(member.got, member.calls) for member in stage.members] == [(wire, ["write"])] * MAX_SINGLE_WRITES


def test_who_has_something_waiting_or_no_descriptor_is_written_to_alone() -> None:
    stage = Stage(members())
    waits, bare = stage.members[1], stage.members[4]
    waits.is_clear = False
    bare.fd = -1
    wire = stage.push("1")
    stage.clock.advance(0)
    assert [member.got for member in stage.members] == [wire] * MANY
    assert waits.calls == ["deliver"]
    assert bare.calls == ["write"]
    assert stage.sent() == (MANY - 2, 0)


def test_where_most_have_something_waiting_all_are_written_to_one_by_one() -> None:
    stage = Stage(members())
    for member in stage.members[MAX_SINGLE_WRITES:]:
        member.is_clear = False
    wire = stage.push("1")
    stage.clock.advance(0)
    assert stage.wires.calls == []
    assert [(member.got, member.calls) for member in stage.members] == [(wire, ["write"])] * MAX_SINGLE_WRITES + [
        (wire, ["deliver"])
    ] * (MANY - MAX_SINGLE_WRITES)


def test_a_slow_one_is_closed_and_the_others_do_not_notice() -> None:
    stage = Stage(members())
    slow = stage.members[2]
    slow.is_clear = slow.keeps_up = False
    stage.push("1")
    stage.clock.advance(0)
    assert slow.calls == ["deliver", "close 4450"]
    assert stage.sent() == (MANY - 1, 0)


@pytest.mark.parametrize("size", [0, 1, 4])
def test_who_takes_a_part_gets_the_rest_and_no_more(size: int) -> None:
    stage = Stage(members())
    stage.wires.takes = {102: size, 105: size}
    wire = stage.push("one")
    stage.clock.advance(0)
    assert [member.got for member in stage.members] == [wire] * MANY
    assert [member.fd for member in stage.members if member.calls == ["write_rest"]] == [102, 105]
    assert stage.sent() == (MANY - 2, 2)


def test_nothing_comes_between_the_parts_of_a_frame() -> None:
    """Whoever fails leaves, and the others may be told of it: not before they have got their whole frames."""
    stage = Stage(members())
    stage.wires.takes = {100: 1, 106: 2}
    broken, other = stage.members[0], stage.members[6]
    wire = stage.push("one")

    def fails() -> None:
        if "fail" in broken.calls:
            assert other.got == wire
            other.got += b"(left)"
        else:
            raise RuntimeError("unable to perform operation; the handler is closed")

    broken.meanwhile = fails
    stage.clock.advance(0)
    assert broken.calls == ["write_rest", "fail"]
    assert other.got == wire + b"(left)"
    assert [member.calls for member in stage.members[1:6]] == [[]] * 5


def test_each_window_gets_its_own_bytes() -> None:
    encoder = FrameEncoder(Compression(enabled=True, min_bytes=1))
    group = [Member(100 + number, (0, 15, 12)[number % 3]) for number in range(3 * MAX_SINGLE_WRITES)]
    stage = Stage(group, encoder)
    far = random.Random(7).randbytes(3000).hex()  # repeated from further back than the small window reaches
    frame = Frame(json.dumps(far + far).encode(), "a.b", Delivery.DURABLE)
    burst = Batch((frame,), encoder)
    stage.room.push(frame, 0.0)
    stage.clock.advance(0)
    for member in group:
        assert member.got == burst.wire(member.window_bits)
    assert len({member.got for member in group}) == 3
    assert sorted(len(call) for call in stage.wires.calls) == [MAX_SINGLE_WRITES] * 3


def test_a_fault_of_the_sender_ends_only_those_it_was_to_write_to() -> None:
    encoder = FrameEncoder(Compression(enabled=True, min_bytes=1))
    group = [Member(100 + number, 15 * (number % 2)) for number in range(MANY)]
    stage = Stage(group, encoder)
    stage.wires.breaks_on = 101
    frame = Frame(json.dumps("x" * 500).encode(), "a.b", Delivery.DURABLE)
    stage.room.push(frame, 0.0)
    stage.clock.advance(0)
    assert [member.calls for member in group] == [["fail"] if member.window_bits else [] for member in group]
    assert all(member.got for member in group if not member.window_bits)
    assert stage.sent() == (MANY / 2, 0)


def test_who_has_left_since_the_round_was_cut_gets_nothing_whatever_number_it_had() -> None:
    stage = Stage(members(MAX_SLICE_MEMBERS + MANY))
    wire = stage.push("1")
    gone, late = stage.members[MAX_SLICE_MEMBERS + 1], stage.members[MAX_SLICE_MEMBERS + 2]
    assert stage.room.fan_out(MAX_SLICE_MEMBERS), "more is left"
    stage.room.remove(cast("Connection", gone))
    late.is_clear, late.fd = False, -1
    while stage.room.fan_out(MAX_SLICE_MEMBERS):
        pass
    assert gone.got == b""
    assert gone.calls == []
    assert late.calls == ["deliver"]
    assert [member.got for member in stage.members if member is not gone] == [wire] * (MAX_SLICE_MEMBERS + MANY - 1)
    assert [len(call) for call in stage.wires.calls] == [MAX_SLICE_MEMBERS, MANY - 2]


def test_events_keep_their_order_whoever_takes_parts() -> None:
    stage = Stage(members())
    wires = []
    for number in range(20):
        stage.wires.takes = {100 + number % MANY: number % 5}
        wires.append(stage.push(str(number)))
        stage.clock.advance(0)
    assert [member.got for member in stage.members] == [b"".join(wires)] * MANY
