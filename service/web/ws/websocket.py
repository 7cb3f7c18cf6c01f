"""The Socket of the realtime core: one connection after its upgrade, as RFC 6455 has it, on asyncio's transport.

Ours and not aiohttp's, for speed, memory and rigour: docs/adr/0016-own-transport.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

from service.core.clock import Clock, Timer
from service.core.token_bucket import TokenBucket
from service.protocol.close import CloseCode
from service.protocol.framing import BINARY, CLOSE, PING, PING_FRAME, PONG, TEXT, close_frame, frame
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import Account
from service.realtime.connections.transport import MessageHandler
from service.telemetry.metrics import Metrics
from service.web.http.half_close import end_sending
from service.web.ws.frames import Fault, FrameReader, TooBig, closing, whole_text
from service.web.ws.read_scheduler import ReadScheduler


class _State(IntEnum):
    OPEN = 0
    CLOSING = 1
    """This side has said goodbye and waits for the peer's."""
    OVER = 2
    """Nothing is understood or sent any more; TCP's end is awaited."""
    LOST = 3
    """TCP has ended: nothing is held for the peer any more."""


LATE_BYTES = 8_192
"""Bytes that a peer may send after the close frame has gone out, beside the rest of a frame that it had begun: what was on its
way, and its answer. Then the connection is cut. They are at most 1 365 frames."""
FRAGMENT_COST = 1 / 16
"""What a fragment below FRAGMENT bytes takes from the rate of control frames: a message of MAX_FRAGMENTS of them passes now and
then, and a client may end every message with an empty one."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all WebSockets of a service share."""

    bounds: Bounds
    clock: Clock
    metrics: Metrics
    reads: ReadScheduler


