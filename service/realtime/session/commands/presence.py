"""`presence`: asks for the users of a channel."""

from __future__ import annotations

from service.core.channel import ChannelKey
from service.core.identity import Right
from service.protocol.messages import Presence, PresenceReply
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Presence) -> None:
    """Replies with `presence`."""
    identity = connection.session.identity_in(command.channel)
    node.gate.authorise(identity, command.channel, Right.PRESENCE)
    await node.decisions.wait_for_read(identity, command.channel, Right.PRESENCE)
    view = await node.streams.presence.view(ChannelKey(identity.tenant, command.channel))
    connection.reply(PresenceReply(id=command.id, channel=command.channel, presence=view))
