"""`history`: a page of durable events."""

from __future__ import annotations

from service.core.channel import ChannelKey
from service.core.identity import Right
from service.protocol.messages import History, HistoryPage
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: History) -> None:
    """Replies with `history`: a page of at most `outbox.recovery_bytes`. `more` is true if another page follows."""
    identity = connection.session.identity_in(command.channel)
    spec = node.gate.authorise(identity, command.channel, Right.HISTORY).spec
    await node.decisions.wait_for_read(identity, command.channel, Right.HISTORY)
    channel = ChannelKey(identity.tenant, command.channel)
    part = await node.streams.history.read(channel, spec, command.after, command.before, command.limit)
    connection.reply(
        HistoryPage(
            id=command.id,
            channel=command.channel,
            epoch=part.position.epoch,
            offset=part.position.offset,
            last=part.position.id,
            events=part.events,
            more=part.has_more,
            older=part.older,
            newer=part.newer,
        )
    )
