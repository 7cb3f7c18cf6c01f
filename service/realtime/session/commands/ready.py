"""`ready`: starts delivery."""

from __future__ import annotations

from service.core.session import Phase, Subscription
from service.errors import ServiceError
from service.protocol.messages import Ready
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.handshake import error_message


async def handle(node: Node, connection: Connection, command: Ready) -> None:
    """Sends `subscribed` for every pending subscription."""
    session = connection.session
    session.is_ready = True
    for subscription in list(session.subscriptions.values()):
        if subscription.phase is Phase.PENDING and not connection.is_closing:
            await _go_live(node, connection, subscription)
            await connection.wait_writable()  # each `subscribed` can be large


async def _go_live(node: Node, connection: Connection, subscription: Subscription) -> None:
    """Starts delivery to a subscription. If that fails, ends this subscription only, so that the others can start."""
    try:
        await node.streams.subscriptions.go_live(connection, subscription)
    except ServiceError as error:
        channel = subscription.channel.name
        await node.streams.subscriptions.leave(connection, channel)
        node.runtime.metrics.messages.errors.labels(code=error.code.code).inc()
        refusal = ServiceError(error.code, error.message, **{**error.details, "channel": channel})
        connection.reply(error_message(refusal, subscription.request))
