"""`subscribe`: subscribes to a channel, from now on or from a position."""

from __future__ import annotations

from collections.abc import Awaitable

from service.core.position import Position
from service.protocol.messages import Subscribe
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


def handle(node: Node, connection: Connection, command: Subscribe) -> Awaitable[None] | None:
    """Replies with `subscribed`, at once or after `ready`."""
    since = command.since
    position = None if since is None else Position(since.epoch, since.offset, since.id)
    return node.streams.subscriptions.subscribe(connection, command.channel, command.id, position, command.tail or 0)
