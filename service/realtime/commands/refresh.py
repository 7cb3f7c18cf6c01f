"""`refresh`: swap the token in place."""

from __future__ import annotations

from service.core.identity import Right
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Ack, Refresh, Unsubscribed
from service.realtime.connection import Connection
from service.realtime.node import Node


async def handle(node: Node, connection: Connection, command: Refresh) -> None:
    """Replies with `ack`; subscriptions that the new token does not allow are ended."""
    old = connection.session.identity
    new = await node.authenticator.authenticate(command.token)
    if (new.tenant, new.user) != (old.tenant, old.user):
        raise ServiceError(ErrorCode.FORBIDDEN, "the new token must be of the same tenant and user", path="$.token")
    connection.session.identity = new
    connection.is_told_of_expiry = False
    for channel in list(connection.session.subscriptions):
        try:
            node.gate.authorise(new, channel, Right.SUBSCRIBE)
        except ServiceError as error:
            await node.subscriptions.leave(connection, channel)
            connection.reply(Unsubscribed(channel=channel, code=error.code.code))
    connection.reply(Ack(id=command.id))
