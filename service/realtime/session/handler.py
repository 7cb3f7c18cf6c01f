"""Handles the messages of an authenticated connection, one command at a time, until it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Coroutine, Iterable, Iterator
from functools import partial
from sys import getsizeof
from typing import Any, cast

import structlog
from msgspec import Raw, Struct

from service.aio.eager_start import start_eagerly
from service.aio.pending import Pending
from service.core.identity import Identity
from service.errors import ErrorCode, ServiceError
from service.protocol import messages
from service.protocol.close import CloseCode, CloseConnection
from service.protocol.codec import decode, message_id, size_of
from service.protocol.messages import Command, Publish, Remove
from service.realtime.admission.slots import ConnectionSlot
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.commands import HANDLERS
from service.realtime.session.commands.refresh import replace_identity
from service.realtime.session.error_reply import reply_error, reply_fault
from service.realtime.session.handshake import Join, split_frame
from service.realtime.session.pre_auth_buffer import PreAuthBuffer

MAX_QUEUED = 32
"""Frames that may wait for a running command. At this number, reading is paused."""
MAX_QUEUED_BYTES = 65_536
"""Bytes of waiting frames in memory. At this number, reading is paused. A single frame may be larger."""
MAX_UNCOUNTED_FRAME = 1_024
"""A running command's frame of up to this many characters is not counted. A connection has only one, and counting takes 1 µs."""

_WITH_EVENT_TYPE = (Publish, Remove)
"""Commands whose `type` is that of an event. A tuple, because `Publish | Remove` would be made for every message."""
_CODES = {code.code: str(code.code) for code in CloseCode}

_log = structlog.get_logger("session")


class _Addition(Struct, frozen=True):
    """A subscription that the backend has ordered."""

    channel: str
    grant: Identity


class _Renewal(Struct, frozen=True):
    """A new identity for which the backend vouches."""

    old: Identity
    new: Identity


class _Waiting:
    """What waits for a running command, and its bytes. Exists only while needed, to save memory."""

    __slots__ = ("frames", "queued_bytes", "running_bytes")

    def __init__(self, frames: deque[Any] | None = None) -> None:
        self.frames: deque[Any] = deque() if frames is None else frames
        """Frames of the client, and what the backend has ordered (`_Addition`, `_Renewal`)."""
        self.queued_bytes = 0
        self.running_bytes = 0
        """Counted bytes of the frame whose commands are running; 0 if it is not counted."""


