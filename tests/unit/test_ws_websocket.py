"""WebSocket between asyncio's transport and its handler: what it answers itself, and how it closes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.limits import Limits, OutboxLimits, Rate
from service.protocol.framing import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import ByteBudget
from service.telemetry.metrics import Metrics
from service.web.ws.read_scheduler import ReadScheduler
from service.web.ws.websocket import WebSocket, WebSocketContext
from tests.support.clock import FakeClock
from tests.support.examples import examples
from tests.support.raw import frame as sent

GRACE = 1.0
BURST = 20
BOUNDS = Bounds(
    limits=Limits(message_bytes=1024, connection_rate=Rate(per_second=1, burst=BURST)),
    outbox=OutboxLimits(close_grace=GRACE),
)


class Descriptor:
    """Stands for asyncio's wrapper of a transport's socket."""

    def fileno(self) -> int:
        return 7


class FakeTransport:
    """A transport whose peer takes a given number of writes."""

    def __init__(self) -> None:
        self.socket: WebSocket | None = None
        self.written: list[bytes] = []
        self.takes: int | None = None
        self.did: list[str] = []
        self.waiting = 0
        self.extra: dict[str, object] = {"socket": Descriptor()}

    def write(self, data: bytes) -> None:
        assert "abort" not in self.did
        self.written.append(data)
        if self.takes is not None:
            self.takes -= 1
            if self.takes == 0:
                assert self.socket is not None
                self.socket.pause_writing()

    def drains(self) -> None:
        self.takes = None
        assert self.socket is not None
        self.socket.resume_writing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0, "paused means that the kernel has not taken all"

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def get_extra_info(self, name: str) -> object:
        return self.extra.get(name)

    def is_closing(self) -> bool:
        return "close" in self.did or "abort" in self.did

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.did.append("eof")

    def close(self) -> None:
        self.did.append("close")

    def abort(self) -> None:
        self.did.append("abort")

    @property
    def is_paused(self) -> bool:
        return [did for did in self.did if did in ("pause", "resume")][-1:] == ["pause"]

    def pause_reading(self) -> None:
        self.did.append("pause")

    def resume_reading(self) -> None:
        self.did.append("resume")


@dataclass
class RecordingHandler:
    """A MessageHandler that records everything."""

    told: list[str | bytes] = field(default_factory=list)

    def message_received(self, message: str | bytes) -> None:
        self.told.append(message)

    def pause_writing(self) -> None:
        self.told.append("(paused)")

    def resume_writing(self) -> None:
        self.told.append("(resumed)")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self) -> None:
        self.told.append("(lost)")


class Stage:
    """A WebSocket, its transport and its handler."""

    def __init__(self, bounds: Bounds = BOUNDS, *, node: Stage | None = None) -> None:
        """`node`: a stage whose context this one shares."""
        self.clock = FakeClock()
        self.metrics = Metrics()
        self.wire = FakeTransport()
        transport = cast(asyncio.Transport, self.wire)
        self.reads = ReadScheduler(self.clock, self.metrics, bounds.deadlines.message)
        self.budget = ByteBudget(bounds.outbox.node_bytes)
        self.context: WebSocketContext = (
            node.context if node else WebSocketContext(bounds, self.clock, self.metrics, self.reads)
        )
        self.socket = self.wire.socket = WebSocket(self.context, transport, account=self.budget.account("t"))
        self.handler = self.socket.handler = RecordingHandler()
        self.socket.connection_made(transport)

    def hear(self, *data: bytes) -> None:
        for part in data:
            self.socket.data_received(part)

    async def hear_while_reading(self, parts: Iterable[bytes]) -> None:
        """Passes each part as asyncio does: only while the transport reads. Returns when nothing waits to be read."""
        for part in parts:
            self.hear(part)
            while self.wire.is_paused:  # noqa: ASYNC110  # the ReadScheduler reads in the next iteration of the loop
                await asyncio.sleep(0)


@pytest.fixture
def stage() -> Stage:
    return Stage()


@settings(max_examples=examples(40), deadline=None)
@given(st.data())
def test_messages_and_pings_with_any_segmentation_are_all_handled(data: st.DataObject) -> None:
    """parse_single_text and FrameReader alternate; nothing is lost between them. Many frames wait in the ReadScheduler."""
    stage = Stage(Bounds(limits=Limits(connection_rate=Rate(per_second=1e9, burst=10**9))))
    wire = b""
    told: list[str | bytes] = []
    answered: list[bytes] = []
    for number in range(data.draw(st.integers(0, 6))):
        text, name = f"{number} é", str(number).encode()
        match data.draw(st.sampled_from(["whole", "binary", "ping", "pong", "in fragments"])):
            case "whole":
                wire += sent(TEXT, text.encode())
                told.append(text)
            case "binary":
                wire += sent(BINARY, name)
                told.append(name)
            case "ping":
                wire += sent(PING, name)
                answered.append(frame(PONG, name))
            case "pong":
                wire += sent(PONG, name)
            case _:
                wire += (
                    sent(TEXT, text.encode()[:3], fin=False) + sent(PING, name) + sent(CONTINUATION, text.encode()[3:])
                )
                answered.append(frame(PONG, name))
                told.append(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    parts = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True) if end > start]
    asyncio.run(stage.hear_while_reading(parts))
    assert stage.handler.told == told
    assert stage.wire.written == answered
    assert stage.socket.has_received


class TestControlFrames:
    def test_ping_while_writing_is_paused_answers_only_the_latest(self, stage: Stage) -> None:
        stage.wire.takes = 1
        stage.hear(sent(PING, b"1"), sent(PING, b"2"), sent(PING, b"3"))
        assert stage.wire.written == [frame(PONG, b"1")]
        stage.wire.drains()
        assert stage.wire.written == [frame(PONG, b"1"), frame(PONG, b"3")], "RFC 6455 §5.5.3"
        assert stage.handler.told == ["(paused)", "(resumed)"]

    def test_pong_that_pauses_writing_again_suppresses_the_resume(self, stage: Stage) -> None:
        stage.wire.takes = 1
        stage.hear(sent(PING, b"1"), sent(PING, b"2"))
        stage.wire.takes = 1
        stage.socket.resume_writing()
        assert stage.handler.told == ["(paused)", "(paused)"]
        assert stage.socket.is_writing_paused
        stage.wire.drains()
        assert stage.handler.told == ["(paused)", "(paused)", "(resumed)"]

    def test_resume_of_a_closing_transport_writes_nothing(self, stage: Stage) -> None:
        """asyncio's transport resumes the protocol while it closes; a failing write would then end it twice."""
        stage.wire.takes = 1
        stage.hear(sent(PING, b"1"), sent(PING, b"2"))
        stage.wire.close()
        stage.wire.drains()
        assert stage.wire.written == [frame(PONG, b"1")]
        assert stage.handler.told == ["(paused)"]
        stage.socket.connection_lost(None)
        assert stage.handler.told == ["(paused)", "(lost)"]

    @pytest.mark.parametrize("opcode", [PING, PONG])
    def test_flood_of_control_frames_closes_without_later_writes(self, stage: Stage, opcode: int) -> None:
        stage.hear(*[sent(opcode)] * BURST)
        assert stage.handler.told == []
        stage.hear(sent(opcode) + sent(TEXT, b"behind"))
        assert stage.wire.written[-1] == close_frame(4429, "too many control frames")
        assert stage.handler.told == ["(lost)"], "else the core would go on writing"
        assert stage.socket.close_code == 4429
        assert stage.metrics.limits.rate_limited.labels(scope="connection").value == 1
        before = len(stage.wire.written)
        stage.socket.write(b"late")
        stage.socket.ping()
        stage.hear(sent(opcode))
        assert len(stage.wire.written) == before

    def test_pong_is_timed_once_per_ping(self, stage: Stage) -> None:
        stage.hear(sent(PONG))
        stage.socket.ping()
        stage.clock.advance(0.25)
        stage.hear(sent(PONG) + sent(PONG))
        [family] = stage.metrics.connections.ping_seconds.collect()
        figures = {sample.name.rpartition("_")[2]: sample.value for sample in family.samples}
        assert (figures["count"], figures["sum"]) == (1, 0.25), "what was not asked for is no answer"

    def test_control_frames_at_the_rate_are_accepted_for_ever(self, stage: Stage) -> None:
        for _ in range(5 * BURST):
            stage.hear(sent(PING))
            stage.clock.advance(1)
        assert stage.wire.written == [frame(PONG, b"")] * 5 * BURST


