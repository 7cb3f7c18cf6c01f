"""A connection: what it writes, in which order and in how many writes, while the peer reads or does not; and its close."""

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
from service.protocol.framing import PING_FRAME
from service.protocol.messages import Ack, Pong
from service.realtime.connections.byte_budget import MAX_SMALL_REPLY, ByteBudget
from service.realtime.connections.connection import MAX_GATHERED, Connection
from service.realtime.connections.context import ConnectionContext
from service.realtime.connections.encoder import Batch, FrameEncoder
from service.realtime.connections.frame import Frame
from service.realtime.connections.write_scheduler import WriteScheduler
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.examples import examples
from tests.support.transport import NullTransport

DEADLINE = 5.0
BATCH = 3
LIMITS = OutboxLimits(messages=5, bytes=1 << 20, close_grace=1.0)


class PeerTransport(NullTransport):
    """A transport whose peer reads as much as the test says. Pauses during a write, as asyncio's transports do."""

    def __init__(self, window_bits: int = 0) -> None:
        super().__init__()
        self.window_bits = window_bits
        self.write = self._take
        self.writes: list[bytes] = []
        self.takes: int | None = None
        """Writes that the peer reads at once; None: all."""
        self.closed: list[tuple[int, str]] = []
        self.is_lost = False

    def _take(self, data: bytes) -> None:
        assert not self.is_lost, "written to a connection that is lost"
        assert not self.closed, "RFC 6455 §5.5.1: nothing is sent behind a close frame"
        assert not self.is_writing_paused, "queued messages wait in the outbox"
        self.writes.append(data)
        if self.takes is not None:
            self.takes -= 1
            if self.takes <= 0:
                self.is_writing_paused = True
                self.handler.pause_writing()

    def reads(self, takes: int | None = None) -> None:
        """Reads what waits, and from now on so many writes at once."""
        self.takes = takes
        if self.is_writing_paused:
            self.is_writing_paused = False
            self.handler.resume_writing()

    def close(self, code: int, reason: str) -> None:
        if not self.closed:
            self.closed.append((code, reason))


class FakeSlot:
    """A slot whose release is the test's business."""

    network = "192.0.2.1"

    def release(self) -> None:
        """Not called by connections."""


@dataclass
class Stage:
    """A connection and its environment."""

    window_bits: int = 0
    limits: OutboxLimits = LIMITS
    clock: FakeClock = field(default_factory=FakeClock)
    metrics: Metrics = field(default_factory=Metrics)
    budget: ByteBudget = field(default_factory=lambda: ByteBudget(1 << 30))
    encoder: FrameEncoder = field(default_factory=lambda: FrameEncoder(Compression(enabled=True, min_bytes=1)))
    closes: list[CloseCode] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []
        self.transport = PeerTransport(self.window_bits)
        self.transport.account = self.budget.account("t")
        shared = ConnectionContext(
            self.clock,
            self.metrics,
            WriteScheduler(self.clock, self.callbacks.append),
            self.encoder,
            BATCH,
            outbox_limits=self.limits,
            on_close=lambda connection, code, reason: self.closes.append(code),
        )
        self.connection = Connection("c", self.transport, Session(Identity("t", "ann")), FakeSlot(), shared)
        self.transport.handler = ForwardingHandler(self.connection)

    def end_iteration(self) -> None:
        callbacks, self.callbacks[:] = list(self.callbacks), []
        for callback in callbacks:
            callback()

    def lose(self) -> None:
        self.transport.is_lost = True
        self.connection.connection_lost()

    def batch(self, *frames: Frame) -> Batch:
        return Batch(frames, self.encoder)

    # Methods, as type checkers take it that an attribute stays what it was seen to be.

    def is_clear(self) -> bool:
        return self.connection.is_clear

    def is_writable(self) -> bool:
        return self.connection.is_writable

    def paused_since(self) -> float | None:
        return self.connection.paused_since

    def held(self) -> tuple[float, int]:
        """Messages in outboxes, and bytes of the node's budget."""
        return (
            self.metrics.outbox.outbox_messages.value,
            self.budget.used,
        )


