"""A connection: a live Socket, its Session, and what waits for it: its Outbox."""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from service.core.clock import Timer
from service.core.session import Session
from service.protocol import framing, messages
from service.protocol.close import CloseCode
from service.protocol.messages import ServerMessage, Welcome
from service.realtime.connections.byte_budget import SMALL_REPLY, overloaded
from service.realtime.connections.context import ConnectionContext
from service.realtime.connections.encoder import MAX_BATCH_BYTES, Batch, join
from service.realtime.connections.frame import Frame
from service.realtime.connections.outbox import Outbox
from service.realtime.connections.transport import Transport

_log = structlog.get_logger("connection")

_UNREAD = frozenset((CloseCode.SLOW_CONSUMER, CloseCode.DEADLINE))
"""Closes of a peer that does not read, or does not answer: what is queued for it is not waited for."""
MAX_REPLIES = 64
"""Replies of SMALL_REPLY bytes or less that wait for the end of the turn, to share a write with others."""


class ConnectionSlot(Protocol):
    """A connection's place under the caps (see admission.py)."""

    @property
    def network(self) -> str:
        """Where the connection comes from: what counts as one address."""

    def release(self) -> None:
        """Gives it back."""


class _Reach:
    """What a fan-out reads of every member. A base class, because its slots come first: they lie side by side in memory, and
    between two deliveries the kernel has emptied the processor's caches."""

    __slots__ = ("fd", "is_clear", "window_bits", "write")


