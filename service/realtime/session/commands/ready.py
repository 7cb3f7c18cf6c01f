"""`ready`: starts delivery."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from service.core.session import Phase, Subscription
from service.errors import ServiceError
from service.protocol.messages import Ready
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.handshake import error_message


def handle(node: Node, connection: Connection, command: Ready) -> Awaitable[None] | None:
    """Sends `subscribed` for every pending subscription. Waits only if something has to be read, or the outbox is full."""
    session, subscriptions = connection.session, node.streams.subscriptions
    session.is_ready = True
    pending = [one for one in session.subscriptions if one.phase is Phase.PENDING]
    for index, subscription in enumerate(pending):
        if connection.closing is not None:
            return None
        if not connection.is_writable or not subscriptions.go_live_now(connection, subscription):
            return _go_live_all(node, connection, pending[index:])
    return None


async def _go_live_all(node: Node, connection: Connection, subscriptions: Sequence[Subscription]) -> None:
    for subscription in subscriptions:
        await connection.wait_writable()  # each `subscribed` can be large
        if subscription.phase is Phase.PENDING and not connection.is_closing:
            await _go_live(node, connection, subscription)
    await connection.wait_writable()


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
