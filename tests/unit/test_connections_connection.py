"""A connection: what goes to its peer, in which order and in how many writes, whatever pauses; and how it ends."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.core.event import Delivery
from service.core.identity import Identity
from service.core.limits import Compression, OutboxLimits
from service.core.session import Session
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.protocol.messages import Ack, Pong
from service.realtime.connections.byte_budget import MAX_SMALL_REPLY, ByteBudget
from service.realtime.connections.connection import MAX_REPLIES, Connection
from service.realtime.connections.context import ConnectionContext
from service.realtime.connections.encoder import Batch, FrameEncoder
from service.realtime.connections.frame import Frame
from service.realtime.connections.write_scheduler import WriteScheduler
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.transport import NullTransport

DEADLINE = 5.0
BATCH = 3
LIMITS = OutboxLimits(messages=5, bytes=1 << 20, close_grace=1.0)


class PeerSocket(NullTransport):
    """Its peer reads as much as the test says, and pauses within a write, as transports do."""

    def __init__(self, window_bits: int = 0) -> None:
        super().__init__()
        self.window_bits = window_bits
        self.write = self._take
        self.writes: list[bytes] = []
        self.takes: int | None = None
        """Writes that go out at once; None: all."""
        self.closed: list[tuple[int, str]] = []
        self.is_lost = False

    def _take(self, data: bytes) -> None:
        assert not self.is_lost, "written to a connection that is lost"
        assert not self.closed, "RFC 6455 §5.5.1: nothing is sent behind a close frame"
        assert not self.is_paused, "what waits, waits in the outbox"
        self.writes.append(data)
        if self.takes is not None:
            self.takes -= 1
            if self.takes <= 0:
                self.is_paused = True
                self.handler.paused()

    def reads(self, takes: int | None = None) -> None:
        """The peer reads what waits; from then on so many writes go out at once."""
        self.takes = takes
        if self.is_paused:
            self.is_paused = False
            self.handler.resumed()

    def close(self, code: int, reason: str) -> None:
        if not self.closed:
            self.closed.append((code, reason))


class Given:
    """A seat that is counted."""

    network = "192.0.2.1"

    def release(self) -> None:
        """Who lets go of connections does that, not they themselves."""


@dataclass
class Stage:
    """A connection, and all that is around it."""

    window_bits: int = 0
    limits: OutboxLimits = LIMITS
    clock: FakeClock = field(default_factory=FakeClock)
    metrics: Metrics = field(default_factory=Metrics)
    budget: ByteBudget = field(default_factory=lambda: ByteBudget(1 << 30))
    encoder: FrameEncoder = field(default_factory=lambda: FrameEncoder(Compression(enabled=True, min_bytes=1)))
    ends: list[CloseCode] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.turns: list[Callable[[], None]] = []
        self.socket = PeerSocket(self.window_bits)
        self.socket.account = self.budget.account("t")
        shared = ConnectionContext(
            self.clock,
            self.metrics,
            WriteScheduler(self.clock, self.turns.append),
            self.encoder,
            BATCH,
            outbox_limits=self.limits,
            on_close=lambda connection, code, reason: self.ends.append(code),
        )
        self.connection = Connection("c", self.socket, Session(Identity("t", "ann"), 10), Given(), shared)
        self.socket.handler = Listening(self.connection)

    def end_turn(self) -> None:
        turns, self.turns[:] = list(self.turns), []
        for turn in turns:
            turn()

    def lose(self) -> None:
        self.socket.is_lost = True
        self.connection.connection_lost()

    def burst(self, *frames: Frame) -> Batch:
        return Batch(frames, self.encoder)

    # Methods, as type checkers take it that an attribute stays what it was seen to be.

    def is_clear(self) -> bool:
        return self.connection.is_clear

    def is_writable(self) -> bool:
        return self.connection.is_writable

    def paused_since(self) -> float | None:
        return self.connection.paused_since

    def held(self) -> tuple[float, int]:
        """What the gauges say of outboxes, and the node's budget."""
        return (
            self.metrics.outbox.outbox_messages.value,
            self.budget.used,
        )


