"""An authenticated connection: its transport, its session, and its outbox.

Example:
    connection = Connection(id, transport, session, slot, context)
    connection.reply(Pong(id="1"))
    if not connection.deliver(batch):
        connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from service.core.clock import Timer
from service.core.session import Session
from service.protocol import framing, messages
from service.protocol.close import CloseCode
from service.protocol.messages import Ack, Expiring, ServerMessage, Welcome
from service.realtime.connections.byte_budget import MAX_SMALL_REPLY, overloaded
from service.realtime.connections.context import ConnectionContext
from service.realtime.connections.encoder import MAX_BATCH_BYTES, Batch, join
from service.realtime.connections.frame import Frame
from service.realtime.connections.outbox import Outbox
from service.realtime.connections.transport import UNREAD_FD, Transport, Writer

_log = structlog.get_logger("connection")

_NO_CLOSE_GRACE = frozenset((CloseCode.SLOW_CONSUMER, CloseCode.DEADLINE))
"""Close codes for a client that does not read or answer. Its outbox is dropped before the close, not written."""
MAX_GATHERED = 64
"""Small frames that wait for the end of the loop iteration, to share one write."""
MAX_GATHERED_EVENT = MAX_BATCH_BYTES // (MAX_GATHERED + 1)
"""Bytes of an event that a room may pass to `gather`. A larger one goes into a batch. So all gathered events are no larger than a
batch: a larger write would bypass the limits of the outbox."""


class ConnectionSlot(Protocol):
    """The place of one connection under the caps."""

    @property
    def network(self) -> str:
        """The client's address, or its network, by which limits count."""

    def release(self) -> None:
        """Frees the place."""


class _FanOutSlots:
    """The attributes that a fan-out reads of every member.

    Slots of a base class come first, so these four are adjacent in memory. A fan-out then loads few cache lines: between two
    deliveries, the kernel's work evicts them.
    """

    __slots__ = ("fd", "is_clear", "window_bits", "writer")