class ForwardingHandler:
    """Forwards to the connection, as SessionHandler does."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def message_received(self, message: str | bytes) -> None:
        """Not called: the peer sends nothing."""

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self) -> None:
        self._connection.connection_lost()


def event(name: str, delivery: Delivery = Delivery.DURABLE, key: str | None = None, *, ordered: bool = False) -> Frame:
    replaced_by = None if key is None else ("room:1", "a.b", key)
    return Frame(json.dumps(name).encode(), "a.b", delivery, replaced_by, keeps_order=ordered)


def frames_of(data: bytes) -> Iterator[tuple[bool, object]]:
    """Yields each frame's message, and whether it is compressed."""
    at = 0
    while at < len(data):
        first, size = data[at], data[at + 1]
        assert first & ~0x40 == 0x81, "only whole text frames"
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


def names_in(message: object) -> list[str]:
    """The names of events and the ids of replies in a message."""
    alone = message if isinstance(message, list) else [message]
    return [str(one["id"]) if isinstance(one, dict) else str(one) for one in alone]


def written(*writes: bytes) -> list[str]:
    return [name for write in writes for _, message in frames_of(write) for name in names_in(message)]


@pytest.fixture
def stage() -> Stage:
    return Stage()


# --- writes -----------------------------------------------------------------------------------------------------------


def test_replies_of_one_loop_iteration_share_a_write(stage: Stage) -> None:
    for name in ("1", "2", "3"):
        stage.connection.reply(Pong(name))
    assert stage.transport.writes == []
    assert not stage.is_clear(), "a write would overtake the replies"
    stage.end_iteration()
    (write,) = stage.transport.writes
    assert [names_in(message) for _, message in frames_of(write)] == [["1", "2", "3"]]
    assert stage.is_clear()
    stage.end_iteration()
    assert len(stage.transport.writes) == 1


def test_replies_share_a_write_with_the_event_that_follows(stage: Stage) -> None:
    stage.connection.reply(Pong("1"))
    stage.connection.reply(Ack("2"))
    assert stage.connection.deliver(stage.batch(event("3"), event("4")))
    (write,) = stage.transport.writes
    assert [names_in(message) for _, message in frames_of(write)] == [["1", "2"], ["3", "4"]]
    stage.end_iteration()
    assert len(stage.transport.writes) == 1
    assert stage.is_clear()


def test_gathered_event_shares_a_message_with_the_reply(stage: Stage) -> None:
    assert stage.connection.gather(Frame(b'"1"', "a.b", Delivery.DURABLE, received_at=stage.clock.monotonic()))
    stage.connection.reply(Ack("2"))
    assert stage.connection.gather(event("3"))
    assert stage.transport.writes == []
    stage.clock.advance(0.003)
    stage.end_iteration()
    (write,) = stage.transport.writes
    assert [names_in(message) for _, message in frames_of(write)] == [["2", "1", "3"]], "the ack first"
    delivery = stage.metrics.registry.get_sample_value
    assert delivery("tidewire_publish_to_write_seconds_count") == 1
    assert delivery("tidewire_publish_to_write_seconds_sum") == pytest.approx(0.003)


@pytest.mark.parametrize("events", [LIMITS.messages, LIMITS.messages + 1])
def test_gathered_events_are_queued_when_writing_pauses(stage: Stage, events: int) -> None:
    names = [str(number) for number in range(events)]
    for name in names:
        assert stage.connection.gather(event(name))
    stage.transport.takes = 1
    stage.transport.write(PING_FRAME)
    assert stage.transport.is_writing_paused
    if events > LIMITS.messages:
        assert stage.closes == [CloseCode.SLOW_CONSUMER]
        assert stage.held() == (0, 0)
        return
    stage.connection.reply(Ack("last"))
    stage.end_iteration()
    stage.transport.reads()
    assert written(*stage.transport.writes[1:]) == [*names, "last"]


