"""`ready`: the screen can take deliveries."""

from __future__ import annotations

from service.core.session import Phase, Subscription
from service.errors import ServiceError
from service.protocol.messages import Ready
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.handshake import error_message


async def handle(node: Node, connection: Connection, command: Ready) -> None:
    """Sends one `subscribed` for every held subscription; nothing if there is none."""
    session = connection.session
    session.is_ready = True
    for subscription in list(session.subscriptions.values()):
        if subscription.phase is Phase.PENDING and not connection.is_closing:
            await _present(node, connection, subscription)
            await connection.wait_writable()  # each of many can be large


async def _present(node: Node, connection: Connection, subscription: Subscription) -> None:
    """One that cannot be read is refused by itself: the others must not wait for ever."""
    try:
        await node.delivery.subscriptions.go_live(connection, subscription)
    except ServiceError as error:
        channel = subscription.channel.name
        await node.delivery.subscriptions.leave(connection, channel)
        node.runtime.metrics.messages.errors.labels(code=error.code.code).inc()
        told = ServiceError(error.code, error.message, **{**error.details, "channel": channel})
        connection.reply(error_message(told, subscription.request))