class Connection(_Reach):
    """An authenticated connection. Only the handshake makes one, so nothing unauthenticated can reach a command."""

    __slots__ = (
        "_context",
        "_drained",
        "_is_over",
        "_outbox",
        "_parting",
        "_replies",
        "closing",
        "id",
        "is_asked",
        "is_told_of_expiry",
        "paused_since",
        "ping_due",
        "session",
        "since",
        "slot",
        "transport",
    )

    def __init__(
        self, id: str, transport: Transport, session: Session, slot: ConnectionSlot, context: ConnectionContext
    ) -> None:
        self.id = id
        self.transport = transport
        self.write = transport.write
        """The socket's, for those who have seen that the connection `is_clear`."""
        self.fd = transport.fd
        """The socket's, for a Sender, under the same condition; -1 once the connection is over."""
        self.window_bits = transport.window_bits
        self.session = session
        self.slot = slot
        self.closing: tuple[CloseCode, str] | None = None
        self.is_clear = True
        """Whether what is written goes out at once, behind nothing else."""
        self.paused_since: float | None = None
        """Since when a write waits for the peer."""
        self.since = 0.0
        """Monotonic time of its beginning, as coarse as the sweep's looks: all who come between two share the number."""
        self.ping_due = 0.0
        """Monotonic time of the next ping, or of the end if that is not answered."""
        self.is_asked = False
        """Whether a ping waits for its answer."""
        self.is_told_of_expiry = False
        """Whether `expiring` has been sent for the present token."""
        self._context = context
        self._replies: list[bytes] | None = None
        """Small ones of this turn."""
        self._outbox: Outbox | None = None
        """Only while the peer does not keep up."""
        self._parting: Timer | None = None
        self._drained: asyncio.Event | None = None
        self._is_over = False

    @property
    def is_closing(self) -> bool:
        """Whether this side has decided to close."""
        return self.closing is not None

    @property
    def waiting(self) -> int:
        """Messages that wait for the peer to read."""
        return len(self._outbox) if self._outbox is not None else 0

    # --- what goes out ------------------------------------------------------------------------------------------------

    def deliver(self, batch: Batch) -> bool:
        """Takes a burst. Never blocks; False if the peer is too slow for a frame that may not be dropped.

        A peer that keeps up gets the bytes that were made for all; one that does not gets the frames by their classes.
        Hubs write to a connection that `is_clear` themselves.
        """
        if self.closing is not None or self._is_over:
            return True
        if self._outbox is None:
            replies, self._replies = self._replies, None
            wire = batch.wire(self.window_bits)
            if replies is None:
                self.write(wire)
            else:
                self._clear()
                self._write(self._wire(replies) + wire)
            return True
        put = self._outbox.put
        return all(put(frame) for frame in batch.frames)

    def send(self, frames: list[Frame]) -> bool:
        """As `deliver`, for frames of this connection alone."""
        if frames and self.closing is None and not self._is_over:
            outbox = self._queue()
            for frame in frames:
                if not outbox.put(frame):
                    return False
            self._pump()
        return True

    def greet(self, welcome: Welcome, head: bytes) -> None:
        """Sends the first message of all, in one write with the response `head`, if that is still to be sent."""
        if head:
            self.write(head + framing.frame(framing.TEXT, self._encode(welcome)))
        else:
            self.reply(welcome)

    def _encode(self, message: ServerMessage) -> bytes:
        payload = messages.encode(message)
        sent, size = self._context.metrics.messages.out(str(message.__struct_config__.tag))
        sent.inc()
        size.inc(len(payload))
        return payload

    def reply(self, message: ServerMessage) -> None:
        """Sends a system message; it is never dropped.

        Raises ServiceError(OVERLOADED), and sends nothing, if it is large and the node's budget has nothing left for the tenant.
        """
        if self.closing is not None or self._is_over:
            return
        payload = self._encode(message)
        if self._outbox is None and len(payload) <= SMALL_REPLY:
            if self._replies is None:
                self._replies = [payload]
                self.is_clear = False
                self._context.scheduler.schedule_flush(self)
                return
            if len(self._replies) < MAX_REPLIES:
                self._replies.append(payload)
                return
        # Asked before anything is written: the peer may read none of it, and then this process keeps it.
        is_queued = self._queue().put(_reply(payload, str(message.__struct_config__.tag)))
        self._pump()
        if not is_queued:
            raise overloaded()

    def complete(self, part: bytes) -> None:
        """Writes what a Sender could not of a frame. If that fails, the transport has ended, and the descriptor is of no use."""
        self.write(part)
        if self.is_clear:  # else the rest waits, and the peer is slow
            self.fd = self.transport.fd

    def flush(self) -> None:
        """Writes the replies of this turn, if they have not gone out with an event."""
        replies, self._replies = self._replies, None
        if replies is not None and self.closing is None and not self._is_over:
            self._clear()
            self._write(self._wire(replies))

    def _write(self, wire: bytes) -> None:
        """Writes bytes of this connection's own, and counts them if the peer does not take them all."""
        self.write(wire)
        if self.transport.is_paused:
            self.transport.count_unsent(len(wire))

    def _wire(self, replies: list[bytes]) -> bytes:
        most = self._context.max_batch
        if len(replies) <= most:
            return framing.frame(framing.TEXT, join(replies))
        parts = (replies[start : start + most] for start in range(0, len(replies), most))
        return b"".join(framing.frame(framing.TEXT, join(part)) for part in parts)

    def _queue(self) -> Outbox:
        """The outbox, with the replies of this turn at its head: nothing overtakes what came before it."""
        outbox = self._outbox
        if outbox is None:
            self.is_clear = False
            context = self._context
            outbox = self._outbox = Outbox(context.outbox_limits, self.transport.account, context.metrics)
            replies, self._replies = self._replies, None
            for payload in replies or ():
                outbox.put(_reply(payload, "reply"))
        return outbox

    def _pump(self) -> None:
        """Writes what the peer takes."""
        outbox, context = self._outbox, self._context
        if outbox is None:
            return
        while not self.transport.is_paused and (frames := outbox.take(MAX_BATCH_BYTES, context.max_batch)):
            if frames[0].delivery is not None:
                context.metrics.delivery.publish_to_write_seconds.observe(
                    max(0.0, context.clock.monotonic() - frames[0].accepted)
                )
            self._write(context.encoder.wire(frames, self.window_bits))
        if not outbox and not self.transport.is_paused:
            self._outbox = None
            self._clear()
        elif self._drained is not None and not outbox.is_full:
            self._drained.set()

    def _clear(self) -> None:
        self.is_clear = self.closing is None and not self.transport.is_paused
        if self._drained is not None:
            self._drained.set()

    def paused(self) -> None:
        """The peer does not take what it was sent; see Ear."""
        self.paused_since = self._context.clock.monotonic()
        if self.closing is None and not self._is_over:
            self._queue()

    def resumed(self) -> None:
        """It has taken everything; see Ear."""
        self.paused_since = None
        self._pump()
        if self.closing is not None and self._outbox is None:
            self._part()

    async def drained(self) -> None:
        """Waits until everything has been written."""
        while self._outbox is not None and self.closing is None and not self._is_over:
            await self._wait()

    async def wait_writable(self) -> None:
        """Waits while the peer has not read its replies: whoever does not read is not served further. Never waits for a
        peer that is gone."""
        while not self.is_writable and self.closing is None and not self._is_over:
            await self._wait()

    async def _wait(self) -> None:
        if self._drained is None:
            self._drained = asyncio.Event()
        self._drained.clear()
        await self._drained.wait()

    @property
    def is_writable(self) -> bool:
        """Whether `wait_writable` would not wait."""
        return self._outbox is None or not self._outbox.is_full

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self, code: CloseCode, reason: str) -> None:
        """Begins the end: no delivery from here on. Only the first call counts. `reason` goes to the client.

        What is queued explains the close, so it goes first, for `outbox.close_grace` at most, unless the peer does not read.
        """
        if self.closing is not None:
            return
        self.flush()
        self.closing = (code, reason)
        self.is_clear = False
        if self._drained is not None:
            self._drained.set()
        self._context.on_close(self, code, reason)
        if self._is_over:
            return
        if self._outbox is None or code in _UNREAD:
            self._part()
        else:
            self._parting = self._context.clock.call_later(self._context.outbox_limits.close_grace, self._part)

    def _part(self) -> None:
        """Says goodbye. What is still queued is not sent any more: nothing may follow a close frame (RFC 6455 §5.5.1)."""
        if self._parting is not None:
            self._parting.cancel()
            self._parting = None
        self._drop()
        if self.closing is not None:
            self.transport.close(self.closing[0].code, self.closing[1])

    def _drop(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            outbox.clear()

    def fail(self) -> None:
        """Ends it, after a fault of ours: something that it was owed may be lost, and it resumes on another connection."""
        self._replies = None
        try:
            self.close(CloseCode.INTERNAL, CloseCode.INTERNAL.meaning)
        except Exception:
            _log.exception("no goodbye was possible", connection=self.id)
            self.transport.abort()

    def forget(self) -> None:
        """Frees the queue; the connection is over, and what comes late goes nowhere."""
        self._is_over = True
        self.is_clear = False
        self.fd = -1
        self._replies = None
        if self._parting is not None:
            self._parting.cancel()
        self._drop()
        if self._drained is not None:
            self._drained.set()


def _reply(payload: bytes, kind: str) -> Frame:
    # Never compressed: a snapshot joins what several people wrote, whatever the contract says of one event's type.
    return Frame(payload, kind, compress=False)