def test_replies_above_max_batch_go_into_several_messages(stage: Stage) -> None:
    names = [str(number) for number in range(2 * BATCH + 1)]
    for name in names:
        stage.connection.reply(Pong(name))
    stage.end_iteration()
    (write,) = stage.transport.writes
    assert [len(names_in(message)) for _, message in frames_of(write)] == [BATCH, BATCH, 1]
    assert written(write) == names


def test_replies_above_the_maximum_are_written_at_once(stage: Stage) -> None:
    names = [str(number) for number in range(MAX_GATHERED + 1)]
    for name in names[:-1]:
        stage.connection.reply(Pong(name))
    assert stage.transport.writes == []
    stage.connection.reply(Pong(names[-1]))
    assert written(*stage.transport.writes) == names


def test_acks_before_an_event_above_the_maximum_are_written_at_once(stage: Stage) -> None:
    """Once they were gathered without a limit, because each took the place before the event."""
    stage.connection.gather(event("event"))
    names = [str(number) for number in range(3 * MAX_GATHERED)]
    for name in names:
        stage.connection.reply(Ack(name))
    assert len(written(*stage.transport.writes)) > 2 * MAX_GATHERED
    stage.end_iteration()
    assert [name for name in written(*stage.transport.writes) if name != "event"] == names


def test_large_reply_is_written_at_once_after_earlier_replies(stage: Stage) -> None:
    stage.connection.reply(Pong("1"))
    stage.connection.reply(Pong("x" * MAX_SMALL_REPLY))
    assert written(*stage.transport.writes) == ["1", "x" * MAX_SMALL_REPLY]
    stage.connection.reply(Pong("2"))
    stage.end_iteration()
    assert written(*stage.transport.writes)[2:] == ["2"]


def test_events_are_compressed_and_replies_are_not() -> None:
    stage = Stage(window_bits=15)
    stage.connection.reply(Pong("1"))
    stage.connection.deliver(stage.batch(event("2")))
    stage.connection.send([event("3")])
    stage.transport.takes = 1
    stage.connection.deliver(stage.batch(event("4")))
    stage.connection.deliver(stage.batch(event("5")))
    stage.connection.reply(Pong("6"))
    stage.transport.reads()
    frames = [
        (deflated, names_in(message)) for write in stage.transport.writes for deflated, message in frames_of(write)
    ]
    # A message with a reply is not compressed: the reply may contain what another user wrote.
    assert frames == [(False, ["1"]), (True, ["2"]), (True, ["3"]), (True, ["4"]), (False, ["5", "6"])]


# --- in any order -----------------------------------------------------------------------------------------------------


@dataclass
class QueuedMessage:
    """One message that the peer has not got."""

    name: str
    delivery: Delivery | None = None
    key: str | None = None
    ordered: bool = False


class Oracle:
    """The expected queue, by the rules of docs/protocol.md: a plain list."""

    def __init__(self) -> None:
        self.waiting: list[QueuedMessage] = []

    def reply(self, name: str) -> None:
        self.waiting.append(QueuedMessage(name))

    def write(self, frame: QueuedMessage) -> None:
        """Adds an event for a peer that keeps up."""
        self.waiting.append(frame)

    def queue(self, frame: QueuedMessage, start: int = 0) -> bool:
        """Queues an event. False if the peer is too slow for it. The messages before `start` are being written."""
        if frame.delivery is Delivery.LATEST:
            for place, old in enumerate(self.waiting):
                if place >= start and old.delivery is Delivery.LATEST and old.key == frame.key:
                    self.waiting[place] = frame
                    if frame.ordered:
                        self.waiting.append(self.waiting.pop(place))
                    return True
        events = [one for one in self.waiting[start:] if one.delivery is not None]
        if len(events) >= LIMITS.messages:
            oldest = next((one for one in events if one.delivery is Delivery.EPHEMERAL), None)
            if oldest is None:
                return frame.delivery is Delivery.EPHEMERAL  # dropped
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


