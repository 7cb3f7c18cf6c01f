"""Accepts connections: WebSockets enter the realtime core here.

transport.handler = buffer = PreAuthBuffer(transport)
waiting = accept_connection(node, transport, buffer, upgrade)
if waiting is not None:
    await waiting
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from itertools import chain
from typing import Any

from msgspec import Raw

from service.core.identity import Identity
from service.protocol.close import CloseCode, CloseConnection
from service.realtime.connections.connection import Connection
from service.realtime.connections.transport import Transport
from service.realtime.node import Node
from service.realtime.session.handler import SessionHandler, count_close
from service.realtime.session.handshake import AcceptedUpgrade, authenticate_hello, open_connection
from service.realtime.session.pre_auth_buffer import PreAuthBuffer


def accept_connection(
    node: Node, transport: Transport, buffer: PreAuthBuffer | None, upgrade: AcceptedUpgrade, head: bytes = b""
) -> Coroutine[Any, Any, None] | None:
    """Authenticates the client of a transport and starts its session, or closes the transport.

    `buffer` handles messages until the session starts; None if the identity is known and no message has arrived. `head` is sent
    before everything else. The slot is released when the connection is lost. Returns what has to be waited for; None if the
    session has started.
    """
    identity = upgrade.identity
    if identity is None:
        if buffer is None:
            raise ValueError("a client without an identity sends hello, which needs a buffer")
        return _accept_after_hello(node, transport, buffer, upgrade)
    try:
        connection = open_connection(node, transport, upgrade, identity, upgrade.credentials, head)
    except BaseException as end:
        _refuse(node, transport, upgrade, identity, end)
        return None
    return _start_session(node, connection, buffer, upgrade, ())


async def _accept_after_hello(
    node: Node, transport: Transport, buffer: PreAuthBuffer, upgrade: AcceptedUpgrade
) -> None:
    identity: Identity | None = None
    try:
        identity, credentials, rest = await authenticate_hello(node, transport, buffer, upgrade)
        connection = open_connection(node, transport, upgrade, identity, credentials)
    except BaseException as end:
        _refuse(node, transport, upgrade, identity, end)
        return
    waiting = _start_session(node, connection, buffer, upgrade, rest)
    if waiting is not None:
        await waiting


def _refuse(
    node: Node, transport: Transport, upgrade: AcceptedUpgrade, identity: Identity | None, end: BaseException
) -> None:
    """Closes the transport of a client that gets no session. Raises `end` again, unless it says how to close."""
    if not isinstance(end, CloseConnection):
        upgrade.slot.release()
        transport.abort()
        raise end
    count_close(node, upgrade.slot.network, identity, end.code.code)
    upgrade.slot.release()
    if end.code is CloseCode.ABNORMAL:
        transport.close_when_written()  # the client has left without a close frame, so it gets none
    else:
        transport.close(end.code.code, end.reason[:100])


def _start_session(
    node: Node,
    connection: Connection,
    buffer: PreAuthBuffer | None,
    upgrade: AcceptedUpgrade,
    rest: Iterable[str | Raw],
) -> Coroutine[Any, Any, None] | None:
    node.lifecycle.add(connection, upgrade.announcement)
    if connection.session.identity.question is not None:
        node.lifecycle.renewals.watch(connection)
    if upgrade.has_receipts:
        node.cluster.receipts.send(connection, upgrade.channels)
    joins = upgrade.joins()
    claimed = connection.session.identity.channels
    if claimed and upgrade.may_add_channels:
        joins = chain(joins, ((name, None, None, 0) for name in claimed))
    waiting = SessionHandler(node, connection).start(buffer, joins, rest)
    if upgrade.is_ready:
        # One write for `welcome` and what can be answered now. It comes at once: next, the transport may answer a ping.
        if waiting is not None and asyncio.current_task() is None:
            node.runtime.tasks.start("command", waiting)
            waiting = None
        connection.flush()
    return waiting
