"""One connection from its arrival to its end."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping
from sys import getsizeof
from typing import Any

import structlog
from msgspec import Raw

from service.aio.eager_start import start_eagerly
from service.contract.model import ChannelSpec
from service.core.identity import Identity
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode, CloseConnection
from service.protocol.codec import decode, message_id
from service.protocol.messages import Command, Publish
from service.realtime.admission.slots import ConnectionSlot
from service.realtime.connections.connection import Connection
from service.realtime.connections.transport import Transport
from service.realtime.node import Node
from service.realtime.session.commands import HANDLERS
from service.realtime.session.handshake import AcceptedUpgrade, error_message, greet, introduce, split_frame
from service.realtime.session.pre_auth_buffer import PreAuthBuffer

MAX_WAITING = 32
"""Messages that may wait behind a command that is being carried out; then nothing more is read from the peer."""
SMALL_FRAME = 1_024
"""Characters of a frame that is not counted while its command waits: a connection has one at most, and counting takes 1 µs."""
MAX_WAITING_BYTES = 65_536
"""Bytes of these, as they lie in memory; the same then. One message alone may be larger."""

_CODES = frozenset(str(code.code) for code in CloseCode)

_log = structlog.get_logger("serving")


async def serve(
    node: Node, transport: Transport, arriving: PreAuthBuffer, arrival: AcceptedUpgrade, head: bytes = b""
) -> None:
    """Takes a socket in, whose ear is `arriving` so far; returns when it is served, or turned away. What it took is freed
    when the socket is lost. `head`: what is still to be sent before anything else."""
    identity, credentials = arrival.identity, arrival.credentials
    rest: Iterable[str | Raw] = ()
    try:
        if identity is None:
            identity, credentials, rest = await introduce(node, transport, arriving, arrival)
        connection = greet(node, transport, arrival.slot, identity, credentials, head)
    except CloseConnection as end:
        _count_close(node, arrival.slot.network, identity, end.code.code)
        arrival.slot.release()
        if end.code is CloseCode.ABNORMAL:
            transport.close_when_written()  # the peer has ended without a word, and is told none
        else:
            transport.close(end.code.code, end.reason[:100])
        return
    except BaseException:
        arrival.slot.release()
        transport.abort()
        raise
    serving = SessionHandler(node, connection, arrival.slot)
    node.lifecycle.add(connection)
    await serving.open(arriving, arrival.channels, rest)


class SessionHandler:
    """The ear of an authenticated connection: one command at a time, in their order."""

    __slots__ = (
        "_connection",
        "_has_ended",
        "_in_hand",
        "_is_busy",
        "_is_lost",
        "_node",
        "_slot",
        "_waiting",
        "_waiting_bytes",
    )

    def __init__(self, node: Node, connection: Connection, slot: ConnectionSlot) -> None:
        self._node = node
        self._connection = connection
        self._slot = slot
        self._waiting: deque[str | bytes] | None = None
        self._waiting_bytes = 0
        self._in_hand = 0
        """Bytes of the frame whose commands wait for something."""
        self._is_busy = False
        """Whether a command waits for something."""
        self._is_lost = False
        self._has_ended = False
        """Whether the peer has ended its sending side: the connection ends with the command in hand."""

    async def open(
        self, arriving: PreAuthBuffer, channels: Mapping[str, ChannelSpec], rest: Iterable[str | Raw]
    ) -> None:
        """Takes over: first the channels of the address, then what came with `hello`, then what has come since."""
        connection = self._connection
        connection.transport.handler = self
        if not (
            channels or rest or arriving.waiting or arriving.has_ended or arriving.is_over
        ):  # as with nearly everybody
            if connection.transport.is_writing_paused:
                connection.pause_writing()
            return
        self._is_busy = True
        self._waiting = arriving.waiting
        if self._waiting:
            self._waiting_bytes = sum(map(getsizeof, self._waiting))
        if connection.transport.is_writing_paused:
            connection.pause_writing()
        self._has_ended = arriving.has_ended
        if arriving.is_over:
            self._is_lost = True
        self._set_reading(reading=True)
        await self._work(None, self._first(channels, rest))

    async def _first(self, channels: Mapping[str, ChannelSpec], rest: Iterable[str | Raw]) -> None:
        node, connection = self._node, self._connection
        for channel, spec in channels.items():
            if self._is_over:
                return
            try:
                await node.delivery.subscriptions.join(connection, channel, spec, None, None)
            except ServiceError as error:
                # It has no id: the channel tells which of the address's was refused.
                _refuse(
                    node,
                    connection,
                    ServiceError(error.code, error.message, **{**error.details, "channel": channel}),
                    None,
                )
        await self._handle(rest)

    # --- what the socket tells ----------------------------------------------------------------------------------------

    def message_received(self, message: str | bytes) -> None:
        """See Ear."""
        if self._is_busy:
            if self._waiting is None:
                self._waiting = deque()
            size = getsizeof(message)
            self._waiting.append(message)
            self._waiting_bytes += size
            transport = self._connection.transport
            transport.count_held(size)
            if (
                len(self._waiting) >= MAX_WAITING
                or self._waiting_bytes >= MAX_WAITING_BYTES
                or not transport.account.has_capacity()
            ):
                self._set_reading(reading=False)
            return
        if self._connection.closing is not None:
            return
        self._is_busy = True
        rest = start_eagerly(self._work(message))
        if rest is not None:
            if len(message) > SMALL_FRAME:
                self._in_hand = getsizeof(message)
                self._connection.transport.count_held(self._in_hand)
            self._node.runtime.tasks.spawn("command", rest)

    def pause_writing(self) -> None:
        """See Ear."""
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        """See Ear."""
        self._connection.resume_writing()

    def eof_received(self) -> bool:
        """See Ear."""
        self._has_ended = True
        return self._is_busy

    def connection_lost(self) -> None:
        """See Ear."""
        self._is_lost = True
        self._connection.connection_lost()
        if not self._is_busy:
            self._is_busy = True
            self._node.runtime.tasks.spawn("end", self._end())

    # --- the work -----------------------------------------------------------------------------------------------------

    @property
    def _is_over(self) -> bool:
        return self._is_lost or self._connection.closing is not None

    def _set_reading(self, *, reading: bool) -> None:
        transport = self._connection.transport
        if reading is transport.is_reading_paused:
            (transport.resume_reading if reading else transport.pause_reading)()

    async def _work(self, frame: str | bytes | None, first: Coroutine[Any, Any, None] | None = None) -> None:
        """Handles a frame, or does something else first, then handles what has come meanwhile; ends the connection if that was
        lost meanwhile.

        A fault of ours ends the connection: one that is neither served nor freed would be the worst of all.
        """
        try:
            if first is not None:
                await first
            if frame is not None:
                await self._handle(*self._take_apart(frame))
            while self._waiting and not self._is_over:
                frame = self._waiting.popleft()
                size = getsizeof(frame)
                self._waiting_bytes -= size
                self._put_down(size)
                await self._handle(*self._take_apart(frame))
                if len(self._waiting) < MAX_WAITING // 2 and self._waiting_bytes < MAX_WAITING_BYTES // 2:
                    self._set_reading(reading=True)
        except Exception:
            _log.exception("serving failed", connection=self._connection.id)
            self._connection.fail()
        frame = self._waiting = None  # neither is counted any more
        if self._waiting_bytes or self._in_hand:
            self._connection.transport.count_held(-self._waiting_bytes)
            self._waiting_bytes = 0
            self._put_down(0)
        if self._is_lost:
            await self._end()
        else:
            self._is_busy = False
            self._set_reading(reading=True)
            if self._has_ended:
                self._connection.flush()  # the replies of this turn
                self._connection.transport.close_when_written()

    def _put_down(self, taken: int) -> None:
        """The frame in hand is done with; one of `taken` bytes that waited is in hand now."""
        if self._in_hand:
            self._connection.transport.count_held(-self._in_hand)
        self._in_hand = taken

    def _take_apart(self, frame: str | bytes) -> tuple[Iterable[str | Raw], ServiceError | None]:
        """The messages of a frame; or one that is none, and why."""
        try:
            if isinstance(frame, bytes):
                raise ServiceError(ErrorCode.BINARY_REFUSED, "frames are UTF-8 JSON text")
            return split_frame(self._node, frame), None
        except ServiceError as error:
            return ("",), error

    async def _handle(self, parts: Iterable[str | Raw], fault: ServiceError | None = None) -> None:
        """Handles each message, or refuses all for a fault of their frame: at the cost of a message, like any refusal.

        However many of them are above the rate, that is one violation.

        Every reply must find room before the next message is looked at: a small batch can ask for megabytes with each of its
        messages.
        """
        node, connection = self._node, self._connection
        is_noted = False
        for message in parts:
            if self._is_over:
                return
            try:
                command = self._read(message, fault)
                await HANDLERS[type(command)](node, connection, command)
            except ServiceError as error:
                _refuse(node, connection, error, message_id(message))
                if error.code is ErrorCode.RATE_LIMITED and not is_noted:
                    is_noted = True
                    if node.admission.is_abusive(self._slot, error):
                        connection.close(CloseCode.RATE_LIMITED, "kept sending above the rate")
            except CloseConnection as end:
                connection.close(end.code, end.reason)
            except Exception:
                incident = secrets.token_hex(8)
                _log.exception("command failed", incident=incident, connection=connection.id)
                internal = ServiceError(ErrorCode.INTERNAL, "a fault in the service", incident=incident)
                _refuse(node, connection, internal, message_id(message))
            if not connection.is_writable:
                await connection.wait_writable()

    def _read(self, message: str | Raw, fault: ServiceError | None) -> Command:
        """The command, which the rates allow. Raises ServiceError: `fault`, if there is one, or why it is none."""
        node = self._node
        try:
            if fault is not None:
                raise fault
            command = decode(message)
        except ServiceError:
            node.admission.check_message(self._slot, self._connection.session, None)
            if fault is None:
                _count_in(node, "invalid", message)
            raise
        node.admission.check_message(self._slot, self._connection.session, command)
        kind = command.type if isinstance(command, Publish) else str(command.__struct_config__.tag)
        _count_in(node, kind, message)
        return command

    async def _end(self) -> None:
        node, connection = self._node, self._connection
        code = connection.closing[0].code if connection.closing is not None else connection.transport.close_code
        try:
            for channel in list(connection.session.subscriptions):
                await _leave(node, connection, channel)
        finally:
            connection.connection_lost()
            _count_close(node, connection.slot.network, connection.session.identity, code)
            node.lifecycle.remove(connection)
            runtime = node.runtime
            runtime.metrics.connections.connection_seconds.observe(
                max(0.0, runtime.clock.monotonic() - connection.opened_at)
            )


def _refuse(node: Node, connection: Connection, error: ServiceError, request: str | None) -> None:
    node.runtime.metrics.messages.errors.labels(code=error.code.code).inc()
    connection.reply(error_message(error, request))


async def _leave(node: Node, connection: Connection, channel: str) -> None:
    """A fault in leaving one channel must not keep the connection in the others, nor on the node."""
    try:
        await node.delivery.subscriptions.leave(connection, channel)
    except Exception:
        _log.exception("leaving failed", connection=connection.id)


def _count_close(node: Node, network: str, identity: Identity | None, code: int) -> None:
    """Call it before the connection gives its seat back."""
    label = str(code)
    node.runtime.metrics.connections.closes.labels(code=label if label in _CODES else "other").inc()
    node.admission.recent_clients.record_close(network, identity, code)


def _count_in(node: Node, kind: str, message: str | Raw) -> None:
    count, received = node.runtime.metrics.messages.in_(kind)
    count.inc()
    received.inc(_size(message))


def _size(message: str | Raw) -> int:
    if isinstance(message, Raw):
        return memoryview(message).nbytes
    return len(message) if message.isascii() else len(message.encode())
