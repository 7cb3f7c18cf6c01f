"""The realtime core's Transport over WebSocket: one connection after its upgrade (RFC 6455), on asyncio's transport.

Used instead of aiohttp's for speed, memory and strictness: docs/adr/0016-own-transport.md.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from service.core.clock import Clock, Timer
from service.core.token_bucket import TokenBucket
from service.protocol.close import CloseCode
from service.protocol.framing import BINARY, CLOSE, PING, PING_FRAME, PONG, TEXT, close_frame, frame
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import Account
from service.realtime.connections.transport import Writer
from service.telemetry.metrics import Metrics
from service.web.http.half_close import half_close
from service.web.http.peer_transport import NULL_HANDLER, PeerTransport
from service.web.ws.frames import FrameReader, MessageTooBigError, ProtocolError, parse_close, parse_single_text
from service.web.ws.read_scheduler import ReadScheduler


class _State(IntEnum):
    OPEN = 0
    CLOSING = 1
    """This side has sent a close frame and waits for the peer's."""
    FINISHED = 2
    """No frames are read or sent any more; waits for the end of the TCP connection."""
    LOST = 3
    """The TCP connection has ended, and no bytes are counted for the peer."""


_OPEN = _State.OPEN
"""A name of the module is read faster than a member of an Enum."""
MAX_LATE_BYTES = 8_192
"""Bytes that a peer may send after our close frame: messages in flight, and its own close frame. The rest of an
unfinished frame does not count. Above this, the connection is cut."""
SMALL_FRAGMENT_COST = 1 / 16
"""Tokens of the control frame rate that a small fragment costs. Every message may end with an empty fragment, and an
occasional message may have MAX_FRAGMENTS small ones."""


@dataclass(frozen=True, slots=True)
class WebSocketContext:
    """Dependencies shared by all WebSockets of a service."""

    bounds: Bounds
    clock: Clock
    metrics: Metrics
    read_scheduler: ReadScheduler


class _End:
    """What a WebSocket knows of its end."""

    __slots__ = ("close_code", "late_bytes_left", "timer")

    def __init__(self) -> None:
        self.close_code = CloseCode.ABNORMAL.code
        self.late_bytes_left = MAX_LATE_BYTES
        """Bytes that the peer may still send after the close frame."""
        self.timer: Timer | None = None
        """Aborts the connection if closing takes too long."""


