"""One long poll: collects messages until there is something to send, or until its time is over.

The session of a polling client goes on in the next poll, at any node. What a node must know of it comes with its receipt: the
channels, and how far each has been served. One call of the broker finds the channels that have moved since.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from service.core.identity import Identity
from service.core.session import Phase
from service.errors import ServiceError
from service.realtime.connections.byte_budget import overloaded
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.handshake import error_message
from service.realtime.session.polled_sessions import HeldSession, PolledChannel


async def poll(
    node: Node,
    session: HeldSession,
    identity: Identity,
    channels: Mapping[str, PolledChannel],
    before: Collection[str],
    wait: float,
) -> None:
    """Collects what the client has missed in the session's transport, or waits for at most `wait` seconds.

    `before`: the channels that the session had, as far as the client knows.

    Raises ServiceError if a channel of the session cannot be served now; the client repeats the poll.
    """
    connection, transport = session.connection, session.transport
    gauge = node.runtime.metrics.connections.polls
    gauge.inc()
    try:
        async with session.joining:
            await session.prepare(identity, channels, before)
            await _subscribe(node, connection, channels)
            await _go_live(node, session, channels)
            connection.session.is_ready = True
        if not transport.payloads:
            await transport.wait(wait)
        connection.flush()
    finally:
        connection.session.is_ready = False
        transport.finish()
        gauge.dec()


async def _subscribe(node: Node, connection: Connection, channels: Mapping[str, PolledChannel]) -> None:
    subscriptions, session = node.streams.subscriptions, connection.session
    for name, channel in channels.items():
        known = channel.known
        held = session.find(name)
        if held is not None and known is not None:
            continue
        if held is not None:
            await subscriptions.leave(connection, name)
        try:
            waiting = subscriptions.join_authorised(
                connection,
                name,
                channel.spec,
                None,
                channel.since if known is None else known.position,
                channel.tail,
                channel.grant,
                is_continued=known is not None,
                by_server=channel.by_server,
            )
            if waiting is not None:
                await waiting
        except ServiceError as error:
            _refuse(node, connection, name, error, is_known=known is not None)


async def _go_live(node: Node, session: HeldSession, channels: Mapping[str, PolledChannel]) -> None:
    connection, transport, subscriptions = session.connection, session.transport, node.streams.subscriptions
    is_subscribed = connection.session.is_subscribed
    known = {name: one.known for name, one in channels.items() if one.known is not None and is_subscribed(name)}
    if known:
        # Before the frames that come meanwhile, which `continue_live` sends.
        transport.heads.update(known)
        started = await subscriptions.continue_live(connection, known)
        connection.flush()
        if len(started) == len(connection.session.subscriptions):
            return
    for subscription in connection.session.subscriptions:
        name = subscription.channel.name
        if subscription.phase is not Phase.PENDING or connection.is_closing:
            continue
        if name in known and not _may_read(node, session):
            continue  # the next poll reads it
        try:
            if not transport.account.has_capacity():
                raise overloaded()
            head = await subscriptions.go_live(connection, subscription)
        except ServiceError as error:
            if name in known and error.retryable:
                raise
            await subscriptions.leave(connection, name)
            _refuse(node, connection, name, error, is_known=name in known)
            transport.heads.pop(name, None)
            continue
        connection.flush()
        if head is not None:
            transport.record_version(name, head.state_version)


def _may_read(node: Node, session: HeldSession) -> bool:
    """Charges the client for a channel that is read at the store. Raises ServiceError if it may read none now."""
    if session.transport.size > node.bounds.outbox.bytes:
        return False
    try:
        nodes = node.cluster.membership.node_count
        node.admission.check_polled_channel(session.slot, session.connection.session.identity, nodes)
    except ServiceError:
        if not session.transport.payloads:
            raise
        return False
    return True


def _refuse(node: Node, connection: Connection, channel: str, error: ServiceError, *, is_known: bool) -> None:
    """Tells the client why it does not get a channel. Raises the error if the session can go on with the channel later.

    Otherwise each poll would answer at once with the same error.
    """
    if is_known and error.retryable:
        raise error
    node.runtime.metrics.messages.errors.labels(code=error.code.code).inc()
    connection.reply(
        error_message(ServiceError(error.code, error.message, **{**error.details, "channel": channel}), None)
    )
