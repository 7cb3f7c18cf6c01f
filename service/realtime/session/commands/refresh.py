"""`refresh`: replaces the token of a connection, or that of a subscription."""

from __future__ import annotations

from service.core.authenticator import UnknownTokenError
from service.core.identity import Identity
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
    new = await _authenticate(node, connection, command.token)
    if (new.tenant, new.user) != (old.tenant, old.user):
        raise ServiceError(ErrorCode.FORBIDDEN, "the new token must have the same tenant and user", path="$.token")
    await replace_identity(node, connection, new)
    connection.reply(Ack(id=command.id))


async def replace_identity(node: Node, connection: Connection, new: Identity) -> None:
    """Gives a connection and its subscriptions the rights of a new token. Raises ServiceError, as `reauthorise`."""
    connection.session.identity = new
    connection.token_replaced()
    node.lifecycle.renewals.watch(connection)
    await node.streams.subscriptions.reauthorise(connection)


async def _authenticate(node: Node, connection: Connection, token: str) -> Identity:
    authenticator, old = node.cluster.authenticator, connection.session.identity
    try:
        return await authenticator.authenticate(token)
    except UnknownTokenError:
        if old.question is None:
            raise
    node.lifecycle.renewals.check_rate(connection)
    return await authenticator.authenticate_again(old, token)