class Listening:
    """The ear as Serving is it: it passes on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def received(self, message: str | bytes) -> None:
        """The peer says nothing here."""

    def paused(self) -> None:
        self._connection.pause_writing()

    def resumed(self) -> None:
        self._connection.resume_writing()

    def ended(self) -> bool:
        return False

    def lost(self) -> None:
        self._connection.connection_lost()


def event(name: str, delivery: Delivery = Delivery.DURABLE, key: str | None = None, *, ordered: bool = False) -> Frame:
    replaced_by = None if key is None else ("room:1", "a.b", key)
    return Frame(json.dumps(name).encode(), "a.b", delivery, replaced_by, keeps_order=ordered)


def frames_of(data: bytes) -> Iterator[tuple[bool, object]]:
    """Each frame: whether it is deflated, and its message."""
    at = 0
    while at < len(data):
        first, size = data[at], data[at + 1]
        assert first & ~0x40 == 0x81, "whole text frames alone"
        at += 2
        if size >= 126:
            width = 2 if size == 126 else 8
            size = int.from_bytes(data[at : at + width], "big")
            at += width
        payload = data[at : at + size]
        at += size
        if first & 0x40:
            payload = zlib.decompressobj(-15).decompress(payload + b"\x00\x00\xff\xff")
        yield bool(first & 0x40), json.loads(payload)


def said(message: object) -> list[str]:
    """What single messages say: events their name, replies their id."""
    alone = message if isinstance(message, list) else [message]
    return [str(one["id"]) if isinstance(one, dict) else str(one) for one in alone]


def written(*writes: bytes) -> list[str]:
    return [name for write in writes for _, message in frames_of(write) for name in said(message)]


@pytest.fixture
def stage() -> Stage:
    return Stage()


# --- how many writes --------------------------------------------------------------------------------------------------------


def test_the_replies_of_a_turn_share_a_write_at_its_end(stage: Stage) -> None:
    for name in ("1", "2", "3"):
        stage.connection.reply(Pong(name))
    assert stage.socket.writes == []
    assert not stage.is_clear(), "what is written now would overtake them"
    stage.end_turn()
    (write,) = stage.socket.writes
    assert [said(message) for _, message in frames_of(write)] == [["1", "2", "3"]]
    assert stage.is_clear()
    stage.end_turn()
    assert len(stage.socket.writes) == 1


def test_they_share_a_write_with_the_event_that_follows_and_go_before_it(stage: Stage) -> None:
    stage.connection.reply(Pong("1"))
    stage.connection.reply(Ack("2"))
    assert stage.connection.deliver(stage.burst(event("3"), event("4")))
    (write,) = stage.socket.writes
    assert [said(message) for _, message in frames_of(write)] == [["1", "2"], ["3", "4"]]
    stage.end_turn()
    assert len(stage.socket.writes) == 1
    assert stage.is_clear()


def test_a_frame_has_no_more_replies_than_a_batch_may_have(stage: Stage) -> None:
    names = [str(number) for number in range(2 * BATCH + 1)]
    for name in names:
        stage.connection.reply(Pong(name))
    stage.end_turn()
    (write,) = stage.socket.writes
    assert [len(said(message)) for _, message in frames_of(write)] == [BATCH, BATCH, 1]
    assert written(write) == names


def test_many_replies_do_not_wait_for_the_end_of_the_turn(stage: Stage) -> None:
    names = [str(number) for number in range(MAX_REPLIES + 1)]
    for name in names[:-1]:
        stage.connection.reply(Pong(name))
    assert stage.socket.writes == []
    stage.connection.reply(Pong(names[-1]))
    assert written(*stage.socket.writes) == names


def test_a_large_reply_goes_at_once_behind_those_before_it(stage: Stage) -> None:
    stage.connection.reply(Pong("1"))
    stage.connection.reply(Pong("x" * MAX_SMALL_REPLY))
    assert written(*stage.socket.writes) == ["1", "x" * MAX_SMALL_REPLY]
    stage.connection.reply(Pong("2"))
    stage.end_turn()
    assert written(*stage.socket.writes)[2:] == ["2"]


def test_events_are_deflated_for_who_takes_that_and_replies_never() -> None:
    stage = Stage(window_bits=15)
    stage.connection.reply(Pong("1"))
    stage.connection.deliver(stage.burst(event("2")))
    stage.connection.send([event("3")])
    stage.socket.takes = 1
    stage.connection.deliver(stage.burst(event("4")))
    stage.connection.deliver(stage.burst(event("5")))
    stage.connection.reply(Pong("6"))
    stage.socket.reads()
    frames = [(deflated, said(message)) for write in stage.socket.writes for deflated, message in frames_of(write)]
    # What a reply is joined with is not deflated either: it may hold what somebody else wrote.
    assert frames == [(False, ["1"]), (True, ["2"]), (True, ["3"]), (True, ["4"]), (False, ["5", "6"])]


# --- in every mixture -------------------------------------------------------------------------------------------------------


@dataclass
class Waits:
    """One message that the peer has not been given, as the oracle sees it."""

    name: str
    delivery: Delivery | None = None
    key: str | None = None
    ordered: bool = False


class Oracle:
    """What waits for the peer, by the rules of docs/protocol.md alone: a plain list."""

    def __init__(self) -> None:
        self.waiting: list[Waits] = []

    def reply(self, name: str) -> None:
        self.waiting.append(Waits(name))

    def straight(self, frame: Waits) -> None:
        """An event for a peer that keeps up."""
        self.waiting.append(frame)

    def queue(self, frame: Waits) -> bool:
        """An event behind others. False if the peer is too slow for it."""
        if frame.delivery is Delivery.LATEST:
            for place, old in enumerate(self.waiting):
                if old.delivery is Delivery.LATEST and old.key == frame.key:
                    self.waiting[place] = frame
                    if frame.ordered:
                        self.waiting.append(self.waiting.pop(place))
                    return True
        events = [one for one in self.waiting if one.delivery is not None]
        if len(events) >= LIMITS.messages:
            oldest = next((one for one in events if one.delivery is Delivery.EPHEMERAL), None)
            if oldest is None:
                return frame.delivery is Delivery.EPHEMERAL  # dropped itself
            self.waiting.remove(oldest)
        self.waiting.append(frame)
        return True


kinds = st.sampled_from(
    [
        (Delivery.DURABLE, None, False),
        (Delivery.EPHEMERAL, None, False),
        (Delivery.LATEST, "x", False),
        (Delivery.LATEST, "y", False),
        (Delivery.LATEST, "z", True),
    ]
)


class AnyMixture(RuleBasedStateMachine):
    """Replies, events, pauses and ends in any order: what the peer is given is what the oracle lets wait, from its head."""

    @initialize()
    def connect(self) -> None:
        self.stage = Stage()
        self.oracle = Oracle()
        self.serial = 0
        self.looked = 0
        self.wanted: CloseCode | None = None
        self.is_lost = False
        self.parts_at = float("inf")

    @property
    def is_open(self) -> bool:
        return self.wanted is None and not self.is_lost

    def new_name(self) -> str:
        self.serial += 1
        return str(self.serial)

    def new_event(self, kind: tuple[Delivery, str | None, bool]) -> tuple[Frame, Waits]:
        delivery, key, ordered = kind
        name = self.new_name()
        frame = event(name, delivery, key, ordered=ordered)
        return frame, Waits(name, delivery, key, ordered)

    # --- what happens ---

    @rule(large=st.sampled_from([False] * 7 + [True]), count=st.sampled_from([1, 1, 2, 5, MAX_REPLIES + 2]))
    def reply(self, large: bool, count: int) -> None:
        for _ in range(count):
            name = self.new_name() + ("x" * MAX_SMALL_REPLY if large and count < 3 else "")
            if self.is_open:
                self.oracle.reply(name)
            self.stage.connection.reply(Pong(name))

    @rule(kinds=st.lists(kinds, min_size=1, max_size=4))
    def burst(self, kinds: list[tuple[Delivery, str | None, bool]]) -> None:
        """As the hub does it: to who is clear it writes itself."""
        connection = self.stage.connection
        frames, waits = zip(*map(self.new_event, kinds), strict=True)
        burst = self.stage.burst(*frames)
        keeps_up = True
        if self.is_open:
            was_paused = self.stage.socket.is_paused
            for one in waits:
                if not was_paused:
                    self.oracle.straight(one)
                elif not self.oracle.queue(one):
                    keeps_up = False
                    break
        if self.stage.is_clear():
            connection.write(burst.wire(connection.window_bits))
        else:
            self.judge(connection.deliver(burst), keeps_up)

    @rule(kinds=st.lists(kinds, max_size=7))
    def send(self, kinds: list[tuple[Delivery, str | None, bool]]) -> None:
        """A snapshot, say: for this connection alone."""
        made = [self.new_event(kind) for kind in kinds]
        keeps_up = not self.is_open or all(self.oracle.queue(one) for _, one in made)
        self.judge(self.stage.connection.send([frame for frame, _ in made]), keeps_up)

    def judge(self, keeps_up: bool, expected: bool) -> None:
        assert keeps_up == expected
        if not keeps_up:
            self.close(CloseCode.SLOW_CONSUMER)

    @rule()
    def end_turn(self) -> None:
        self.stage.end_turn()

    @rule(takes=st.integers(1, 3))
    def get_slow(self, takes: int) -> None:
        if not self.stage.socket.is_paused:
            self.stage.socket.takes = takes

    @rule(takes=st.sampled_from([1, 2, None]))
    def read(self, takes: int | None) -> None:
        if not self.is_lost:
            self.stage.socket.reads(takes)

    @rule(seconds=st.sampled_from([0.1, 0.4, 0.6]))
    def wait(self, seconds: float) -> None:
        self.stage.clock.advance(seconds)

    @precondition(lambda self: self.serial > 4)
    @rule(code=st.sampled_from([CloseCode.RESTART, CloseCode.SLOW_CONSUMER]))
    def close(self, code: CloseCode) -> None:
        if self.wanted is None:
            self.wanted = code
            self.parts_at = self.stage.clock.monotonic() + LIMITS.close_grace
        self.stage.connection.close(code, "why")
        if code is CloseCode.SLOW_CONSUMER and self.wanted is code and not self.is_lost:
            assert self.stage.socket.closed, "it would not read what explains it"

    @precondition(lambda self: self.serial > 8)
    @rule()
    def lose(self) -> None:
        self.is_lost = True
        self.stage.lose()

    @precondition(lambda self: self.is_lost)
    @rule()
    def come_back(self) -> None:
        self.connect()

    # --- what must hold ---

    @invariant()
    def it_holds(self) -> None:
        self.it_is_given_what_waits_from_its_head()
        self.who_keeps_up_waits_for_replies_of_this_turn_at_most()
        self.it_closes_when_all_is_written_or_after_the_grace()
        self.what_is_counted_is_what_waits()

    def it_is_given_what_waits_from_its_head(self) -> None:
        names = written(*self.stage.socket.writes[self.looked :])
        self.looked = len(self.stage.socket.writes)
        assert names == [one.name for one in self.oracle.waiting[: len(names)]]
        del self.oracle.waiting[: len(names)]

    def who_keeps_up_waits_for_replies_of_this_turn_at_most(self) -> None:
        clear = self.is_open and not self.stage.socket.is_paused and not self.oracle.waiting
        assert self.stage.is_clear() == clear
        if self.is_open and not self.stage.socket.is_paused:
            assert all(one.delivery is None for one in self.oracle.waiting)
            assert bool(self.stage.turns) or not self.oracle.waiting

    def it_closes_when_all_is_written_or_after_the_grace(self) -> None:
        socket, now = self.stage.socket, self.stage.clock.monotonic()
        assert self.stage.ends == ([self.wanted] if self.wanted is not None else []), (
            "the first counts, and is told once"
        )
        if self.wanted is None or self.is_lost:
            return
        if not socket.is_paused or now >= self.parts_at:
            assert socket.closed == [(self.wanted.code, "why")]
        if socket.closed and self.wanted is not CloseCode.SLOW_CONSUMER and now < self.parts_at:
            assert not self.oracle.waiting, "what is queued goes first"

    def what_is_counted_is_what_waits(self) -> None:
        queued = self.stage.socket.is_paused and not self.is_lost and not self.stage.socket.closed
        count = len(self.oracle.waiting) if queued else 0
        messages, used = self.stage.held()
        assert messages == self.stage.connection.queued_messages == count
        assert (used > 0) == (count > 0)

    def teardown(self) -> None:
        if hasattr(self, "stage"):
            self.stage.lose()
            assert self.stage.held() == (0, 0)
            assert self.stage.clock.pending == 0


AnyMixture.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyMixture = AnyMixture.TestCase


# --- the end ----------------------------------------------------------------------------------------------------------------


def slow(stage: Stage, *names: str) -> None:
    """A peer that has stopped reading, with these waiting."""
    stage.socket.takes = 1
    stage.connection.deliver(stage.burst(event("0")))
    for name in names:
        assert stage.connection.deliver(stage.burst(event(name)))


def test_a_close_waits_for_what_is_queued(stage: Stage) -> None:
    slow(stage, "1", "2")
    stage.connection.reply(Pong("3"))
    stage.connection.close(CloseCode.RESTART, "the node restarts")
    assert stage.ends == [CloseCode.RESTART], "it leaves the hub at once"
    stage.clock.advance(LIMITS.close_grace * 0.9)
    assert stage.socket.closed == []
    stage.socket.reads()
    assert written(*stage.socket.writes) == ["0", "1", "2", "3"]
    assert stage.socket.closed == [(1012, "the node restarts")]
    assert stage.clock.pending == 0


def test_but_no_longer_than_the_grace_and_nothing_goes_behind_the_close(stage: Stage) -> None:
    slow(stage, "1", "2")
    stage.connection.close(CloseCode.RESTART, "the node restarts")
    stage.clock.advance(LIMITS.close_grace)
    assert stage.socket.closed == [(1012, "the node restarts")]
    assert stage.held() == (0, 0), "what will not be sent is not kept"
    stage.socket.reads()
    assert written(*stage.socket.writes) == ["0"]


def test_a_slow_consumer_is_closed_at_once(stage: Stage) -> None:
    slow(stage, *"12345")
    assert not stage.connection.deliver(stage.burst(event("6")))
    stage.connection.close(CloseCode.SLOW_CONSUMER, "too slow")
    assert stage.socket.closed == [(4450, "too slow")]
    assert stage.held() == (0, 0)
    stage.socket.reads()
    assert written(*stage.socket.writes) == ["0"]


def test_the_replies_of_the_turn_go_before_the_close(stage: Stage) -> None:
    stage.connection.reply(Pong("1"))
    stage.connection.close(CloseCode.RATE_LIMITED, "enough")
    assert written(*stage.socket.writes) == ["1"]
    assert stage.socket.closed == [(4429, "enough")]
    stage.end_turn()


def test_replies_that_pause_the_peer_on_the_way_out_are_waited_for(stage: Stage) -> None:
    stage.connection.reply(Pong("1"))
    stage.socket.takes = 1
    stage.connection.close(CloseCode.RESTART, "why")
    assert written(*stage.socket.writes) == ["1"]
    assert stage.socket.closed == []
    stage.socket.reads()
    assert stage.socket.closed == [(1012, "why")]


@pytest.mark.parametrize("state", ["clear", "replies", "slow", "closing", "closed"])
def test_nothing_is_written_once_it_is_forgotten(stage: Stage, state: str) -> None:
    connection = stage.connection
    if state == "replies":
        connection.reply(Pong("r"))
    elif state != "clear":
        slow(stage, "1", "2")
    if state in ("closing", "closed"):
        connection.close(CloseCode.RESTART if state == "closing" else CloseCode.SLOW_CONSUMER, "why")
    before = list(stage.socket.writes)
    stage.lose()
    assert connection.deliver(stage.burst(event("late")))
    assert connection.send([event("late")])
    connection.reply(Pong("late"))
    connection.flush()
    stage.end_turn()
    stage.socket.reads()
    connection.pause_writing()
    connection.resume_writing()
    stage.clock.advance(10)
    connection.close(CloseCode.GOING_AWAY, "late")
    assert not stage.is_clear()
    assert stage.socket.writes == before
    assert stage.held() == (0, 0)
    assert (connection.queued_messages, stage.clock.pending) == (0, 0)


# --- waiting for the peer ---------------------------------------------------------------------------------------------------


async def waits(work: asyncio.Task[None]) -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return not work.done()


async def ends(work: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE):
        await work


FREED = {
    "it reads": lambda stage: stage.socket.reads(),
    "it is lost": lambda stage: stage.lose(),
    "it is closed": lambda stage: stage.connection.close(CloseCode.RESTART, "why"),
}


@pytest.mark.parametrize("how", FREED)
async def test_who_does_not_read_is_not_served_until(stage: Stage, how: str) -> None:
    slow(stage)
    for number in range(LIMITS.messages):
        stage.connection.reply(Pong(str(number)))
    assert stage.is_writable()
    await stage.connection.wait_writable()
    stage.connection.reply(Pong("more"))
    assert not stage.is_writable()
    work = asyncio.create_task(stage.connection.wait_writable())
    assert await waits(work)
    FREED[how](stage)
    await ends(work)


async def test_room_comes_back_as_soon_as_the_peer_has_read_some(stage: Stage) -> None:
    slow(stage)
    for number in range(LIMITS.messages + 1):
        stage.connection.reply(Pong(str(number)))
    work = asyncio.create_task(stage.connection.wait_writable())
    drained = asyncio.create_task(stage.connection.wait_written())
    assert await waits(work)
    stage.socket.reads(takes=1)
    await ends(work)
    assert stage.connection.queued_messages == LIMITS.messages + 1 - BATCH
    assert await waits(drained)
    stage.socket.reads()
    await ends(drained)


@pytest.mark.parametrize("how", FREED)
async def test_drained_waits_until(stage: Stage, how: str) -> None:
    await ends(asyncio.create_task(stage.connection.wait_written()))
    slow(stage, "1")
    work = asyncio.create_task(stage.connection.wait_written())
    assert await waits(work)
    FREED[how](stage)
    await ends(work)


def test_since_when_it_is_paused_is_told(stage: Stage) -> None:
    assert stage.paused_since() is None
    slow(stage)
    assert stage.paused_since() == stage.clock.monotonic()
    stage.clock.advance(3)
    assert stage.paused_since() == stage.clock.monotonic() - 3
    stage.socket.reads()
    assert stage.paused_since() is None


class TestDescriptor:
    """What a Sender may write to: as long as nothing waits, and never when the connection is over."""

    @pytest.fixture
    def stage(self) -> Stage:
        made = Stage()
        made.socket.fd = 7
        made.connection.fd = made.socket.fd
        return made

    def test_the_rest_of_a_frame_goes_out_by_the_transport(self, stage: Stage) -> None:
        stage.connection.write_rest(b"rest")
        assert stage.socket.writes == [b"rest"]
        assert stage.connection.is_clear
        assert stage.connection.fd == 7

    def test_what_waits_then_waits_before_all_else(self, stage: Stage) -> None:
        stage.socket.takes = 1
        stage.connection.write_rest(b"rest")
        assert not stage.connection.is_clear

    def test_a_transport_that_has_ended_meanwhile_gets_nothing_past_it(self, stage: Stage) -> None:
        """The kernel's error ended it, and the rest of the frame is lost: nothing may come behind that hole."""
        stage.socket.fd = -1
        stage.connection.write_rest(b"rest")
        assert stage.connection.fd == -1

    def test_none_when_it_is_over(self, stage: Stage) -> None:
        stage.connection.connection_lost()
        assert stage.connection.fd == -1
        assert not stage.connection.is_clear


def test_a_large_reply_that_does_not_fit_behind_the_small_ones_is_refused_and_not_lost() -> None:
    stage = Stage(budget=ByteBudget(10_000))
    stage.connection.reply(Pong("1" * 3_000))
    with pytest.raises(ServiceError) as refused:
        stage.connection.reply(Pong("x" * 8_000))
    assert refused.value.code is ErrorCode.OVERLOADED
    assert stage.metrics.limits.limit_hits.labels(limit="outbox_node").value == 1
    stage.end_turn()
    assert written(*stage.socket.writes) == ["1" * 3_000]
    assert stage.held() == (0, 0)
    assert stage.is_clear()
