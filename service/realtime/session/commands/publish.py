"""Publishes an event, or removes the value of a key: a message whose type the contract declares."""

from __future__ import annotations

from collections.abc import Awaitable

from service.core.broker import PublishResult
from service.protocol.messages import Ack, Publish, Remove
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
        connection.id,
        if_rev=command.if_rev,
    )
    if not isinstance(result, PublishResult):
        return _wait(connection, command, result)
    if id_ is not None:
        connection.reply(_ack(id_, result))
    return None


def handle_removal(node: Node, connection: Connection, command: Remove) -> Awaitable[None] | None:
    """Removes a value, and replies with `ack` if the message has an id. Waits only if the broker does."""
    session = connection.session
    identity = session.identity
    result = node.publisher.publish(
        identity,
        command.channel,
        command.type,
        b"",
        command.id,
        command.key,
        identity.user or f"anonymous-{connection.id}",
        session.find(command.channel),
        removed=True,
        if_rev=command.if_rev,
    )
    if not isinstance(result, PublishResult):
        return _wait(connection, command, result)
    if command.id is not None:
        connection.reply(_ack(command.id, result))
    return None


async def _wait(connection: Connection, command: Publish | Remove, waiting: Awaitable[PublishResult]) -> None:
    result = await waiting
    if command.id is not None:
        connection.reply(_ack(command.id, result))


def _ack(id_: str, result: PublishResult) -> Ack:
    return Ack(id_, result.offset, result.state_version, result.duplicate)
