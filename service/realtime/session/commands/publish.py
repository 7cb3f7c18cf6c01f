"""Publishes an event, or removes the value of a key: a message whose type the contract declares."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial

from service.aio.pending import Pending
from service.core.broker import PublishResult
from service.protocol.messages import Ack, Publish, Remove
from service.realtime.connections.connection import Connection
from service.realtime.node import Node


def handle(node: Node, connection: Connection, command: Publish) -> Awaitable[object] | None:
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
        command.if_rev,
        session=session,
    )
    return _acknowledge(connection, id_, result)


def handle_removal(node: Node, connection: Connection, command: Remove) -> Awaitable[object] | None:
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
        session=session,
    )
    return _acknowledge(connection, command.id, result)


def _acknowledge(
    connection: Connection, id_: str | None, result: PublishResult | Awaitable[PublishResult]
) -> Awaitable[object] | None:
    """Replies with `ack`, now or when the result is there. Returns what has to be waited for."""
    if isinstance(result, PublishResult):
        _reply(connection, id_, result)
        return None
    if isinstance(result, Pending):
        result.add_done_callback(partial(_reply_done, connection, id_))
        return result
    return _wait(connection, id_, result)


def _reply_done(connection: Connection, id_: str | None, pending: Pending[PublishResult]) -> None:
    if pending.error is None:
        _reply(connection, id_, pending.result())


async def _wait(connection: Connection, id_: str | None, waiting: Awaitable[PublishResult]) -> None:
    _reply(connection, id_, await waiting)


def _reply(connection: Connection, id_: str | None, result: PublishResult) -> None:
    if id_ is not None:
        connection.reply(Ack(id_, result.offset, result.state_version, result.duplicate))