class Connection(_FanOutSlots):
    """An authenticated connection. Commands require one, so an unauthenticated client cannot run a command.

    Frames are sent in the order of the calls: at once while the client keeps up, else through the outbox.
    """

    __slots__ = (
        "_close_timer",
        "_context",
        "_gathered",
        "_outbox",
        "_writable",
        "awaits_pong",
        "closing",
        "id",
        "is_expiry_sent",
        "is_lost",
        "next_ping_at",
        "opened_at",
        "paused_since",
        "session",
        "slot",
        "transport",
    )

    def __init__(
        self, id: str, transport: Transport, session: Session, slot: ConnectionSlot, context: ConnectionContext
    ) -> None:
        self.id = id
        self.transport = transport
        self.writer: Writer = transport.writer
        """The transport's `writer`. Call it only while `is_clear`."""
        self.fd = UNREAD_FD
        """The transport's file descriptor, for a batch sender. Use it only while `is_clear`; -1 once the connection is lost.
        UNREAD_FD before the first `read_fd`, because it takes 112 bytes and most rooms are too small for a batch sender."""
        self.window_bits = transport.window_bits
        self.session = session
        self.slot = slot
        self.closing: tuple[CloseCode, str] | None = None
        """The code and reason with which this side closes the connection."""
        self.is_clear = True
        """True if nothing is queued, so that a write goes out at once."""
        self.paused_since: float | None = None
        """Monotonic seconds at which the client stopped taking writes; None while it takes them."""
        self.opened_at = 0.0
        """Monotonic seconds at which the connection opened, rounded down to the monitor's last check. Connections that open
        between two checks share one float object, which saves memory."""
        self.next_ping_at = 0.0
        """Monotonic seconds of the next ping, or of the timeout of an unanswered one."""
        self.awaits_pong = False
        """True while a ping is unanswered."""
        self.is_expiry_sent = False
        """True if `expiring` has been sent for the current token."""
        self._context = context
        self._gathered: list[Frame] | None = None
        """Small frames of this loop iteration, in order."""
        self._outbox: Outbox | None = None
        """Exists only while the client does not keep up."""
        self._close_timer: Timer | None = None
        """Sends the close frame when `outbox.close_grace` has passed, even if the outbox is not written."""
        self._writable: asyncio.Event | None = None
        """Set when the outbox shrinks or the connection ends; None until something waits for it."""
        self.is_lost = False
        """True once the transport has ended."""

    @property
    def is_closing(self) -> bool:
        """True if this side has decided to close the connection."""
        return self.closing is not None

    @property
    def queued_messages(self) -> int:
        """Messages in the outbox."""
        return len(self._outbox) if self._outbox is not None else 0

    # --- delivery -----------------------------------------------------------------------------------------------------

    def deliver(self, batch: Batch) -> bool:
        """Writes or queues a batch. False if the client is too slow for a frame that may not be dropped.

        A client that keeps up gets the bytes that all members share. For a slow client, the outbox queues each frame by its
        delivery class. For a connection that `is_clear`, a room writes to `writer` instead.
        """
        if self.closing is not None or self.is_lost:
            return True
        if self._outbox is None:
            gathered, self._gathered = self._gathered, None
            wire = batch.wire(self.window_bits)
            if gathered is None:
                self.writer.write(wire)
            else:
                self._update_clear()
                self._write_counted(self._encode_gathered(gathered) + wire)
            return True
        put = self._outbox.put
        return all(put(frame) for frame in batch.frames)

    def gather(self, frame: Frame) -> bool:
        """Writes a small frame at the end of the loop iteration, with others; or queues it. False as for `deliver`.

        For a single receiver this costs less than a batch, and an event shares a write with the replies.
        """
        gathered = self._gathered
        if gathered is not None:
            gathered.append(frame)
            if len(gathered) > MAX_GATHERED:
                self.flush()
            return True
        if self.closing is not None or self.is_lost:
            return True
        if self._outbox is not None:
            return self._outbox.put(frame)
        self._gathered = [frame]
        self.is_clear = False
        self._context.scheduler.schedule_flush(self)
        return True

    def send(self, frames: list[Frame]) -> bool:
        """Writes or queues frames for this connection alone. Returns the same as `deliver`."""
        if frames and self.closing is None and not self.is_lost:
            self.flush()
            outbox = self._open_outbox()
            for frame in frames:
                if not outbox.put(frame):
                    return False
            self._write_queued()
        return True

    def greet(self, welcome: Welcome, head: bytes, *, waits: bool) -> None:
        """Sends `welcome`. `head` is the HTTP response if that is not sent yet; both go out in one write.

        `waits`: in one write with the messages that follow, too. Then the caller must call `flush` at once.
        """
        if waits and head:
            self.writer = _HeadWriter(self, head)
        if waits or not head:
            self.reply(welcome)
            return
        payload = messages.encode(welcome)
        self._context.metrics.messages.count_out("welcome", len(payload))
        self.writer.write(head + framing.frame(framing.TEXT, payload))

    def reply(self, message: ServerMessage) -> None:
        """Sends a system message, which is never dropped.

        Raises ServiceError(OVERLOADED) if a large message exceeds the byte budget; then nothing is sent.
        """
        if self.closing is not None or self.is_lost:
            return
        type_ = messages.TAGS[type(message)]
        # Never compressed: a snapshot joins texts of several users, and its size could reveal one to another (ADR 15).
        payload = messages.encode(message)
        self._context.metrics.messages.count_out(type_, len(payload))
        frame = Frame(payload, type_, compress=False)
        if self._outbox is None and len(payload) <= MAX_SMALL_REPLY:
            gathered = self._gathered
            if gathered and type(message) is Ack and gathered[-1].delivery is not None and len(gathered) < MAX_GATHERED:
                gathered.insert(-1, frame)  # before the event of the same publish, as in larger rooms
            else:
                self.gather(frame)
            return
        self.flush()
        # The budget is checked before the write: if the client does not read, this process holds the whole reply.
        is_queued = self._open_outbox().put(frame)
        self._write_queued()
        if not is_queued:
            raise overloaded()

    def read_fd(self) -> int:
        """Sets `fd` to the transport's file descriptor, and returns it."""
        self.fd = self.transport.fd
        return self.fd

    def write_rest(self, part: bytes) -> None:
        """Writes the rest of a frame that a batch sender has written in part."""
        self.writer.write(part)
        if self.is_clear:  # else the client did not take the rest
            self.read_fd()  # -1 if the write has ended the connection

    def flush(self) -> None:
        """Writes the gathered frames, if they have not gone out with a batch."""
        gathered, self._gathered = self._gathered, None
        if gathered is not None and self.closing is None and not self.is_lost:
            self._update_clear()
            self._write_counted(self._encode_gathered(gathered))

    def _write_counted(self, wire: bytes) -> None:
        """Writes bytes of this connection alone, and counts them if the client does not take them all."""
        self.writer.write(wire)
        if self.transport.is_writing_paused:
            self.transport.count_unsent(len(wire))

    def _encode_gathered(self, frames: list[Frame]) -> bytes:
        if len(frames) == 1 and frames[0].delivery is None:  # a reply alone
            return framing.frame(framing.TEXT, frames[0].payload)
        context = self._context
        payloads: list[bytes] = []
        event: Frame | None = None  # the oldest
        for frame in frames:
            payloads.append(frame.payload)
            if event is None and frame.delivery is not None:
                event = frame
        if event is not None:
            context.metrics.delivery.publish_to_write_seconds.observe(context.clock.monotonic() - event.received_at)
        max_batch = context.max_batch
        if len(payloads) <= max_batch:
            return framing.frame(framing.TEXT, join(payloads))
        parts = (payloads[start : start + max_batch] for start in range(0, len(payloads), max_batch))
        return b"".join(framing.frame(framing.TEXT, join(part)) for part in parts)

    def _open_outbox(self) -> Outbox:
        """Returns the outbox. What was gathered must be written or taken before, to keep the order."""
        outbox = self._outbox
        if outbox is None:
            self.is_clear = False
            context = self._context
            outbox = self._outbox = Outbox(context.outbox_limits, self.transport.account, context.metrics)
        return outbox

    def _write_queued(self) -> None:
        """Writes the outbox until the client does not take a write; frees it when it is empty."""
        outbox, context = self._outbox, self._context
        if outbox is None:
            return
        while not self.transport.is_writing_paused and (frames := outbox.take(MAX_BATCH_BYTES, context.max_batch)):
            if frames[0].delivery is not None:
                context.metrics.delivery.publish_to_write_seconds.observe(
                    max(0.0, context.clock.monotonic() - frames[0].received_at)
                )
            self._write_counted(context.encoder.encode(frames, self.window_bits))
        if not outbox and not self.transport.is_writing_paused:
            self._outbox = None
            self._update_clear()
        elif self._writable is not None and not outbox.is_full:
            self._writable.set()

    def _update_clear(self) -> None:
        self.is_clear = self.closing is None and not self.transport.is_writing_paused
        if self._writable is not None:
            self._writable.set()

    def pause_writing(self) -> None:
        """Queues frames from now on: the client has not taken a write."""
        self.paused_since = self._context.clock.monotonic()
        if self.closing is None and not self.is_lost:
            gathered, self._gathered = self._gathered, None
            outbox = self._open_outbox()
            if not all(map(outbox.put, gathered or ())):
                self.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")

    def resume_writing(self) -> None:
        """Writes the queued frames: the client has taken everything."""
        self.paused_since = None
        self._write_queued()
        if self.closing is not None and self._outbox is None:
            self._send_close()

    async def wait_written(self) -> None:
        """Waits until all frames have been written, or the connection ends."""
        self.flush()
        while self._outbox is not None and self.closing is None and not self.is_lost:
            await self._wait()

    async def wait_writable(self) -> None:
        """Waits until the outbox is below its limits, or the connection ends. Until then, the client's next command does not
        run."""
        while not self.is_writable and self.closing is None and not self.is_lost:
            await self._wait()

    async def _wait(self) -> None:
        if self._writable is None:
            self._writable = asyncio.Event()
        self._writable.clear()
        await self._writable.wait()

    @property
    def is_writable(self) -> bool:
        """True if `wait_writable` would return at once."""
        return self._outbox is None or not self._outbox.is_full

    # --- heartbeat and token ------------------------------------------------------------------------------------------

    def start_heartbeat(self, opened_at: float, next_ping_at: float) -> None:
        """Records when the connection opened and when its first ping is due, in monotonic seconds."""
        self.opened_at = opened_at
        self.next_ping_at = next_ping_at

    def send_ping(self, timeout_at: float) -> None:
        """Sends a ping that must be answered before `timeout_at`, in monotonic seconds."""
        self.next_ping_at = timeout_at
        self.awaits_pong = True
        self.transport.has_received = False
        self.transport.ping()

    def send_keepalive(self, next_ping_at: float) -> None:
        """Sends a ping that the client cannot answer. The next one is due at `next_ping_at`, in monotonic seconds."""
        self.next_ping_at = next_ping_at
        self.transport.ping()

    def confirm_pong(self, next_ping_at: float) -> None:
        """Records that the last ping was answered."""
        self.next_ping_at = next_ping_at
        self.awaits_pong = False

    def notify_expiring(self, seconds: int) -> None:
        """Sends `expiring` with the seconds until the token expires, once for each token."""
        if not self.is_expiry_sent:
            self.is_expiry_sent = True
            self.reply(Expiring(seconds=seconds))

    def token_replaced(self) -> None:
        """Records that the client has a new token, for which `expiring` is sent again."""
        self.is_expiry_sent = False

    # --- close --------------------------------------------------------------------------------------------------------

    def close(self, code: CloseCode, reason: str) -> None:
        """Closes the connection and stops deliveries to it. Only the first call has an effect. The client gets `reason`.

        The outbox is written first, because its last messages may explain the close. This takes `outbox.close_grace` at most, and
        is left out for a client that does not read.
        """
        if self.closing is not None:
            return
        self.flush()
        self.closing = (code, reason)
        self.is_clear = False
        if self._writable is not None:
            self._writable.set()
        self._context.on_close(self, code, reason)
        if self.is_lost:
            return
        if self._outbox is None or code in _NO_CLOSE_GRACE:
            self._send_close()
        else:
            self._close_timer = self._context.clock.call_later(
                self._context.outbox_limits.close_grace, self._send_close
            )

    def _send_close(self) -> None:
        """Sends the close frame, and drops the outbox: nothing may follow a close frame (RFC 6455 §5.5.1)."""
        if self._close_timer is not None:
            self._close_timer.cancel()
            self._close_timer = None
        self._drop_outbox()
        if self.closing is not None:
            self.transport.close(self.closing[0].code, self.closing[1])

    def _drop_outbox(self) -> None:
        outbox, self._outbox = self._outbox, None
        if outbox is not None:
            outbox.clear()

    def fail(self) -> None:
        """Closes the connection after a fault of the service. The client may have missed an event, so it must reconnect."""
        self._gathered = None
        if not self.is_lost and self.writer is not self.transport.writer:  # the head of the HTTP response is unsent
            self.writer.write(b"")
        try:
            self.close(CloseCode.INTERNAL, CloseCode.INTERNAL.meaning)
        except Exception:
            _log.exception("close_failed", connection=self.id)
            self.transport.abort()

    def connection_lost(self) -> None:
        """Frees the outbox after the transport has ended. Later frames are dropped. A second call does nothing."""
        if self.is_lost:
            return
        self.is_lost = True
        self.is_clear = False
        self.fd = -1
        self._gathered = None
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._drop_outbox()
        if self._writable is not None:
            self._writable.set()


class _HeadWriter:
    """Writes the head of the HTTP response in front of the first frames, then leaves its place to the transport's writer."""

    __slots__ = ("_connection", "_head")

    def __init__(self, connection: Connection, head: bytes) -> None:
        self._connection = connection
        self._head = head

    def write(self, frames: bytes, /) -> None:
        connection = self._connection
        connection.writer = connection.transport.writer
        connection.writer.write(self._head + frames)
