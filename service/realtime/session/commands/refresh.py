"""`refresh`: replaces the token of a connection, or that of a subscription."""

from __future__ import annotations

from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Ack, Refresh
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.commands.subscribe import authenticate_grant


async def handle(node: Node, connection: Connection, command: Refresh) -> None:
    """Ends the subscriptions that the new token does not allow, then replies with `ack`."""
    if command.channel is not None:
        grant = await authenticate_grant(node, connection, command.token)
        await node.streams.subscriptions.renew(connection, command.channel, grant)
        connection.reply(Ack(id=command.id))
        return
    old = connection.session.identity
    new = await node.cluster.authenticator.authenticate(command.token)
    if (new.tenant, new.user) != (old.tenant, old.user):
        raise ServiceError(ErrorCode.FORBIDDEN, "the new token must have the same tenant and user", path="$.token")
    connection.session.identity = new
    connection.token_replaced()
    await node.streams.subscriptions.reauthorise(connection)
    connection.reply(Ack(id=command.id))