class WebSocket(asyncio.Protocol):
    """Implements realtime.socket.Socket. Answers pings itself; a flood of control frames or of small fragments, above the rate of
    messages, ends it."""

    __slots__ = (
        "_asked_at",
        "_close_code",
        "_control",
        "_held",
        "_late",
        "_limit",
        "_pong",
        "_reader",
        "_state",
        "_terms",
        "_transport",
        "_unsent",
        "account",
        "handler",
        "heard",
        "is_held",
        "is_paused",
        "window_bits",
        "write",
    )

    handler: MessageHandler
    """To be set before anything else is called."""

    def __init__(self, terms: Terms, transport: asyncio.Transport, window_bits: int = 0, *, account: Account) -> None:
        self._terms = terms
        self.account = account
        self._transport = transport
        self.write: Callable[[bytes], None] = transport.write
        self.window_bits = window_bits
        self.heard = True
        self.is_held = False
        self.is_paused = False
        self._state = _State.OPEN
        self._reader: FrameReader | None = None
        """Only while part of a frame or of a message has come, or what has come is held back."""
        self._control: TokenBucket | None = None
        self._asked_at: float | None = None
        """Since when a pong is owed."""
        self._pong: bytes | None = None
        """The payload of the last ping, which could not be answered yet."""
        self._limit: Timer | None = None
        """Cuts the connection if its end takes too long."""
        self._close_code = CloseCode.ABNORMAL.code
        self._held = 0
        """Bytes that the account counts, those unsent among them."""
        self._unsent = 0
        self._late = LATE_BYTES
        """Bytes that may still come after the close frame."""

    # --- asyncio's side -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. Called by hand, as the connection was there before."""
        # Each write is tried at once, and `is_paused` means that the kernel has not taken all: what waits, waits in the outbox.
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.heard = True
        if self._state is not _State.OPEN:
            self._read_late(data)
            return
        most = self._terms.bounds.limits.message_bytes
        try:
            reader = self._reader
            if reader is None:
                text = whole_text(data, most)
                if text is not None:
                    self.handler.received(text)
                    return
                reader = self._reader = FrameReader(most, inflates=bool(self.window_bits))
            self._read(reader, data)
        except Fault as fault:
            self._fail(fault)

    def _read(self, reader: FrameReader, data: bytes) -> None:
        """Takes a few frames, for as long as nobody holds them back: one read from the kernel can hold thousands, and deflated
        ones come to a thousand times their size. What is left waits for its turn (reading.py)."""
        reads = self._terms.reads
        completed = False
        for opcode, payload in reader.feed(data, reads.frames):
            if opcode in (TEXT, BINARY):
                completed = True
                self.handler.received(payload)
            else:
                self._take_control(opcode, cast(bytes, payload))
            if self.is_held or self._state is not _State.OPEN:
                break
        if self._reader is not reader:  # that was the end
            return
        if self._state is not _State.OPEN:
            self._read_late(b"")
            return
        if reader.small_fragments:
            fragments, reader.small_fragments = reader.small_fragments, 0
            if self._is_flood(fragments * FRAGMENT_COST):
                raise Fault(CloseCode.RATE_LIMITED.code, "too many small fragments")
        if completed or self.is_held or reader.is_idle:  # while it is held back, nobody waits for the peer
            reads.end_message(self)
        if reader.is_idle:
            self._reader = None
        elif not self.is_held:
            reads.begin_message(self)
            if reader.is_cut_short:
                self._wait_for_turn(reader)
        self._count(reader)

    def _count(self, reader: FrameReader) -> None:
        """Counts what a reader keeps. Raises Fault if that has grown, and is more than the node has left for the tenant."""
        kept = reader.held if self._reader is reader else 0
        change, reader.counted = kept - reader.counted, kept
        self.hold(change)
        if change > 0 and not self.account.has_capacity():
            self._terms.metrics.limits.limit_hits.labels(limit="outbox_node").inc()
            raise Fault(CloseCode.OVERLOAD.code, "this node holds too many bytes; come back")

    def _wait_for_turn(self, reader: FrameReader) -> None:
        if not reader.is_scheduled:
            reader.is_scheduled = True
            if not self._transport.is_closing():
                self._transport.pause_reading()
            self._terms.reads.schedule(self)

    def read_on(self) -> None:
        """See reading.Reader: takes what was held back, then what the kernel has."""
        reader = self._reader
        if reader is None:
            self._take_more()
            return
        reader.is_scheduled = False
        if self._state is not _State.OPEN:
            self._read_late(b"")
        elif not self.is_held:
            try:
                self._read(reader, b"")
            except Fault as fault:
                self._fail(fault)
        self._take_more()

    def _take_more(self) -> None:
        if self.is_held or self._transport.is_closing():
            return
        if self._reader is None or not self._reader.is_scheduled:
            self._transport.resume_reading()

    def message_timed_out(self) -> None:
        """See reading.Reader."""
        deadline = self._terms.bounds.deadlines.message
        self._fail(Fault(CloseCode.DEADLINE.code, f"the rest of a message did not come within {deadline:g} s"))

    def _read_late(self, data: bytes) -> None:
        """Looks for the peer's answer to the close frame in what still comes, for a few kB: there is nothing else to be had."""
        reader = self._reader
        if reader is not None and not reader.is_deaf:
            reader.is_deaf = True
            self._terms.reads.end_message(self)
            self._late += reader.missing or -reader.held
        self._late -= len(data)
        if self._late < 0:
            if not self._transport.is_closing():
                self._terms.metrics.limits.limit_hits.labels(limit="late_bytes").inc()
            self._transport.abort()
        elif self._state is _State.CLOSING:
            if reader is None:
                reader = self._reader = FrameReader(
                    self._terms.bounds.limits.message_bytes, inflates=bool(self.window_bits)
                )
                reader.is_deaf = True
            try:
                for opcode, payload in reader.feed(data):
                    if opcode == CLOSE:
                        self._take_close(cast(bytes, payload))
                        return
                self._count(reader)
            except Fault as fault:
                self._fail(fault)

    # --- what is held for the peer ------------------------------------------------------------------------------------

    def charge(self, account: Account) -> None:
        """See Socket."""
        self.account.add(-self._held)
        account.add(self._held)
        self.account = account

    def hold(self, size: int) -> None:
        """See Socket."""
        if size and self._state is not _State.LOST:
            self._held += size
            self.account.add(size)

    def count_unsent(self, at_least: int = 0) -> None:
        """See Socket. Never less than before: what has been sent of a write is freed with the rest."""
        unsent = max(self._unsent, at_least, self._transport.get_write_buffer_size()) if self.is_paused else 0
        change, self._unsent = unsent - self._unsent, unsent
        self.hold(change)

    def eof_received(self) -> bool:
        """See asyncio.Protocol. A peer that half-closes without a close frame is answered what is in hand, within
        `outbox.close_grace`; with nothing in hand the transport closes itself."""
        if self._state is not _State.OPEN or not self.handler.ended():
            return False
        self._end_within_grace()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._limit is not None:
            self._limit.cancel()
        self._finish()
        self.account.add(-self._held)
        self._held = 0
        self._state = _State.LOST

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.is_paused = True
        self.count_unsent()
        self.handler.paused()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        if self._transport.is_closing():  # were a write to fail from here now, asyncio's transport would end twice
            return
        self.is_paused = False
        self.count_unsent()
        pong, self._pong = self._pong, None
        if pong is not None and self._state is _State.OPEN:
            self.write(frame(PONG, pong))
        if not self.is_paused:
            self.handler.resumed()

    # --- frames that are no messages ----------------------------------------------------------------------------------

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self._take_close(payload)
        elif self._state is _State.OPEN:
            if opcode == PONG and self._asked_at is not None:
                terms, asked_at, self._asked_at = self._terms, self._asked_at, None
                terms.metrics.connections.ping_seconds.observe(max(0.0, terms.clock.monotonic() - asked_at))
            elif self._is_flood():
                # A fault, not a close: the core, which knows of no close, would go on writing behind it.
                raise Fault(CloseCode.RATE_LIMITED.code, "too many control frames")
            if opcode == PING and self.is_paused:
                self._pong = payload  # RFC 6455 §5.5.3: the most recent one is answered
            elif opcode == PING:
                self.write(frame(PONG, payload))

    def _is_flood(self, cost: float = 1.0) -> bool:
        clock = self._terms.clock
        if self._control is None:
            self._control = TokenBucket(self._terms.bounds.limits.connection_rate, clock.monotonic())
        if self._control.acquire(clock.monotonic(), cost) == 0:
            return False
        self._terms.metrics.limits.rate_limited.labels(scope="connection").inc()
        return True

    def _take_close(self, payload: bytes) -> None:
        code, _ = closing(payload)
        if self._state is _State.OPEN:
            self._close_code = CloseCode.NORMAL.code if code is None else code
            self.write(close_frame(code))
        self._finish()
        self._end_within_grace()
        self._transport.close()

    def _fail(self, fault: Fault) -> None:
        """RFC 6455 §7.1.7. What the peer still sends is dropped until it hangs up: bytes that nobody has read would make the
        kernel reset the connection, and the close frame would be lost with it."""
        if isinstance(fault, TooBig):
            self._terms.metrics.limits.limit_hits.labels(limit="message_bytes").inc()
        if self._reader is not None:  # the rest of the frame is on its way
            self._late += min(self._reader.missing, self._terms.bounds.limits.message_bytes)
        if self._state is _State.OPEN:
            self._close_code = fault.code
            self.write(close_frame(fault.code, fault.reason))
        self._finish()
        self._end_within_grace()
        self.resume_reading()
        end_sending(self._transport)

    # --- the core's side ----------------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """See Socket."""
        self.is_held = True
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See Socket."""
        if not self.is_held:
            return
        self.is_held = False
        self.heard = True  # what it has said meanwhile, nobody has listened to
        if self._reader is not None:  # not from here: whoever resumes is not ready for a message yet
            self._wait_for_turn(self._reader)
        else:
            self._take_more()

    def ping(self) -> None:
        """See Socket."""
        if self._state is _State.OPEN:
            self._asked_at = self._terms.clock.monotonic()
            self.write(PING_FRAME)

    def close(self, code: int, reason: str) -> None:
        """See Socket."""
        if self._state is not _State.OPEN:
            return
        self._state = _State.CLOSING
        self._close_code = code
        self.write(close_frame(code, reason))
        self._end_within_grace()
        self.resume_reading()  # or the peer's answer would never be heard

    def hang_up(self) -> None:
        """See Socket."""
        self._transport.close()

    def abort(self) -> None:
        """See Socket."""
        self._transport.abort()

    @property
    def fd(self) -> int:
        """See Socket. Also -1 on TLS, and while bytes wait that asyncio does not tell of: those of a response before this."""
        transport = self._transport
        if self._state is not _State.OPEN or transport.is_closing() or transport.get_write_buffer_size():
            return -1
        if transport.get_extra_info("sslcontext") is not None:
            return -1
        socket = transport.get_extra_info("socket")
        return -1 if socket is None else cast(int, socket.fileno())

    @property
    def close_code(self) -> int:
        """See Socket."""
        return self._close_code

    def _end_within_grace(self) -> None:
        if self._limit is None:
            self._limit = self._terms.clock.call_later(self._terms.bounds.outbox.close_grace, self._transport.abort)

    def _finish(self) -> None:
        if self._state is not _State.OVER:
            self._state = _State.OVER
            reader, self._reader = self._reader, None
            if reader is not None:
                self._terms.reads.end_message(self)
                self._count(reader)
            self.write = _nowhere
            # No circle is left: what was this connection's is freed at once, and not by the garbage collector.
            handler, self.handler = self.handler, _DEAF
            handler.lost()


class _Deaf:
    """The ear of a socket that is over."""

    def received(self, message: str | bytes) -> None:
        """See MessageHandler."""

    def paused(self) -> None:
        """See MessageHandler."""

    def resumed(self) -> None:
        """See MessageHandler."""

    def ended(self) -> bool:
        """See MessageHandler."""
        return False

    def lost(self) -> None:
        """See MessageHandler."""


_DEAF = _Deaf()


def _nowhere(data: bytes) -> None:
    """Where writes go that come too late."""
