"""`subscribe`: subscribes to a channel, from now on or from a position."""

from __future__ import annotations

from collections.abc import Awaitable

from service.core.identity import Identity
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Subscribe
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


def handle(node: Node, connection: Connection, command: Subscribe) -> Awaitable[None] | None:
    """Replies with `subscribed`, at once or after `ready`."""
    if command.token is not None:
        return _subscribe_with_token(node, connection, command, command.token)
    return _subscribe(node, connection, command, None)


def _subscribe(
    node: Node, connection: Connection, command: Subscribe, grant: Identity | None
) -> Awaitable[None] | None:
    since = command.since
    position = None if since is None else Position(since.epoch, since.offset, since.id)
    return node.streams.subscriptions.subscribe(
        connection, command.channel, command.id, position, command.tail or 0, grant
    )


async def _subscribe_with_token(node: Node, connection: Connection, command: Subscribe, token: str) -> None:
    waiting = _subscribe(node, connection, command, await authenticate_grant(node, connection, token))
    if waiting is not None:
        await waiting


async def authenticate_grant(node: Node, connection: Connection, token: str) -> Identity:
    """Verifies the token of a subscription. Raises ServiceError, FORBIDDEN if it is for another tenant or user."""
    identity = connection.session.identity
    grant = await node.cluster.authenticator.authenticate_subscription(token)
    if (grant.tenant, grant.user) != (identity.tenant, identity.user):
        raise ServiceError(
            ErrorCode.FORBIDDEN, "the token must have the tenant and user of the connection", path="$.token"
        )
    return grant