class WebSocket(PeerTransport):
    """Implements Transport. Answers pings itself; closes the connection if control frames or small fragments exceed the
    rate of messages."""

    __slots__ = (
        "_context",
        "_control_bucket",
        "_end",
        "_pending_pong",
        "_ping_sent_at",
        "_reader",
        "_state",
        "has_received",
        "is_reading_paused",
        "window_bits",
    )

    answers_pings = True
    has_receipts = False
    may_continue = False

    def __init__(
        self, context: WebSocketContext, transport: asyncio.Transport, window_bits: int = 0, *, account: Account
    ) -> None:
        super().__init__(transport, account)
        self._context = context
        self.window_bits = window_bits
        self.has_received = True
        self.is_reading_paused = False
        self._state = _State.OPEN
        self._reader: FrameReader | None = None
        """Exists only while a frame or message is unfinished, or while received frames wait to be read."""
        self._control_bucket: TokenBucket | None = None
        self._ping_sent_at: float | None = None
        """Monotonic time of the last ping; None once its pong has arrived."""
        self._pending_pong: bytes | None = None
        """The payload of the latest ping while writing is paused; its pong is sent later."""
        self._end: _End | None = None
        """Exists only once the connection closes."""

    # --- called by asyncio --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Makes the transport report any unsent byte. Called by the upgrade, because the connection existed before."""
        # With high=0, `is_writing_paused` is True as soon as the kernel has not taken all bytes; then messages wait in the
        # outbox.
        accepted: asyncio.Transport = transport  # type: ignore[assignment]  # uvloop's transports do not subclass asyncio's
        accepted.set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        """Passes messages to the handler, and answers control frames."""
        self.has_received = True
        if self._state is not _OPEN:
            self._read_after_close(data)
            return
        max_bytes = self._context.bounds.limits.message_bytes
        try:
            reader = self._reader
            if reader is None:
                text = parse_single_text(data, max_bytes)
                if text is not None:
                    self.handler.message_received(text)
                    return
                reader = self._reader = FrameReader(max_bytes, inflates=bool(self.window_bits))
            self._read_frames(reader, data)
        except ProtocolError as error:
            self._fail(error)

    def _read_frames(self, reader: FrameReader, data: bytes) -> None:
        """Reads a few frames, until the handler pauses reading.

        One read from the kernel can hold thousands of frames, and compressed ones can grow a thousandfold. The rest
        waits in the ReadScheduler.
        """
        read_scheduler = self._context.read_scheduler
        completed = False
        for opcode, payload in reader.feed(data, read_scheduler.max_frames):
            if opcode in (TEXT, BINARY):
                completed = True
                self.handler.message_received(payload)
            else:
                self._handle_control(opcode, cast(bytes, payload))
            if self.is_reading_paused or self._state is not _State.OPEN:
                break
        if self._reader is not reader:  # the connection was failed or lost
            return
        if self._state is not _State.OPEN:
            self._read_after_close(b"")
            return
        if reader.small_fragments:
            fragments, reader.small_fragments = reader.small_fragments, 0
            if self._exceeds_control_rate(fragments * SMALL_FRAGMENT_COST):
                raise ProtocolError(CloseCode.RATE_LIMITED.code, "too many small fragments")
        # A delay while reading is paused is not the peer's fault.
        if completed or self.is_reading_paused or reader.is_idle:
            read_scheduler.stop_message_timeout(self)
        if reader.is_idle:
            self._reader = None
        elif not self.is_reading_paused:
            read_scheduler.start_message_timeout(self)
            if reader.may_have_more:
                self._schedule_read(reader)
        self._account_reader(reader)

    def _account_reader(self, reader: FrameReader) -> None:
        """Counts what the reader keeps. Raises ProtocolError if it has grown and the account has no capacity left."""
        kept = reader.held_bytes if self._reader is reader else 0
        change, reader.accounted_bytes = kept - reader.accounted_bytes, kept
        self.count_held(change)
        if change > 0 and not self.account.has_capacity():
            self._context.metrics.limits.limit_hits.labels(limit="outbox_node").inc()
            raise ProtocolError(CloseCode.OVERLOAD.code, "this node holds too many bytes; reconnect later")

    def _schedule_read(self, reader: FrameReader) -> None:
        if not reader.is_scheduled:
            reader.is_scheduled = True
            if not self._transport.is_closing():
                self._transport.pause_reading()
            self._context.read_scheduler.schedule(self)

    def read_next_frames(self) -> None:
        """Reads the frames that waited in the ReadScheduler, then resumes reading from the kernel."""
        reader = self._reader
        if reader is None:
            self._resume_transport()
            return
        reader.is_scheduled = False
        if self._state is not _State.OPEN:
            self._read_after_close(b"")
        elif not self.is_reading_paused:
            try:
                self._read_frames(reader, b"")
            except ProtocolError as error:
                self._fail(error)
        self._resume_transport()

    def _resume_transport(self) -> None:
        if self.is_reading_paused or self._transport.is_closing():
            return
        if self._reader is None or not self._reader.is_scheduled:
            self._transport.resume_reading()

    def message_timed_out(self) -> None:
        """Fails the connection: a message took too long to arrive."""
        deadline = self._context.bounds.deadlines.message
        self._fail(
            ProtocolError(CloseCode.DEADLINE.code, f"the rest of a message did not arrive within {deadline:g} s")
        )

    def _read_after_close(self, data: bytes) -> None:
        """Searches a few kB for the peer's close frame, and discards everything else."""
        reader, end = self._reader, self._start_end()
        if reader is not None and not reader.discards_messages:
            reader.discards_messages = True
            self._context.read_scheduler.stop_message_timeout(self)
            end.late_bytes_left += reader.missing_bytes or -reader.held_bytes
        end.late_bytes_left -= len(data)
        if end.late_bytes_left < 0:
            if not self._transport.is_closing():
                self._context.metrics.limits.limit_hits.labels(limit="late_bytes").inc()
            self._transport.abort()
        elif self._state is _State.CLOSING:
            if reader is None:
                reader = self._reader = FrameReader(
                    self._context.bounds.limits.message_bytes, inflates=bool(self.window_bits)
                )
                reader.discards_messages = True
            try:
                for opcode, payload in reader.feed(data):
                    if opcode == CLOSE:
                        self._handle_close(cast(bytes, payload))
                        return
                self._account_reader(reader)
            except ProtocolError as error:
                self._fail(error)

    # --- the end ------------------------------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """True once the TCP connection has ended."""
        return self._state is _State.LOST

    def eof_received(self) -> bool:
        """Handles a peer that closes its sending half without a close frame.

        Finishes and answers a command in progress within `outbox.close_grace`. If there is none, the transport closes.
        """
        if self._state is not _State.OPEN or not self.handler.eof_received():
            return False
        self._start_close_timer()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the session and releases the held bytes."""
        if self._end is not None and self._end.timer is not None:
            self._end.timer.cancel()
        self._finish()
        self._release_held()
        self._state = _State.LOST

    def resume_writing(self) -> None:
        """Reports to the handler that all bytes are sent."""
        # A failed write here would make asyncio's closing transport call connection_lost twice.
        if self._transport.is_closing():
            return
        self.is_writing_paused = False
        self.count_unsent()
        pong, self._pending_pong = self._pending_pong, None
        if pong is not None and self._state is _State.OPEN:
            self.writer.write(frame(PONG, pong))
        if not self.is_writing_paused:
            self.handler.resume_writing()

    # --- control frames -----------------------------------------------------------------------------------------------

    def _handle_control(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self._handle_close(payload)
        elif self._state is _State.OPEN:
            if opcode == PONG and self._ping_sent_at is not None:
                context, sent_at, self._ping_sent_at = self._context, self._ping_sent_at, None
                context.metrics.connections.ping_seconds.observe(max(0.0, context.clock.monotonic() - sent_at))
            elif self._exceeds_control_rate():
                # Raises instead of closing: the handler would not learn of a close, and would write after it.
                raise ProtocolError(CloseCode.RATE_LIMITED.code, "too many control frames")
            if opcode == PING and self.is_writing_paused:
                self._pending_pong = payload  # RFC 6455 §5.5.3: only the latest ping needs a pong
            elif opcode == PING:
                self.writer.write(frame(PONG, payload))

    def _exceeds_control_rate(self, cost: float = 1.0) -> bool:
        clock = self._context.clock
        if self._control_bucket is None:
            self._control_bucket = TokenBucket(self._context.bounds.limits.connection_rate, clock.monotonic())
        if self._control_bucket.acquire(clock.monotonic(), cost) == 0:
            return False
        self._context.metrics.limits.rate_limited.labels(scope="connection").inc()
        return True

    def _handle_close(self, payload: bytes) -> None:
        code, _ = parse_close(payload)
        if self._state is _State.OPEN:
            self._start_end().close_code = CloseCode.NORMAL.code if code is None else code
            self.writer.write(close_frame(code))
        self._finish()
        self._start_close_timer()
        self._transport.close()

    def _fail(self, error: ProtocolError) -> None:
        """Fails the connection (RFC 6455 §7.1.7).

        Bytes that the peer still sends are read and discarded: unread bytes would make the kernel reset the connection,
        and the close frame would be lost.
        """
        if isinstance(error, MessageTooBigError):
            self._context.metrics.limits.limit_hits.labels(limit="message_bytes").inc()
        if self._reader is not None:  # the rest of the current frame is still on its way
            self._start_end().late_bytes_left += min(
                self._reader.missing_bytes, self._context.bounds.limits.message_bytes
            )
        if self._state is _State.OPEN:
            self._start_end().close_code = error.code
            self.writer.write(close_frame(error.code, error.reason))
        self._finish()
        self._start_close_timer()
        self.resume_reading()
        half_close(self._transport)

    # --- called by the realtime core ----------------------------------------------------------------------------------

    @property
    def writer(self) -> Writer:
        """asyncio's transport; ignores all frames once the connection is finished."""
        return self._transport if self._state < _State.FINISHED else _DISCARDS

    def write(self, frames: bytes, /) -> None:
        """Writes frames; ignores them once the connection is finished."""
        self.writer.write(frames)

    def pause_reading(self) -> None:
        """Stops reading until `resume_reading`."""
        self.is_reading_paused = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Continues reading; frames that waited are read in a later loop iteration."""
        if not self.is_reading_paused:
            return
        self.is_reading_paused = False
        self.has_received = True  # the peer may have sent something while reading was paused
        if self._reader is not None:  # not read now: the caller is not ready for messages yet
            self._schedule_read(self._reader)
        else:
            self._resume_transport()

    def ping(self) -> None:
        """Sends a ping."""
        if self._state is _State.OPEN:
            self._ping_sent_at = self._context.clock.monotonic()
            self.writer.write(PING_FRAME)

    def close(self, code: int, reason: str) -> None:
        """Sends a close frame, and aborts after `outbox.close_grace` without an answer."""
        if self._state is not _State.OPEN:
            return
        self._state = _State.CLOSING
        self._start_end().close_code = code
        self.writer.write(close_frame(code, reason))
        self._start_close_timer()
        self.resume_reading()  # otherwise the peer's close frame would not be read

    def close_when_written(self) -> None:
        """Closes the transport once all bytes are sent."""
        self._transport.close()

    def abort(self) -> None:
        """Aborts the transport."""
        self._transport.abort()

    @property
    def fd(self) -> int:
        """The descriptor for a BatchSender; -1 if the connection is closing, uses TLS, or has unsent bytes of a response."""
        transport = self._transport
        if self._state is not _State.OPEN or transport.is_closing() or transport.get_write_buffer_size():
            return -1
        if transport.get_extra_info("sslcontext") is not None:
            return -1
        socket = transport.get_extra_info("socket")
        return -1 if socket is None else cast(int, socket.fileno())

    @property
    def close_code(self) -> int:
        """The code of the first close frame, from either side; 1006 without one."""
        return CloseCode.ABNORMAL.code if self._end is None else self._end.close_code

    def _start_end(self) -> _End:
        if self._end is None:
            self._end = _End()
        return self._end

    def _start_close_timer(self) -> None:
        end = self._start_end()
        if end.timer is None:
            end.timer = self._context.clock.call_later(self._context.bounds.outbox.close_grace, self._transport.abort)

    def _finish(self) -> None:
        if self._state is not _State.FINISHED:
            self._state = _State.FINISHED
            reader, self._reader = self._reader, None
            if reader is not None:
                self._context.read_scheduler.stop_message_timeout(self)
                self._account_reader(reader)
            # Breaks the reference cycle: the connection's objects are freed at once, not by the garbage collector.
            handler, self.handler = self.handler, NULL_HANDLER
            handler.connection_lost()


class _DiscardingWriter:
    """Takes the place of the writer once the connection is finished."""

    def write(self, frames: bytes, /) -> None:
        """Ignores the frames."""


_DISCARDS = _DiscardingWriter()