class ConnectionMachine(RuleBasedStateMachine):
    """Replies, events, pauses and closes in any order: the peer gets the messages of the oracle's queue, in order."""

    @initialize()
    def connect(self) -> None:
        self.stage = Stage()
        self.oracle = Oracle()
        self.serial = 0
        self.checked_writes = 0
        self.close_code: CloseCode | None = None
        self.is_lost = False
        self.grace_ends_at = float("inf")

    @property
    def is_open(self) -> bool:
        return self.close_code is None and not self.is_lost

    def new_name(self) -> str:
        self.serial += 1
        return str(self.serial)

    def new_event(self, kind: tuple[Delivery, str | None, bool]) -> tuple[Frame, QueuedMessage]:
        delivery, key, ordered = kind
        name = self.new_name()
        frame = event(name, delivery, key, ordered=ordered)
        return frame, QueuedMessage(name, delivery, key, ordered)

    # --- what happens ---

    @rule(large=st.sampled_from([False] * 7 + [True]), count=st.sampled_from([1, 1, 2, 5, MAX_GATHERED + 2]))
    def reply(self, large: bool, count: int) -> None:
        for _ in range(count):
            name = self.new_name() + ("x" * MAX_SMALL_REPLY if large and count < 3 else "")
            if self.is_open:
                self.oracle.reply(name)
            self.stage.connection.reply(Pong(name))

    @rule(kinds=st.lists(kinds, min_size=1, max_size=4))
    def batch(self, kinds: list[tuple[Delivery, str | None, bool]]) -> None:
        """Delivers as a room does: it writes to a clear connection itself."""
        connection = self.stage.connection
        frames, queued = zip(*map(self.new_event, kinds), strict=True)
        batch = self.stage.batch(*frames)
        keeps_up = True
        if self.is_open:
            was_paused = self.stage.transport.is_writing_paused
            for one in queued:
                if not was_paused:
                    self.oracle.write(one)
                elif not self.oracle.queue(one):
                    keeps_up = False
                    break
        if self.stage.is_clear():
            connection.writer.write(batch.wire(connection.window_bits))
        else:
            self.check_keeps_up(connection.deliver(batch), keeps_up)

    @rule(kinds=st.lists(kinds, min_size=1, max_size=4), times=st.sampled_from([1, 1, 1, MAX_GATHERED]))
    def gather(self, kinds: list[tuple[Delivery, str | None, bool]], times: int) -> None:
        """Delivers as a room of few does."""
        for kind in kinds * times:
            frame, queued = self.new_event(kind)
            keeps_up = True
            if self.is_open:
                if self.stage.transport.is_writing_paused:
                    keeps_up = self.oracle.queue(queued)
                else:
                    self.oracle.write(queued)
            self.check_keeps_up(self.stage.connection.gather(frame), keeps_up)
            self.peer_gets_messages_in_queue_order()

    @rule(kinds=st.lists(kinds, max_size=7))
    def send(self, kinds: list[tuple[Delivery, str | None, bool]]) -> None:
        """Sends frames for this connection alone, such as a snapshot."""
        made = [self.new_event(kind) for kind in kinds]
        start = 0 if self.stage.transport.is_writing_paused else len(self.oracle.waiting)
        keeps_up = not self.is_open or all(self.oracle.queue(one, start) for _, one in made)
        self.check_keeps_up(self.stage.connection.send([frame for frame, _ in made]), keeps_up)

    def check_keeps_up(self, keeps_up: bool, expected: bool) -> None:
        assert keeps_up == expected
        if not keeps_up:
            self.close(CloseCode.SLOW_CONSUMER)

    @rule()
    def end_iteration(self) -> None:
        self.stage.end_iteration()

    @rule(takes=st.integers(1, 3))
    def stop_reading(self, takes: int) -> None:
        if not self.stage.transport.is_writing_paused:
            self.stage.transport.takes = takes

    @rule(takes=st.sampled_from([1, 2, None]))
    def read(self, takes: int | None) -> None:
        if not self.is_lost:
            self.stage.transport.reads(takes)

    @rule(seconds=st.sampled_from([0.1, 0.4, 0.6]))
    def wait(self, seconds: float) -> None:
        self.stage.clock.advance(seconds)

    @precondition(lambda self: self.serial > 4)
    @rule(code=st.sampled_from([CloseCode.RESTART, CloseCode.SLOW_CONSUMER]))
    def close(self, code: CloseCode) -> None:
        if self.close_code is None:
            self.close_code = code
            self.grace_ends_at = self.stage.clock.monotonic() + LIMITS.close_grace
        self.stage.connection.close(code, "why")
        if code is CloseCode.SLOW_CONSUMER and self.close_code is code and not self.is_lost:
            assert self.stage.transport.closed, "a slow consumer gets no grace"

    @precondition(lambda self: self.serial > 8)
    @rule()
    def lose(self) -> None:
        self.is_lost = True
        self.stage.lose()

    @precondition(lambda self: self.is_lost)
    @rule()
    def reconnect(self) -> None:
        self.connect()

    # --- what must hold ---

    @invariant()
    def check_model(self) -> None:
        self.peer_gets_messages_in_queue_order()
        self.messages_wait_only_for_the_end_of_the_iteration()
        self.close_frame_is_sent_after_the_queue_or_the_grace()
        self.counted_bytes_and_messages_are_the_queued_ones()

    def peer_gets_messages_in_queue_order(self) -> None:
        names = written(*self.stage.transport.writes[self.checked_writes :])
        self.checked_writes = len(self.stage.transport.writes)
        assert names == [one.name for one in self.oracle.waiting[: len(names)]]
        del self.oracle.waiting[: len(names)]

    def messages_wait_only_for_the_end_of_the_iteration(self) -> None:
        clear = self.is_open and not self.stage.transport.is_writing_paused and not self.oracle.waiting
        assert self.stage.is_clear() == clear
        if self.is_open and not self.stage.transport.is_writing_paused:
            assert bool(self.stage.callbacks) or not self.oracle.waiting

    def close_frame_is_sent_after_the_queue_or_the_grace(self) -> None:
        transport, now = self.stage.transport, self.stage.clock.monotonic()
        assert self.stage.closes == ([self.close_code] if self.close_code is not None else []), "the first close counts"
        if self.close_code is None or self.is_lost:
            return
        if not transport.is_writing_paused or now >= self.grace_ends_at:
            assert transport.closed == [(self.close_code.code, "why")]
        if transport.closed and self.close_code is not CloseCode.SLOW_CONSUMER and now < self.grace_ends_at:
            assert not self.oracle.waiting, "the queue is written first"

    def counted_bytes_and_messages_are_the_queued_ones(self) -> None:
        queued = self.stage.transport.is_writing_paused and not self.is_lost and not self.stage.transport.closed
        count = len(self.oracle.waiting) if queued else 0
        messages, used = self.stage.held()
        assert messages == self.stage.connection.queued_messages == count
        assert (used > 0) == (count > 0)

    def teardown(self) -> None:
        if hasattr(self, "stage"):
            self.stage.lose()
            assert self.stage.held() == (0, 0)
            assert self.stage.clock.pending == 0


