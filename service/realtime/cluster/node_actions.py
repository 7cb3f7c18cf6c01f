"""The actions of cluster requests on a node's own connections."""

from __future__ import annotations

from collections.abc import Sequence

from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.errors import ServiceError
from service.protocol.close import CloseCode
from service.protocol.messages import Unsubscribed
from service.realtime.connections.connection import Connection
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.connections.transport import ServerSubscriber
from service.realtime.delivery.hub import Hub
from service.realtime.streams.subscriptions import Subscriptions


class NodeActions:
    """Acts on the connections of this node. Each method returns the number of connections that it has found."""

    def __init__(self, registry: ConnectionRegistry, hub: Hub, subscriptions: Subscriptions) -> None:
        self._registry = registry
        self._hub = hub
        self._subscriptions = subscriptions

    async def disconnect(self, tenant: str, user: str, reason: str) -> int:
        """Closes all connections of the user with 4403."""
        connections = self._registry.of_user(tenant, user)
        for connection in connections:
            connection.close(CloseCode.FORBIDDEN, reason)
        return len(connections)

    async def unsubscribe(self, tenant: str, user: str, channel: str) -> int:
        """Ends all subscriptions of the user to the channel."""
        connections = self._registry.of_user(tenant, user)
        handlers = map(_server_subscriber, connections)
        count = sum(handler is not None and handler.cancel_subscribe(channel) for handler in handlers)
        for connection in connections:
            if connection.session.is_subscribed(channel):
                # Sent before the leave, which may wait for the broker while the client's next commands run.
                connection.reply(Unsubscribed(channel=channel, code="removed"))
                await self._subscriptions.leave(connection, channel)
                count += 1
        return count

    async def subscribe(self, tenant: str, user: str, channel: str, grant: Identity) -> int:
        """Subscribes the user's connections to the channel. Counts those that take the subscription, or have it."""
        count = 0
        for connection in self._registry.of_user(tenant, user):
            handler = _server_subscriber(connection)
            if handler is None or connection.closing is not None:
                continue
            try:
                self._subscriptions.check_can_add(connection, channel, grant)
            except ServiceError:
                continue
            count += handler.subscribe(channel, grant)
        return count

    def release_session(self, session: str) -> None:
        """Ends a session of long polls at this node. It goes on at another node."""
        connection = self._registry.get(session)
        if connection is not None and connection.transport.may_continue:
            connection.transport.abort()

    async def close_connections(self, ids: Sequence[str], code: CloseCode, reason: str) -> int:
        """Closes the connections with these ids."""
        connections = [found for id in ids if (found := self._registry.get(id)) is not None]
        for connection in connections:
            connection.close(code, reason)
        return len(connections)

    def count_subscribers(self, channel: ChannelKey) -> int:
        """Counts the connections that have subscribed to the channel."""
        room = self._hub.get(channel)
        return room.member_count if room is not None else 0


def _server_subscriber(connection: Connection) -> ServerSubscriber | None:
    """Returns the handler that can subscribe the client, if it has one."""
    handler = connection.transport.handler
    return handler if isinstance(handler, ServerSubscriber) else None
