"""Publishes an event: a message whose type the contract declares."""

from __future__ import annotations

from service.protocol.messages import Ack, Publish
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Publish) -> None:
    """Publishes, and replies with `ack` if the event has an id."""
    session = connection.session
    result = await node.publisher.publish(
        session.identity,
        channel=command.channel,
        type=command.type,
        data=command.data,
        id=command.id,
        key=command.key,
        sender=session.identity.user or f"anonymous-{connection.id}",
        subscribed=session.is_subscribed(command.channel),
    )
    if command.id is not None:
        connection.reply(Ack(id=command.id, offset=result.offset, rev=result.state_version, duplicate=result.duplicate))
