"""`refresh`: replaces the token of a connection."""

from __future__ import annotations

from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Ack, Refresh
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Refresh) -> None:
    """Ends the subscriptions that the new token does not allow, then replies with `ack`."""
    old = connection.session.identity
    new = await node.cluster.authenticator.authenticate(command.token)
    if (new.tenant, new.user) != (old.tenant, old.user):
        raise ServiceError(ErrorCode.FORBIDDEN, "the new token must have the same tenant and user", path="$.token")
    connection.session.identity = new
    connection.token_replaced()
    await node.streams.subscriptions.reauthorise(connection)
    connection.reply(Ack(id=command.id))
