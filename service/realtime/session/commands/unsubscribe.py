"""`unsubscribe`: ends a subscription."""

from __future__ import annotations

from service.protocol.messages import Unsubscribe, Unsubscribed
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Unsubscribe) -> None:
    """Replies with `unsubscribed`. After it, no event of the channel follows."""
    connection.session.subscription(command.channel)
    await node.streams.subscriptions.leave(connection, command.channel)
    connection.reply(Unsubscribed(channel=command.channel, code="requested", id=command.id))
