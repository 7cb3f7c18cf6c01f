"""Publishes an event: a message whose type the contract declares."""

from __future__ import annotations

from collections.abc import Awaitable

from service.core.broker import PublishResult
from service.protocol.messages import Ack, Publish
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


def handle(node: Node, connection: Connection, command: Publish) -> Awaitable[None] | None:
    """Publishes, and replies with `ack` if the event has an id. Waits only if the broker does."""
    session = connection.session
    result = node.publisher.publish(
        session.identity,
        channel=command.channel,
        type=command.type,
        data=command.data,
        id=command.id,
        key=command.key,
        sender=session.identity.user or f"anonymous-{connection.id}",
        subscribed=session.is_subscribed(command.channel),
    )
    if not isinstance(result, PublishResult):
        return _wait(connection, command, result)
    _acknowledge(connection, command, result)
    return None


async def _wait(connection: Connection, command: Publish, waiting: Awaitable[PublishResult]) -> None:
    _acknowledge(connection, command, await waiting)


def _acknowledge(connection: Connection, command: Publish, result: PublishResult) -> None:
    if command.id is not None:
        connection.reply(Ack(command.id, result.offset, result.state_version, result.duplicate))