class TestClose:
    @pytest.mark.parametrize(
        ("payload", "answer", "code"),
        [
            (b"", close_frame(None), 1000),
            ((1001).to_bytes(2, "big") + b"bye", close_frame(1001), 1001),
            ((4000).to_bytes(2, "big"), close_frame(4000), 4000),
        ],
    )
    def test_close_frame_is_answered_with_its_code(
        self, stage: Stage, payload: bytes, answer: bytes, code: int
    ) -> None:
        stage.hear(sent(CLOSE, payload) + sent(TEXT, b"behind") + sent(PING))
        assert stage.wire.written == [answer]
        assert stage.handler.told == ["(lost)"]
        assert stage.socket.close_code == code
        assert stage.wire.did == ["close"]

    def test_close_waits_for_the_answer_and_reads_no_messages(self, stage: Stage) -> None:
        stage.socket.pause_reading()
        stage.socket.close(1012, "restart")
        stage.socket.close(1001, "only the first counts")
        assert stage.wire.written == [close_frame(1012, "restart")]
        assert stage.wire.did == ["pause", "resume"], "or the answer would never be heard"
        stage.hear(sent(TEXT, b"whole"), sent(TEXT, b"a", fin=False), sent(PING), sent(CONTINUATION, b"b"))
        assert stage.handler.told == []
        stage.hear(sent(CLOSE, (1000).to_bytes(2, "big")))
        assert stage.wire.written == [close_frame(1012, "restart")]
        assert (stage.handler.told, stage.socket.close_code) == (["(lost)"], 1012)
        assert stage.wire.did[-1] == "close"

    def test_violation_while_closing_sends_no_second_close(self, stage: Stage) -> None:
        stage.socket.close(1012, "restart")
        stage.hear(sent(TEXT, b"x", masked=False))
        assert stage.wire.written == [close_frame(1012, "restart")]
        assert (stage.handler.told, stage.socket.close_code) == (["(lost)"], 1012)

    def test_violation_sends_its_reason_and_reads_until_the_peer_closes(self, stage: Stage) -> None:
        """Unread bytes would make the kernel reset the connection, and the close frame would be lost."""
        stage.socket.pause_reading()  # as the core does when much waits
        stage.hear(sent(TEXT, b"x" * 1025))
        assert stage.wire.written == [close_frame(1009, "a message has at most 1024 bytes")]
        assert stage.wire.did == ["pause", "resume", "eof"]
        assert stage.metrics.limits.limit_hits.labels(limit="message_bytes").value == 1
        stage.hear(sent(TEXT, b"behind"), b"\xff" * 100)
        assert stage.handler.told == ["(lost)"]
        stage.socket.connection_lost(None)
        assert stage.handler.told == ["(lost)"], "once"
        assert stage.clock.pending == 0

    @pytest.mark.parametrize("how", ["close", "its close", "fault"])
    def test_peer_that_does_not_close_is_aborted_after_the_grace(self, stage: Stage, how: str) -> None:
        if how == "close":
            stage.socket.close(1012, "restart")
        else:
            stage.hear(sent(CLOSE) if how == "its close" else sent(3))
        stage.clock.advance(GRACE * 0.9)
        assert "abort" not in stage.wire.did
        stage.clock.advance(GRACE * 0.2)
        assert stage.wire.did[-1] == "abort"
        stage.socket.connection_lost(None)
        assert stage.handler.told == ["(lost)"]
        assert stage.clock.pending == 0

    def test_lost_connection_has_close_code_1006(self, stage: Stage) -> None:
        stage.hear(sent(TEXT, b"half")[:5])
        stage.socket.connection_lost(ConnectionResetError())
        assert (stage.handler.told, stage.socket.close_code, stage.wire.written) == (["(lost)"], 1006, [])