ConnectionMachine.TestCase.settings = settings(max_examples=examples(40), stateful_step_count=40, deadline=None)
TestConnectionMachine = ConnectionMachine.TestCase


# --- close ------------------------------------------------------------------------------------------------------------


def slow(stage: Stage, *names: str) -> None:
    """Makes the peer stop reading, with these events queued."""
    stage.transport.takes = 1
    stage.connection.deliver(stage.batch(event("0")))
    for name in names:
        assert stage.connection.deliver(stage.batch(event(name)))


def test_close_is_sent_after_the_outbox(stage: Stage) -> None:
    slow(stage, "1", "2")
    stage.connection.reply(Pong("3"))
    stage.connection.close(CloseCode.RESTART, "the node restarts")
    assert stage.closes == [CloseCode.RESTART], "deliveries end at once"
    stage.clock.advance(LIMITS.close_grace * 0.9)
    assert stage.transport.closed == []
    stage.transport.reads()
    assert written(*stage.transport.writes) == ["0", "1", "2", "3"]
    assert stage.transport.closed == [(1012, "the node restarts")]
    assert stage.clock.pending == 0


def test_close_is_sent_after_the_grace_and_drops_the_outbox(stage: Stage) -> None:
    slow(stage, "1", "2")
    stage.connection.close(CloseCode.RESTART, "the node restarts")
    stage.clock.advance(LIMITS.close_grace)
    assert stage.transport.closed == [(1012, "the node restarts")]
    assert stage.held() == (0, 0), "the outbox is dropped"
    stage.transport.reads()
    assert written(*stage.transport.writes) == ["0"]


