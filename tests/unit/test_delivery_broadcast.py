"""A room with a batch sender: which members it writes to, and how partly written frames are completed."""

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
from service.realtime.connections.transport import UNREAD_FD
from service.realtime.connections.write_scheduler import MAX_SLICE_MEMBERS, WriteScheduler
from service.realtime.delivery.broadcast import MAX_SINGLE_WRITES
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock

KEY = ChannelKey("t", "room:1")
MANY = MAX_SINGLE_WRITES + 4
"""Enough to stay above MAX_SINGLE_WRITES without a few members."""


class Member:
    """A connection with nothing queued; `got` is what its peer reads."""

    def __init__(self, fd: int, window_bits: int = 0) -> None:
        self.fd = self.readable_fd = fd
        self.writer = self
        self.window_bits = window_bits
        self.is_clear = True
        self.got = b""
        self.calls: list[str] = []
        self.keeps_up = True
        self.meanwhile: Callable[[], None] = lambda: None

    def write(self, data: bytes) -> None:
        self.calls.append("write")
        self.got += data

    def read_fd(self) -> int:
        self.calls.append("read_fd")
        self.fd = self.readable_fd
        return self.fd

    def write_rest(self, part: bytes) -> None:
        self.calls.append("write_rest")
        self.meanwhile()
        self.got += part

    def deliver(self, batch: Batch) -> bool:
        self.calls.append("deliver")
        self.got += batch.wire(self.window_bits)
        return self.keeps_up

    def close(self, code: CloseCode, reason: str) -> None:
        self.calls.append(f"close {code.code}")

    def fail(self) -> None:
        self.calls.append("fail")
        self.meanwhile()


