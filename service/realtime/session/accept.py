"""Accepts connections: WebSockets enter the realtime core here.

transport.handler = buffer = PreAuthBuffer(transport)
await accept_connection(node, transport, buffer, upgrade)
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Raw

from service.protocol.close import CloseCode, CloseConnection
from service.realtime.connections.transport import Transport
from service.realtime.node import Node
from service.realtime.session.handler import SessionHandler, count_close
from service.realtime.session.handshake import AcceptedUpgrade, authenticate_hello, open_connection
from service.realtime.session.pre_auth_buffer import PreAuthBuffer


async def accept_connection(
    node: Node, transport: Transport, buffer: PreAuthBuffer, upgrade: AcceptedUpgrade, head: bytes = b""
) -> None:
    """Authenticates the client of a transport and starts its session, or closes the transport.

    `buffer` handles messages until the session starts. `head` is sent before everything else. The slot is released when the
    connection is lost.
    """
    identity, credentials = upgrade.identity, upgrade.credentials
    rest: Iterable[str | Raw] = ()
    try:
        if identity is None:
            identity, credentials, rest = await authenticate_hello(node, transport, buffer, upgrade)
        connection = open_connection(node, transport, upgrade.slot, identity, credentials, head)
    except CloseConnection as end:
        count_close(node, upgrade.slot.network, identity, end.code.code)
        upgrade.slot.release()
        if end.code is CloseCode.ABNORMAL:
            transport.close_when_written()  # the client has left without a close frame, so it gets none
        else:
            transport.close(end.code.code, end.reason[:100])
        return
    except BaseException:
        upgrade.slot.release()
        transport.abort()
        raise
    node.lifecycle.add(connection)
    await SessionHandler(node, connection, upgrade.slot).start(buffer, upgrade.channels, rest)