def test_slow_consumer_is_closed_at_once(stage: Stage) -> None:
    slow(stage, *"12345")
    assert not stage.connection.deliver(stage.batch(event("6")))
    stage.connection.close(CloseCode.SLOW_CONSUMER, "too slow")
    assert stage.transport.closed == [(4450, "too slow")]
    assert stage.held() == (0, 0)
    stage.transport.reads()
    assert written(*stage.transport.writes) == ["0"]


def test_replies_are_written_before_the_close(stage: Stage) -> None:
    stage.connection.reply(Pong("1"))
    stage.connection.close(CloseCode.RATE_LIMITED, "enough")
    assert written(*stage.transport.writes) == ["1"]
    assert stage.transport.closed == [(4429, "enough")]
    stage.end_iteration()


def test_close_waits_for_replies_that_pause_the_peer(stage: Stage) -> None:
    stage.connection.reply(Pong("1"))
    stage.transport.takes = 1
    stage.connection.close(CloseCode.RESTART, "why")
    assert written(*stage.transport.writes) == ["1"]
    assert stage.transport.closed == []
    stage.transport.reads()
    assert stage.transport.closed == [(1012, "why")]


@pytest.mark.parametrize("state", ["clear", "replies", "slow", "closing", "closed"])
def test_lost_connection_writes_nothing(stage: Stage, state: str) -> None:
    connection = stage.connection
    if state == "replies":
        connection.reply(Pong("r"))
    elif state != "clear":
        slow(stage, "1", "2")
    if state in ("closing", "closed"):
        connection.close(CloseCode.RESTART if state == "closing" else CloseCode.SLOW_CONSUMER, "why")
    before = list(stage.transport.writes)
    stage.lose()
    assert connection.deliver(stage.batch(event("late")))
    assert connection.send([event("late")])
    connection.reply(Pong("late"))
    connection.flush()
    stage.end_iteration()
    stage.transport.reads()
    connection.pause_writing()
    connection.resume_writing()
    stage.clock.advance(10)
    connection.close(CloseCode.GOING_AWAY, "late")
    assert not stage.is_clear()
    assert stage.transport.writes == before
    assert stage.held() == (0, 0)
    assert (connection.queued_messages, stage.clock.pending) == (0, 0)


def test_failing_a_lost_connection_writes_nothing(stage: Stage) -> None:
    """Once it wrote an empty part, for which a closed transport raises. Then a faulty command never ended its session."""
    stage.lose()
    stage.transport.write = lambda data: None  # as the WebSocket does
    stage.connection.fail()
    assert stage.transport.writes == []


# --- waiting for the peer ---------------------------------------------------------------------------------------------


async def is_waiting(work: asyncio.Task[None]) -> bool:
    for _ in range(3):
        await asyncio.sleep(0)
    return not work.done()


async def closes(work: asyncio.Task[None]) -> None:
    async with asyncio.timeout(DEADLINE):
        await work