class SessionHandler:
    """The message handler of an authenticated connection. Runs its commands one after the other, in order."""

    __slots__ = (
        "_connection",
        "_has_ended",
        "_is_busy",
        "_is_violation_counted",
        "_node",
        "_waiting",
    )

    def __init__(self, node: Node, connection: Connection) -> None:
        self._node = node
        self._connection = connection
        self._waiting: _Waiting | None = None
        self._is_busy = False
        """True while a command runs."""
        self._is_violation_counted = False
        """True once the present frame has counted as above the rate. A frame counts once, whatever it holds."""
        self._has_ended = False
        """True once the client has closed its sending side. The connection closes after the running command."""

    def start(
        self, buffer: PreAuthBuffer | None, joins: Iterator[Join], rest: Iterable[str | Raw]
    ) -> Coroutine[Any, Any, None] | None:
        """Takes over from the buffer, if there is one: makes the subscriptions in `joins`, then handles `rest`, then the buffered
        messages.

        Returns what has to be waited for; None if all is done.
        """
        connection = self._connection
        connection.transport.handler = self
        if connection.transport.is_writing_paused:
            connection.pause_writing()
        self._is_busy = True
        if buffer is not None:
            self._take_over(buffer)
        waiting: Awaitable[None] | None = None
        try:
            waiting = self._subscribe(joins)
        except Exception:
            self._fail()
        if waiting is None and not (
            rest or self._waiting is not None or self._has_ended or connection.is_lost
        ):  # as for nearly all
            self._is_busy = False
            return None
        self._set_reading(reading=True)
        return self._run(None, self._handle_first(waiting, joins, rest))

    def _take_over(self, buffer: PreAuthBuffer) -> None:
        if buffer.is_lost:
            self._connection.connection_lost()
        self._has_ended = buffer.has_ended
        if buffer.queued:
            self._waiting = _Waiting(buffer.queued)
            self._waiting.queued_bytes = sum(map(getsizeof, buffer.queued))

    def _subscribe(self, joins: Iterator[Join]) -> Awaitable[None] | None:
        """Subscribes to channels up to the first that has to wait. Returns what has to be waited for; None after the last."""
        connection = self._connection
        for channel, spec, since, tail in joins:
            if self._is_over:
                return None
            try:
                subscriptions = self._node.streams.subscriptions
                if spec is None:
                    waiting = subscriptions.add(connection, channel)
                else:
                    waiting = subscriptions.join_authorised(connection, channel, spec, None, since, tail)
            except ServiceError as error:
                self._refuse_channel(channel, error)
                continue
            if waiting is not None or not connection.is_writable:
                return self._finish_subscribing(channel, waiting)
        return None

    async def _finish_subscribing(self, channel: str, waiting: Awaitable[None] | None) -> None:
        if waiting is not None:
            try:
                await waiting
            except ServiceError as error:
                self._refuse_channel(channel, error)
        await self._connection.wait_writable()  # each `subscribed` can be large

    def _refuse_channel(self, channel: str, error: ServiceError) -> None:
        # The upgrade has no request id, so the details name the channel.
        refusal = ServiceError(error.code, error.message, **{**error.details, "channel": channel})
        reply_error(self._node, self._connection, refusal, None)

    async def _handle_first(
        self, waiting: Awaitable[None] | None, joins: Iterator[Join], rest: Iterable[str | Raw]
    ) -> None:
        while waiting is not None:
            await waiting
            waiting = self._subscribe(joins)
        await self._handle(rest)

    # --- MessageHandler -----------------------------------------------------------------------------------------------

    def message_received(self, message: str | bytes) -> None:
        """Handles a frame, or queues it behind the running command."""
        if self._is_busy:
            queue = self._queue()
            size = getsizeof(message)
            queue.frames.append(message)
            queue.queued_bytes += size
            transport = self._connection.transport
            transport.count_held(size)
            if (
                len(queue.frames) >= MAX_QUEUED
                or queue.queued_bytes >= MAX_QUEUED_BYTES
                or not transport.account.has_capacity()
            ):
                self._set_reading(reading=False)
            return
        connection = self._connection
        if connection.closing is not None:
            return
        self._is_busy = True
        waiting: Awaitable[object] | None = None
        if type(message) is str and message.startswith("{"):  # one message and no batch, as nearly always
            try:
                self._is_violation_counted = False
                waiting = self._start(message)
            except Exception:
                self._fail()
            if waiting is None and connection.is_writable and not connection.is_lost:  # no coroutine was needed
                self._is_busy = False
                if self._has_ended:
                    self._close_ended()
                return
            if isinstance(waiting, Pending):
                self._count_running(message)
                waiting.add_done_callback(partial(self._continue, message))
                return
            rest = start_eagerly(self._run(None, self._finish(message, waiting)))
        else:
            rest = start_eagerly(self._run(message))
        if rest is not None:
            self._count_running(message)
            self._node.runtime.tasks.spawn("command", rest)

    def _count_running(self, message: str | bytes) -> None:
        """Counts the frame of a command that waits."""
        if len(message) > MAX_UNCOUNTED_FRAME:
            size = self._queue().running_bytes = getsizeof(message)
            self._connection.transport.count_held(size)

    def _continue(self, message: str, done: Pending[Any]) -> None:
        """Refuses a message if what it waited for failed, and continues with the messages that have come meanwhile."""
        if done.error is not None:
            try:
                self._refuse(message, done.error)
            except Exception:
                self._fail()
        connection = self._connection
        if self._waiting is None and connection.is_writable and not connection.is_lost:  # as nearly always
            self._is_busy = False
            if self._has_ended:
                self._close_ended()
            return
        rest = start_eagerly(self._run(None, self._finish(message, None)))
        if rest is not None:
            self._node.runtime.tasks.spawn("command", rest)

    def subscribe(self, channel: str, grant: Identity) -> bool:
        """Subscribes the client for the backend, between its own commands. False if too much waits for the running command."""
        if self._is_busy:
            queue = self._queue()
            if len(queue.frames) >= MAX_QUEUED:
                return False
            queue.frames.append(_Addition(channel, grant))
            return True
        self._is_busy = True
        rest = start_eagerly(self._run(None, self._add(_Addition(channel, grant))))
        if rest is not None:
            self._node.runtime.tasks.spawn("command", rest)
        return True

    def replace_identity(self, old: Identity, new: Identity) -> None:
        """Gives the connection a new identity, between the client's commands. Does nothing if it has another one than `old`."""
        renewal = _Renewal(old, new)
        if self._is_busy:
            self._queue().frames.append(renewal)  # one of a connection at a time
            return
        self._is_busy = True
        rest = start_eagerly(self._run(None, self._renew(renewal)))
        if rest is not None:
            self._node.runtime.tasks.spawn("command", rest)

    async def _renew(self, renewal: _Renewal) -> None:
        node, connection = self._node, self._connection
        if self._is_over or connection.session.identity is not renewal.old:
            return
        try:
            await replace_identity(node, connection, renewal.new)
        except ServiceError:  # the broker is away: what the new rights allow is shown with the next ones
            node.lifecycle.renewals.retry(connection)
        node.cluster.revocations.enforce(connection)
        if connection.transport.has_receipts and not self._is_over:
            node.cluster.receipts.send(connection)

    def cancel_subscribe(self, channel: str) -> bool:
        """Drops the subscriptions to a channel that the backend has ordered and that still wait. False if there are none."""
        if self._waiting is None:
            return False
        queued = self._waiting.frames
        kept = [one for one in queued if not (isinstance(one, _Addition) and one.channel == channel)]
        if len(kept) == len(queued):
            return False
        self._waiting.frames = deque(kept)
        return True

    def _queue(self) -> _Waiting:
        if self._waiting is None:
            self._waiting = _Waiting()
        return self._waiting

    async def _add(self, addition: _Addition) -> None:
        channel = addition.channel
        if self._is_over:
            return
        try:
            waiting = self._node.streams.subscriptions.add(self._connection, channel, addition.grant)
        except ServiceError as error:
            self._refuse_channel(channel, error)
            return
        await self._finish_subscribing(channel, waiting)

    def pause_writing(self) -> None:
        """Queues later frames."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Sends the queued frames."""
        self._connection.resume_writing()

    def eof_received(self) -> bool:
        """Returns True while a command runs; the connection closes after it."""
        self._has_ended = True
        return self._is_busy

    def connection_lost(self) -> None:
        """Ends calls to the backend at once. Unsubscribes from all channels, at once or after the running command."""
        self._connection.connection_lost()
        self._node.calls.end(self._connection)
        if not self._is_busy:
            self._is_busy = True
            self._node.runtime.tasks.call("session end", self._end)

    # --- commands -----------------------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self._connection.is_lost or self._connection.closing is not None

    def _set_reading(self, *, reading: bool) -> None:
        transport = self._connection.transport
        if reading is transport.is_reading_paused:
            (transport.resume_reading if reading else transport.pause_reading)()

    async def _run(self, frame: str | bytes | None, first: Coroutine[Any, Any, None] | None = None) -> None:
        """Runs `first`, handles `frame`, then all queued frames. Ends the session if the connection was lost meanwhile.

        An unexpected error closes the connection: left open, its messages would never be handled.
        """
        try:
            if first is not None:
                await first
            if frame is not None:
                await self._handle(*self._split(frame))
            while (queue := self._waiting) is not None and queue.frames and not self._is_over:
                frame = queue.frames.popleft()
                if isinstance(frame, _Addition):
                    await self._add(frame)
                    continue
                if isinstance(frame, _Renewal):
                    await self._renew(frame)
                    continue
                size = getsizeof(frame)
                queue.queued_bytes -= size
                self._start_frame(queue, size)
                await self._handle(*self._split(frame))
                if len(queue.frames) < MAX_QUEUED // 2 and queue.queued_bytes < MAX_QUEUED_BYTES // 2:
                    self._set_reading(reading=True)
        except Exception:
            self._fail()
        frame = None  # freed, because it is no longer counted
        self._drop_queue()
        if self._connection.is_lost:
            waiting = self._end()
            if waiting is not None:
                await waiting
        else:
            self._is_busy = False
            self._set_reading(reading=True)
            if self._has_ended:
                self._close_ended()

    def _drop_queue(self) -> None:
        queue, self._waiting = self._waiting, None
        if queue is not None and (held := queue.queued_bytes + queue.running_bytes):
            self._connection.transport.count_held(-held)

    def _fail(self) -> None:
        _log.exception("session_failed", connection=self._connection.id)
        self._connection.fail()

    def _close_ended(self) -> None:
        self._connection.flush()  # the replies of this loop iteration
        self._connection.transport.close_when_written()

    def _start_frame(self, queue: _Waiting, size: int) -> None:
        """Subtracts the last frame. The next one, of `size` bytes, was added when it was queued."""
        if queue.running_bytes:
            self._connection.transport.count_held(-queue.running_bytes)
        queue.running_bytes = size

    def _split(self, frame: str | bytes) -> tuple[Iterable[str | Raw], ServiceError | None]:
        """Returns the messages of a frame. For a frame to refuse, returns one empty message and the error."""
        try:
            if isinstance(frame, bytes):
                raise ServiceError(ErrorCode.BINARY_REFUSED, "frames are UTF-8 JSON text")
            return split_frame(self._node, frame), None
        except ServiceError as error:
            return ("",), error

    async def _handle(self, parts: Iterable[str | Raw], fault: ServiceError | None = None) -> None:
        """Handles the messages of a frame. `fault` is the error of a frame that is refused as a whole.

        A refused frame counts as one message. All messages of a frame above the rate count as one violation. The next message
        waits until the outbox is below its limits: each message of a small batch can request megabytes.
        """
        self._is_violation_counted = False
        for message in parts:
            if self._is_over:
                return
            await self._finish(message, self._start(message, fault))

    def _start(self, message: str | Raw, fault: ServiceError | None = None) -> Awaitable[object] | None:
        """Carries out a message, or refuses it. Returns what has to be waited for; None if the message is done."""
        try:
            command = self._read(message, fault)
            return HANDLERS[type(command)](self._node, self._connection, command)
        except Exception as error:
            self._refuse(message, error)
            return None

    async def _finish(self, message: str | Raw, waiting: Awaitable[object] | None) -> None:
        """Waits until a message is done and its reply fits into the outbox."""
        if waiting is not None:
            try:
                await waiting
            except Exception as error:
                self._refuse(message, error)
        if not self._connection.is_writable:
            await self._connection.wait_writable()

    def _refuse(self, message: str | Raw, error: Exception) -> None:
        node, connection = self._node, self._connection
        if isinstance(error, ServiceError):
            reply_error(node, connection, error, message_id(message))
            if error.code is ErrorCode.RATE_LIMITED and not self._is_violation_counted:
                self._is_violation_counted = True
                if node.admission.is_abusive(cast(ConnectionSlot, connection.slot), error):
                    connection.close(CloseCode.RATE_LIMITED, "kept sending above the rate")
        elif isinstance(error, CloseConnection):
            connection.close(error.code, error.reason)
        else:
            reply_fault(node, connection, error, message_id(message))

    def _read(self, message: str | Raw, fault: ServiceError | None) -> Command:
        """Decodes a message, and counts it for the rates. Raises ServiceError: `fault`, or why the message is refused."""
        node, connection, size = self._node, self._connection, size_of(message)
        slot: ConnectionSlot = connection.slot  # type: ignore[assignment]  # a Connection knows only a protocol of it
        try:
            if fault is not None:
                raise fault
            command = decode(message, size)
        except ServiceError:
            node.admission.check_message(slot, connection.session, None)
            if fault is None:
                node.runtime.metrics.messages.count_in("invalid", size)
            raise
        node.admission.check_message(slot, connection.session, command)
        node.runtime.metrics.messages.count_in(
            command.type if isinstance(command, _WITH_EVENT_TYPE) else messages.TAGS[type(command)], size
        )
        return command

    def _end(self) -> Coroutine[Any, Any, None] | None:
        """Leaves all channels and removes the connection. Returns what has to be waited for; None if all is done."""
        connection = self._connection
        code = connection.closing[0].code if connection.closing is not None else connection.transport.close_code
        channels = iter([one.channel.name for one in connection.session.subscriptions])
        waiting = self._leave(channels)
        if waiting is not None:
            return self._finish_end(waiting, channels, code)
        self._remove(code)
        return None

    def _leave(self, channels: Iterator[str]) -> Awaitable[None] | None:
        """Leaves channels up to the first that has to wait. Returns what has to be waited for; None after the last."""
        start_leaving = self._node.streams.subscriptions.start_leaving
        for channel in channels:
            try:
                waiting = start_leaving(self._connection, channel)
            except Exception:  # it must not keep the connection in other channels
                _log.exception("leave_failed", connection=self._connection.id)
                continue
            if waiting is not None:
                return waiting
        return None

    async def _finish_end(self, waiting: Awaitable[None] | None, channels: Iterator[str], code: int) -> None:
        try:
            while waiting is not None:
                try:
                    await waiting
                except Exception:
                    _log.exception("leave_failed", connection=self._connection.id)
                waiting = self._leave(channels)
        finally:
            self._remove(code)

    def _remove(self, code: int) -> None:
        node, connection = self._node, self._connection
        connection.connection_lost()
        count_close(node, connection.slot.network, connection.session.identity, code)
        node.lifecycle.remove(connection)
        runtime = node.runtime
        runtime.metrics.connections.connection_seconds.observe(
            max(0.0, runtime.clock.monotonic() - connection.opened_at)
        )


def count_close(node: Node, network: str, identity: Identity | None, code: int) -> None:
    """Counts the end of a connection. Call it before its slot is released."""
    node.runtime.metrics.connections.closes.labels(_CODES.get(code, "other")).value += 1.0
    node.admission.recent_clients.record_close(network, identity, code)
