"""One connection from its arrival to its end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable

import structlog
from msgspec import Raw

from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode, CloseConnection
from service.protocol.codec import decode, id_of
from service.protocol.messages import Publish
from service.realtime import expiry
from service.realtime.commands import HANDLERS
from service.realtime.connection import Connection
from service.realtime.handshake import Arrival, error_message, greet, take_apart
from service.realtime.node import Node
from service.realtime.socket import Socket

_log = structlog.get_logger("serving")
_CODES = frozenset(str(code.code) for code in CloseCode)


async def serve(node: Node, socket: Socket, arrival: Arrival) -> None:
    """Carries a socket until either side ends it. Frees everything it took."""
    try:
        connection, rest = await greet(node, socket, arrival)
    except CloseConnection as end:
        await _turn_away(node, socket, end)
        return
    connection.on_close = node.closing
    connection.writer = node.supervisor.spawn("writer", connection.write())
    node.roster.add(connection)
    node.revocations.look_at(connection)  # since its token was checked, when nobody could have found it here
    node.make_room_after(connection)
    expiry.arm(node, connection)
    try:
        await _join_named(node, connection, arrival.channels)
        await _handle(node, connection, rest)
        await _read(node, connection)
    finally:
        await _end(node, connection)


async def _turn_away(node: Node, socket: Socket, end: CloseConnection) -> None:
    _count_close(node, end.code.code)
    try:
        async with asyncio.timeout(node.bounds.outbox.close_grace):
            await socket.close(end.code.code, end.reason[:100])
    except (TimeoutError, ConnectionError):
        socket.abort()


async def _join_named(node: Node, connection: Connection, channels: Iterable[str]) -> None:
    for channel in channels:
        if connection.is_closing:
            return
        try:
            await node.subscriptions.subscribe(connection, channel, None, None)
        except ServiceError as error:
            _refuse(node, connection, error, None)


async def _read(node: Node, connection: Connection) -> None:
    while not connection.is_closing:
        frame = await connection.socket.receive()
        if frame is None:
            return
        await _handle_frame(node, connection, frame)


async def _handle_frame(node: Node, connection: Connection, frame: str | bytes) -> None:
    try:
        if isinstance(frame, bytes):
            raise ServiceError(ErrorCode.BINARY_REFUSED, "frames are UTF-8 JSON text")
        parts = take_apart(node, frame)
    except ServiceError as fault:
        await _handle(node, connection, ("",), fault)
    else:
        await _handle(node, connection, parts)


async def _handle(
    node: Node, connection: Connection, parts: Iterable[str | Raw], fault: ServiceError | None = None
) -> None:
    """Handles each message, or refuses all for a fault of their frame: at the cost of a message, like any refusal.

    Every reply must find room before the next message is looked at: a small batch can ask for megabytes with each of its
    messages.
    """
    for message in parts:
        if connection.is_closing:
            return
        try:
            node.admission.check_rate(connection)
            if fault is not None:
                raise fault
            await _command(node, connection, message)
        except ServiceError as error:
            _refuse(node, connection, error, id_of(message))
        except CloseConnection as end:
            connection.close(end.code, end.reason)
        except Exception:
            incident = secrets.token_hex(8)
            _log.exception("command failed", incident=incident, connection=connection.id)
            internal = ServiceError(ErrorCode.INTERNAL, "a fault in the service", incident=incident)
            _refuse(node, connection, internal, id_of(message))
        await connection.room_to_reply()


async def _command(node: Node, connection: Connection, message: str | Raw) -> None:
    size = len(bytes(message)) if isinstance(message, Raw) else len(message.encode())
    try:
        command = decode(message)
    except ServiceError:
        _count_in(node, "invalid", size)
        raise
    kind = command.type if isinstance(command, Publish) else str(command.__struct_config__.tag)
    _count_in(node, kind, size)
    await HANDLERS[type(command)](node, connection, command)


def _refuse(node: Node, connection: Connection, error: ServiceError, request: str | None) -> None:
    node.metrics.errors.labels(code=error.code.code).inc()
    connection.reply(error_message(error, request))
    if error.code is ErrorCode.RATE_LIMITED and node.admission.is_abusive(connection):
        connection.close(CloseCode.RATE_LIMITED, "kept sending above the rate")


async def _end(node: Node, connection: Connection) -> None:
    code = connection.closing[0].code if connection.closing is not None else connection.socket.close_code
    try:
        for channel in list(connection.session.subscriptions):
            await _leave(node, connection, channel)
        if connection.goodbye is not None:  # it needs the queue and the writer, and is bounded in time
            await asyncio.wait([connection.goodbye])
    finally:
        connection.forget()
        node.retire(connection)
        _count_close(node, code)


async def _leave(node: Node, connection: Connection, channel: str) -> None:
    """A fault in leaving one channel must not keep the connection in the others, nor on the node."""
    try:
        await node.subscriptions.leave(connection, channel)
    except Exception:
        _log.exception("leaving failed", connection=connection.id)


def _count_close(node: Node, code: int) -> None:
    label = str(code)
    node.metrics.closes.labels(code=label if label in _CODES else "other").inc()


def _count_in(node: Node, kind: str, size: int) -> None:
    count, received = node.metrics.in_(kind)
    count.inc()
    received.inc(size)