UNBLOCKS = {
    "it reads": lambda stage: stage.transport.reads(),
    "it is lost": lambda stage: stage.lose(),
    "it is closed": lambda stage: stage.connection.close(CloseCode.RESTART, "why"),
}


@pytest.mark.parametrize("how", UNBLOCKS)
async def test_wait_writable_returns_when(stage: Stage, how: str) -> None:
    slow(stage)
    for number in range(LIMITS.messages):
        stage.connection.reply(Pong(str(number)))
    assert stage.is_writable()
    await stage.connection.wait_writable()
    stage.connection.reply(Pong("more"))
    assert not stage.is_writable()
    work = asyncio.create_task(stage.connection.wait_writable())
    assert await is_waiting(work)
    UNBLOCKS[how](stage)
    await closes(work)


async def test_wait_writable_returns_when_the_peer_has_read_a_part(stage: Stage) -> None:
    slow(stage)
    for number in range(LIMITS.messages + 1):
        stage.connection.reply(Pong(str(number)))
    work = asyncio.create_task(stage.connection.wait_writable())
    written_task = asyncio.create_task(stage.connection.wait_written())
    assert await is_waiting(work)
    stage.transport.reads(takes=1)
    await closes(work)
    assert stage.connection.queued_messages == LIMITS.messages + 1 - BATCH
    assert await is_waiting(written_task)
    stage.transport.reads()
    await closes(written_task)


@pytest.mark.parametrize("how", UNBLOCKS)
async def test_wait_written_returns_when(stage: Stage, how: str) -> None:
    await closes(asyncio.create_task(stage.connection.wait_written()))
    slow(stage, "1")
    work = asyncio.create_task(stage.connection.wait_written())
    assert await is_waiting(work)
    UNBLOCKS[how](stage)
    await closes(work)


def test_paused_since_is_set_while_the_peer_does_not_read(stage: Stage) -> None:
    assert stage.paused_since() is None
    slow(stage)
    assert stage.paused_since() == stage.clock.monotonic()
    stage.clock.advance(3)
    assert stage.paused_since() == stage.clock.monotonic() - 3
    stage.transport.reads()
    assert stage.paused_since() is None


class TestDescriptor:
    """The descriptor for a batch sender: valid while nothing is queued, and never after the connection is lost."""

    @pytest.fixture
    def stage(self) -> Stage:
        made = Stage()
        made.transport.fd = 7
        made.connection.fd = made.transport.fd
        return made

    def test_write_rest_writes_to_the_transport(self, stage: Stage) -> None:
        stage.connection.write_rest(b"rest")
        assert stage.transport.writes == [b"rest"]
        assert stage.connection.is_clear
        assert stage.connection.fd == 7

    def test_write_rest_that_pauses_the_peer_is_not_clear(self, stage: Stage) -> None:
        stage.transport.takes = 1
        stage.connection.write_rest(b"rest")
        assert not stage.connection.is_clear

    def test_write_rest_to_an_ended_transport_clears_the_descriptor(self, stage: Stage) -> None:
        """The rest of the frame is lost, so no other bytes may follow."""
        stage.transport.fd = -1
        stage.connection.write_rest(b"rest")
        assert stage.connection.fd == -1

    def test_connection_lost_clears_the_descriptor(self, stage: Stage) -> None:
        stage.connection.connection_lost()
        assert stage.connection.fd == -1
        assert not stage.connection.is_clear


def test_large_reply_above_the_budget_is_refused_and_earlier_replies_are_sent() -> None:
    stage = Stage(budget=ByteBudget(10_000))
    stage.connection.reply(Pong("1" * 3_000))
    with pytest.raises(ServiceError) as refused:
        stage.connection.reply(Pong("x" * 12_000))
    assert refused.value.code is ErrorCode.OVERLOADED
    assert stage.metrics.limits.limit_hits.labels(limit="outbox_node").value == 1
    stage.end_iteration()
    assert written(*stage.transport.writes) == ["1" * 3_000]
    assert stage.held() == (0, 0)
    assert stage.is_clear()