class FakeSender:
    """A batch sender to members, by their descriptors."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = {member.fd: member for member in members}
        self.takes: dict[int, int] = {}
        """The maximum of bytes that a descriptor takes."""
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
    """A room of members with a fake batch sender."""

    def __init__(self, members: Sequence[Member], encoder: FrameEncoder | None = None) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.sender = FakeSender(members)
        self.members = members
        scheduler = WriteScheduler(self.clock, lambda callback: self.clock.call_later(0.0, callback))
        context = RoomContext(
            self.clock,
            self.metrics,
            scheduler,
            encoder or FrameEncoder(Compression()),
            max_batch=100,
            batch_sender=self.sender,
        )
        spec = ChannelSpec(ChannelPattern("room:{room}"), SubscribeRule.EVERYONE, {})
        self.room: Room = Hub(context).open(KEY, spec)
        for member in members:
            connection = cast("Connection", member)
            self.room.add_member(connection)
            self.room.make_live(connection, Subscription(KEY, None))

    def push(self, *names: str) -> bytes:
        """Pushes an event for each name; returns the uncompressed frame."""
        frames = [Frame(json.dumps(name).encode(), "a.b", Delivery.DURABLE) for name in names]
        for frame in frames:
            self.room.push(frame, 0.0)
        return Batch(tuple(frames), FrameEncoder(Compression())).plain

    def sent(self) -> tuple[float, float]:
        """The metric: frames written whole, and in part."""
        whole, short = self.metrics.delivery.sent_natively
        return whole.value, short.value


def members(count: int = MANY) -> list[Member]:
    return [Member(100 + number) for number in range(count)]


def test_many_members_get_a_frame_in_one_call() -> None:
    stage = Stage(members())
    wire = stage.push("1")
    stage.clock.advance(0)
    assert stage.sender.calls == [[member.fd for member in stage.members]]
    assert [(member.got, member.calls) for member in stage.members] == [(wire, [])] * MANY
    assert stage.sent() == (MANY, 0)


def test_few_members_are_written_to_one_by_one() -> None:
    stage = Stage(members(MAX_SINGLE_WRITES))
    wire = stage.push("1")
    stage.clock.advance(0)
    assert stage.sender.calls == []
    assert [(member.got, member.calls) for member in stage.members] == [(wire, ["write"])] * MAX_SINGLE_WRITES


def test_member_with_a_queue_or_without_descriptor_is_written_to_by_itself() -> None:
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


def test_descriptor_is_read_when_the_sender_first_needs_it() -> None:
    stage = Stage(members())
    secure = stage.members[2]
    secure.readable_fd = -1
    for member in stage.members:
        member.fd = UNREAD_FD
    wire = stage.push("1")
    stage.clock.advance(0)
    wire += stage.push("2")
    stage.clock.advance(0)
    assert [member.got for member in stage.members] == [wire] * MANY
    assert secure.calls == ["read_fd", "write", "write"]
    assert {tuple(member.calls) for member in stage.members if member is not secure} == {("read_fd",)}
    assert stage.sent() == (2 * (MANY - 1), 0)


def test_few_ready_members_are_written_to_one_by_one() -> None:
    stage = Stage(members())
    for member in stage.members[MAX_SINGLE_WRITES:]:
        member.is_clear = False
    wire = stage.push("1")
    stage.clock.advance(0)
    assert stage.sender.calls == []
    assert [(member.got, member.calls) for member in stage.members] == [(wire, ["write"])] * MAX_SINGLE_WRITES + [
        (wire, ["deliver"])
    ] * (MANY - MAX_SINGLE_WRITES)


def test_slow_member_is_closed_and_others_get_the_frame() -> None:
    stage = Stage(members())
    slow = stage.members[2]
    slow.is_clear = slow.keeps_up = False
    stage.push("1")
    stage.clock.advance(0)
    assert slow.calls == ["deliver", "close 4450"]
    assert stage.sent() == (MANY - 1, 0)


@pytest.mark.parametrize("size", [0, 1, 4])
def test_partly_written_frame_is_completed_once(size: int) -> None:
    stage = Stage(members())
    stage.sender.takes = {102: size, 105: size}
    wire = stage.push("one")
    stage.clock.advance(0)
    assert [member.got for member in stage.members] == [wire] * MANY
    assert [member.fd for member in stage.members if member.calls == ["write_rest"]] == [102, 105]
    assert stage.sent() == (MANY - 2, 2)


def test_failing_member_is_closed_after_all_frames_are_complete() -> None:
    """Closing a member may write to others, so they must have got whole frames before."""
    stage = Stage(members())
    stage.sender.takes = {100: 1, 106: 2}
    broken, other = stage.members[0], stage.members[6]
    wire = stage.push("one")

    def fails() -> None:
        if "fail" in broken.calls:
            assert other.got == wire
            other.got += b"(leave event)"
        else:
            raise RuntimeError("unable to perform operation; the handler is closed")

    broken.meanwhile = fails
    stage.clock.advance(0)
    assert broken.calls == ["write_rest", "fail"]
    assert other.got == wire + b"(leave event)"
    assert [member.calls for member in stage.members[1:6]] == [[]] * 5


def test_members_get_the_bytes_of_their_compression_window() -> None:
    encoder = FrameEncoder(Compression(enabled=True, min_bytes=1))
    group = [Member(100 + number, (0, 15, 12)[number % 3]) for number in range(3 * MAX_SINGLE_WRITES)]
    stage = Stage(group, encoder)
    far = random.Random(7).randbytes(3000).hex()  # repeats farther back than the small window reaches
    frame = Frame(json.dumps(far + far).encode(), "a.b", Delivery.DURABLE)
    batch = Batch((frame,), encoder)
    stage.room.push(frame, 0.0)
    stage.clock.advance(0)
    for member in group:
        assert member.got == batch.wire(member.window_bits)
    assert len({member.got for member in group}) == 3
    assert sorted(len(call) for call in stage.sender.calls) == [MAX_SINGLE_WRITES] * 3


def test_failing_sender_closes_only_the_members_of_its_call() -> None:
    encoder = FrameEncoder(Compression(enabled=True, min_bytes=1))
    group = [Member(100 + number, 15 * (number % 2)) for number in range(MANY)]
    stage = Stage(group, encoder)
    stage.sender.breaks_on = 101
    frame = Frame(json.dumps("x" * 500).encode(), "a.b", Delivery.DURABLE)
    stage.room.push(frame, 0.0)
    stage.clock.advance(0)
    assert [member.calls for member in group] == [["fail"] if member.window_bits else [] for member in group]
    assert all(member.got for member in group if not member.window_bits)
    assert stage.sent() == (MANY / 2, 0)


def test_member_that_left_during_a_broadcast_gets_nothing() -> None:
    stage = Stage(members(MAX_SLICE_MEMBERS + MANY))
    wire = stage.push("1")
    left, late = stage.members[MAX_SLICE_MEMBERS + 1], stage.members[MAX_SLICE_MEMBERS + 2]
    assert stage.room.fan_out(MAX_SLICE_MEMBERS), "there is more to write"
    stage.room.remove(cast("Connection", left))
    late.is_clear, late.fd = False, -1
    while stage.room.fan_out(MAX_SLICE_MEMBERS):
        pass
    assert left.got == b""
    assert left.calls == []
    assert late.calls == ["deliver"]
    assert [member.got for member in stage.members if member is not left] == [wire] * (MAX_SLICE_MEMBERS + MANY - 1)
    assert [len(call) for call in stage.sender.calls] == [MAX_SLICE_MEMBERS, MANY - 2]


def test_events_keep_their_order_with_partly_written_frames() -> None:
    stage = Stage(members())
    sender = []
    for number in range(20):
        stage.sender.takes = {100 + number % MANY: number % 5}
        sender.append(stage.push(str(number)))
        stage.clock.advance(0)
    assert [member.got for member in stage.members] == [b"".join(sender)] * MANY
