"""The realtime core's Transport over a response of type text/event-stream (docs/adr/0041-streams.md).

The core writes WebSocket frames. A stream sends each text frame as one server-sent event. The members of a room get the same
frame, so its encoding is kept until the next frame: an event is encoded once for all streams.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import IntEnum
from random import uniform
from typing import cast

from service.core.clock import Clock, Timer
from service.core.last_event_id import Move, PositionTracker, read_moves
from service.protocol import framing, messages, sse
from service.protocol.close import CloseCode
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import Account
from service.telemetry.metrics import Metrics
from service.web.http.peer_transport import NULL_HANDLER, PeerTransport

MAX_LATE_BYTES = 4_096
"""Bytes that a client may send after its request. They are discarded. Above this, the connection is cut."""
RETRY_AFTER_CUT = (1.0, 5.0)
"""Seconds, from and to, that a client waits before it reconnects, if the stream ends without a word or for a fault."""
RETRY_AFTER_RESTART = (0.1, 1.0)
"""The same if the node has asked it to reconnect. The node has spread these ends already (lifecycle/reconnects.py)."""


class _State(IntEnum):
    OPEN = 0
    CLOSING = 1
    """The last message is written. What is left is sent."""
    LOST = 2


class StreamEncoder:
    """Encodes the frames of a node for its streams, and keeps the result for the last frame."""

    __slots__ = ("_encoded", "_moves", "_payloads", "_wire")

    def __init__(self) -> None:
        self._wire = b""
        self._payloads: list[bytes] = []
        self._encoded: bytes | None = None
        self._moves: list[tuple[Move, ...]] | None = None

    def encode(self, wire: bytes) -> bytes:
        """Encodes frames for a stream without positions."""
        self._start(wire)
        if self._encoded is None:
            self._encoded = b"".join(map(sse.event, self._payloads))
        return self._encoded

    def encode_with_positions(self, wire: bytes, tracker: PositionTracker) -> bytes:
        """Encodes frames. An event that changes the positions gets them as its id; the client keeps an id until the next one."""
        self._start(wire)
        if self._moves is None:
            self._moves = list(map(read_moves, self._payloads))
        return b"".join(
            sse.event(payload, tracker.encode() if tracker.apply(moves) else b"")
            for payload, moves in zip(self._payloads, self._moves, strict=True)
        )

    def _start(self, wire: bytes) -> None:
        if wire is not self._wire:
            self._wire = wire
            self._payloads = framing.payloads(wire)
            self._encoded = self._moves = None


@dataclass(frozen=True, slots=True)
class StreamContext:
    """Dependencies shared by all streams of a service."""

    bounds: Bounds
    clock: Clock
    metrics: Metrics
    encoder: StreamEncoder = field(default_factory=StreamEncoder)


class EventStream(PeerTransport):
    """Implements Transport. The client sends nothing, and answers no pings."""

    __slots__ = (
        "_close_code",
        "_close_timer",
        "_context",
        "_head",
        "_late_bytes_left",
        "_state",
        "_tracker",
    )

    answers_pings = False
    has_receipts = True
    may_continue = False
    has_received = True
    is_reading_paused = False
    window_bits = 0
    fd = -1

    def __init__(
        self,
        context: StreamContext,
        transport: asyncio.Transport,
        head: bytes,
        *,
        account: Account,
        tracker: PositionTracker | None = None,
    ) -> None:
        """`head`: of the response. `tracker`: the positions, if the client resumes with Last-Event-ID."""
        super().__init__(transport, account)
        self._context = context
        self._tracker = tracker
        self._head = head + sse.retry(uniform(*RETRY_AFTER_CUT))  # noqa: S311  # spreads load, guards nothing
        """Bytes to send before the first event, in one write with it."""
        self._state = _State.OPEN
        self._close_code = CloseCode.ABNORMAL.code
        self._close_timer: Timer | None = None
        """Aborts the connection if sending the rest takes too long."""
        self._late_bytes_left = MAX_LATE_BYTES
        context.metrics.connections.streams.inc()

    # --- called by asyncio --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Makes the transport report any unsent byte, as for a WebSocket."""
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=0)

    def data_received(self, data: bytes) -> None:
        """Discards what the client sends after its request."""
        self._late_bytes_left -= len(data)
        if self._late_bytes_left < 0:
            self._context.metrics.limits.limit_hits.labels(limit="late_bytes").inc()
            self._transport.abort()

    def eof_received(self) -> bool:
        """Ends the stream: a client that closes its sending half has left."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the session and releases the held bytes."""
        if self._close_timer is not None:
            self._close_timer.cancel()
        if self._state is not _State.LOST:
            self._state = _State.LOST
            self._context.metrics.connections.streams.dec()
            handler, self.handler = self.handler, NULL_HANDLER
            handler.connection_lost()
        self._release_held()

    def resume_writing(self) -> None:
        """Reports to the handler that all bytes are sent."""
        if self._transport.is_closing():
            return
        self.is_writing_paused = False
        self.count_unsent()
        self.handler.resume_writing()

    # --- called by the realtime core ----------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """True once the TCP connection has ended."""
        return self._state is _State.LOST

    @property
    def writer(self) -> EventStream:
        """The transport itself, because it turns frames into events."""
        return self

    def write(self, wire: bytes, /) -> None:
        """Sends WebSocket frames as server-sent events."""
        if self._state is _State.OPEN:
            encoder, tracker = self._context.encoder, self._tracker
            self._send(encoder.encode(wire) if tracker is None else encoder.encode_with_positions(wire, tracker))

    def _send(self, data: bytes) -> None:
        head, self._head = self._head, b""
        self._transport.write(head + data if head else data)

    def pause_reading(self) -> None:
        """Does nothing: the client sends no messages."""

    def resume_reading(self) -> None:
        """Does nothing."""

    def ping(self) -> None:
        """Sends a comment, unless bytes wait anyway."""
        if self._state is _State.OPEN and not self.is_writing_paused:
            self._send(sse.COMMENT)

    def close(self, code: int, reason: str) -> None:
        """Sends `closed` and the time to wait, and ends the response. Aborts after `outbox.close_grace`."""
        if self._state is not _State.OPEN:
            return
        self._state = _State.CLOSING
        self._close_code = code
        payload = messages.encode(messages.Closed(code=code, reason=reason))
        self._context.metrics.messages.count_out("closed", len(payload))
        wait = RETRY_AFTER_RESTART if code == CloseCode.RESTART.code else RETRY_AFTER_CUT
        self._send(sse.retry(uniform(*wait)) + sse.event(payload))  # noqa: S311  # spreads load, guards nothing
        self.close_when_written()

    def close_when_written(self) -> None:
        """Ends the response once all bytes are sent. Aborts after `outbox.close_grace`."""
        if self._close_timer is None:
            self._close_timer = self._context.clock.call_later(
                self._context.bounds.outbox.close_grace, self._transport.abort
            )
        self._transport.close()

    def abort(self) -> None:
        """Cuts the connection."""
        self._transport.abort()

    @property
    def close_code(self) -> int:
        """The code of `closed`; 1006 without it."""
        return self._close_code
