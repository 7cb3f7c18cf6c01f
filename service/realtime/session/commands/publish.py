"""Publishes an event: a message whose type the contract declares."""

from __future__ import annotations

from collections.abc import Awaitable

from service.core.broker import PublishResult
from service.protocol.messages import Ack, Publish
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


def handle(node: Node, connection: Connection, command: Publish) -> Awaitable[None] | None:
    """Publishes, and replies with `ack` if the event has an id. Waits only if the broker does."""
    session, channel, id_ = connection.session, command.channel, command.id
    identity = session.identity
    # By position: names would take as long again.
    result = node.publisher.publish(
        identity,
        channel,
        command.type,
        command.data,
        id_,
        command.key,
        identity.user or f"anonymous-{connection.id}",
        session.find(channel),
    )
    if not isinstance(result, PublishResult):
        return _wait(connection, command, result)
    if id_ is not None:
        connection.reply(_ack(id_, result))
    return None


async def _wait(connection: Connection, command: Publish, waiting: Awaitable[PublishResult]) -> None:
    result = await waiting
    if command.id is not None:
        connection.reply(_ack(command.id, result))


def _ack(id_: str, result: PublishResult) -> Ack:
    return Ack(id_, result.offset, result.state_version, result.duplicate)
