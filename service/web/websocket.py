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
from service.core.limits import TokenBucket
from service.protocol.close import CloseCode
from service.protocol.framing import BINARY, CLOSE, PING, PING_FRAME, PONG, TEXT, close_frame, frame
from service.realtime.node import Bounds
from service.realtime.socket import Ear
from service.telemetry.metrics import Metrics
from service.web.frames import Fault, FrameReader, TooBig, closing, whole_text


class _State(IntEnum):
    OPEN = 0
    CLOSING = 1
    """This side has said goodbye and waits for the peer's."""
    OVER = 2
    """Nothing is understood or sent any more; TCP's end is awaited."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all WebSockets of a service share."""

    bounds: Bounds
    clock: Clock
    metrics: Metrics


class WebSocket(asyncio.Protocol):
    """Implements realtime.socket.Socket. Answers pings itself; a flood of control frames, above the rate of messages, ends it."""

    __slots__ = (
        "_asked_at",
        "_close_code",
        "_control",
        "_limit",
        "_pong",
        "_reader",
        "_state",
        "_terms",
        "_transport",
        "ear",
        "heard",
        "is_held",
        "is_paused",
        "window_bits",
        "write",
    )

    ear: Ear
    """To be set before anything else is called."""

    def __init__(self, terms: Terms, transport: asyncio.Transport, window_bits: int = 0) -> None:
        self._terms = terms
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

    # --- asyncio's side -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol. Called by hand, as the connection was there before."""
        # Each write is tried at once, and `is_paused` means that the kernel has not taken all: what waits, waits in the outbox.
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self.heard = True
        if self._state is _State.OVER:
            return
        most = self._terms.bounds.limits.message_bytes
        try:
            if self._reader is None:
                text = whole_text(data, most)
                if text is not None:
                    if self._state is _State.OPEN:
                        self.ear.received(text)
                    return
                self._reader = FrameReader(most, inflates=bool(self.window_bits))
                self._reader.is_deaf = self._state is not _State.OPEN
            self._read(self._reader, data)
        except Fault as fault:
            self._fail(fault)

    def _read(self, reader: FrameReader, data: bytes) -> None:
        """Takes frame by frame, for as long as nobody holds them back: one read from the kernel can hold thousands, and
        deflated ones come to a thousand times their size."""
        for opcode, payload in reader.feed(data):
            if opcode in (TEXT, BINARY):
                if self._state is _State.OPEN:
                    self.ear.received(payload)
            else:
                self._take_control(opcode, cast(bytes, payload))
            if self._reader is not reader or self.is_held:  # that was the end, or enough for now
                return
        if reader.is_idle:
            self._reader = None

    def _read_on(self) -> None:
        """Takes what was held back, then what the kernel has."""
        reader = self._reader
        if self.is_held or self._state is _State.OVER:
            return
        try:
            if reader is not None:
                self._read(reader, b"")
        except Fault as fault:
            self._fail(fault)
        self._take_more()

    def _take_more(self) -> None:
        if not self.is_held and not self._transport.is_closing():
            self._transport.resume_reading()

    def eof_received(self) -> bool:
        """See asyncio.Protocol. The transport closes itself."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        if self._limit is not None:
            self._limit.cancel()
        self._finish()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        self.is_paused = True
        self.ear.paused()

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        if self._transport.is_closing():  # were a write to fail from here now, asyncio's transport would end twice
            return
        self.is_paused = False
        pong, self._pong = self._pong, None
        if pong is not None and self._state is _State.OPEN:
            self.write(frame(PONG, pong))
        if not self.is_paused:
            self.ear.resumed()

    # --- frames that are no messages ----------------------------------------------------------------------------------

    def _take_control(self, opcode: int, payload: bytes) -> None:
        if opcode == CLOSE:
            self._take_close(payload)
        elif self._state is _State.OPEN:
            if opcode == PONG and self._asked_at is not None:
                terms, asked_at, self._asked_at = self._terms, self._asked_at, None
                terms.metrics.ping_seconds.observe(max(0.0, terms.clock.monotonic() - asked_at))
            elif self._is_flood():
                self._terms.metrics.rate_limited.labels(scope="connection").inc()
                # A fault, not a close: the core, which knows of no close, would go on writing behind it.
                raise Fault(CloseCode.RATE_LIMITED.code, "too many control frames")
            if opcode == PING and self.is_paused:
                self._pong = payload  # RFC 6455 §5.5.3: the most recent one is answered
            elif opcode == PING:
                self.write(frame(PONG, payload))

    def _is_flood(self) -> bool:
        clock = self._terms.clock
        if self._control is None:
            self._control = TokenBucket(self._terms.bounds.limits.connection_rate, clock.monotonic())
        return self._control.take(clock.monotonic()) > 0

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
            self._terms.metrics.limit_hits.labels(limit="message_bytes").inc()
        if self._state is _State.OPEN:
            self._close_code = fault.code
            self.write(close_frame(fault.code, fault.reason))
        self._finish()
        self._end_within_grace()
        self.resume_reading()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

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
            asyncio.get_running_loop().call_soon(self._read_on)
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
        if self._reader is not None:
            self._reader.is_deaf = True
        self.resume_reading()  # or the peer's answer would never be heard

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
            self._reader = None
            self.write = _nowhere
            # No circle is left: what was this connection's is freed at once, and not by the garbage collector.
            ear, self.ear = self.ear, _DEAF
            ear.lost()


class _Deaf:
    """The ear of a socket that is over."""

    def received(self, message: str | bytes) -> None:
        """See Ear."""

    def paused(self) -> None:
        """See Ear."""

    def resumed(self) -> None:
        """See Ear."""

    def lost(self) -> None:
        """See Ear."""


_DEAF = _Deaf()


def _nowhere(data: bytes) -> None:
    """Where writes go that come too late."""