class TestDescriptor:
    """A BatchSender may write to the descriptor only if that equals a write to the transport."""

    def test_fd_of_an_open_connection_is_the_socket_s(self, stage: Stage) -> None:
        assert stage.socket.fd == 7

    def test_fd_while_an_earlier_response_is_unsent_is_none(self, stage: Stage) -> None:
        """The connection of a large response was upgraded: asyncio has told aiohttp that it is paused, and not us."""
        stage.wire.waiting = 1
        assert not stage.socket.is_writing_paused
        assert stage.socket.fd == -1

    @pytest.mark.parametrize("extra", [{"socket": Descriptor(), "sslcontext": object()}, {}])
    def test_fd_on_tls_or_without_a_socket_is_none(self, stage: Stage, extra: dict[str, object]) -> None:
        stage.wire.extra = extra
        assert stage.socket.fd == -1

    @pytest.mark.parametrize("end", ["close", "abort", "lost", "their close", "fault"])
    def test_fd_of_a_closing_connection_is_none(self, stage: Stage, end: str) -> None:
        match end:
            case "close":
                stage.socket.close(1000, "")
            case "abort":
                stage.socket.abort()
            case "lost":
                stage.socket.connection_lost(None)
            case "their close":
                stage.hear(sent(CLOSE, b"\x03\xe8"))
            case _:
                stage.hear(b"\xff\xff")
        assert stage.socket.fd == -1
