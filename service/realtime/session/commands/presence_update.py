"""`presence.update`: sets the info that presence shows of the user."""

from __future__ import annotations

from service.protocol.messages import Ack, PresenceUpdate
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: PresenceUpdate) -> None:
    """Replies with `ack`, if the message has an id."""
    session, channel = connection.session, command.channel
    await node.streams.presence_updates.update(
        session.identity, channel, command.data, connection.id, session.find(channel)
    )
    if command.id is not None:
        connection.reply(Ack(command.id))
