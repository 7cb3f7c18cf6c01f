"""One long poll: a connection that lasts until there is something to send, or until its time is over.

The session of a polling client goes on in the next poll, at any node. What a node must know of it comes with its receipt: the
channels, and how far each has been served. One call of the broker finds the channels that have moved since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from msgspec import Struct

from service.contract.model import ChannelSpec
from service.core.broker import DeliveredHead
from service.core.last_event_id import Positioned, read_positions
from service.core.position import Position
from service.core.session import Phase, Session
from service.errors import ServiceError
from service.protocol import framing, messages
from service.protocol.close import CloseCode
from service.realtime.admission.slots import ConnectionSlot
from service.realtime.connections.byte_budget import Account, overloaded
from service.realtime.connections.connection import Connection
from service.realtime.connections.transport import MessageHandler
from service.realtime.ids import new_id
from service.realtime.node import Node
from service.realtime.session.handshake import AcceptedUpgrade, error_message, make_welcome

_UNKNOWN = -1
"""The state version of a channel that must be read again."""


class PolledChannel(Struct, frozen=True):
    """A channel that a poll asks for. The identity may subscribe to it."""

    spec: ChannelSpec
    subscribed_at: float
    since: Position | None = None
    """From where the client wants to resume; None: from now, or from `known`."""
    known: DeliveredHead | None = None
    """How far the session was served, by its receipt."""


class PollTransport:
    """Implements Transport: collects what is written until the response."""

    __slots__ = (
        "_held_bytes",
        "_ready",
        "account",
        "closed",
        "handler",
        "heads",
        "is_expiry_announced",
        "is_finished",
        "payloads",
    )

    answers_pings = True
    has_received = True
    has_receipts = True
    may_continue = True
    is_reading_paused = False
    is_writing_paused = False
    window_bits = 0
    fd = -1
    handler: MessageHandler

    def __init__(self, account: Account) -> None:
        self.account = account
        self.payloads: list[bytes] = []
        """Messages, or arrays of messages, in order."""
        self.heads: dict[str, DeliveredHead] = {}
        """How far each live channel is served by `payloads`."""
        self.closed: tuple[int, str] | None = None
        self.is_finished = False
        self.is_expiry_announced = False
        """True if the client has got `expiring` for its token, in this poll or before."""
        self._held_bytes = 0
        self._ready = asyncio.Event()

    @property
    def size(self) -> int:
        """Bytes of the payloads."""
        return sum(map(len, self.payloads))

    @property
    def writer(self) -> PollTransport:
        """The transport itself."""
        return self

    def write(self, wire: bytes, /) -> None:
        """Keeps the messages for the response."""
        if self.is_finished:
            return
        self.count_held(len(wire))
        for payload in framing.payloads(wire):
            self.payloads.append(payload)
            for message in read_positions(payload):
                self._advance(message)
        self._ready.set()

    def _advance(self, message: Positioned) -> None:
        channel = message.channel
        head = self.heads.get(channel)
        if message.type == "expiring":
            self.is_expiry_announced = True
        elif message.type == "subscribed":
            position = Position(message.epoch or "", message.offset or 0, message.last)
            self.heads[channel] = DeliveredHead(position, _UNKNOWN)
        elif message.type == "unsubscribed":
            self.heads.pop(channel, None)
        elif head is not None and "." in message.type:
            position, version = head.position, head.state_version
            if message.offset is not None:
                position = Position(position.epoch, message.offset, message.id)
            self.heads[channel] = DeliveredHead(position, max(version, message.rev or _UNKNOWN))

    def record_version(self, channel: str, version: int) -> None:
        """Records the state version of the snapshot with which a channel has started."""
        head = self.heads.get(channel)
        if head is not None:
            self.heads[channel] = DeliveredHead(head.position, max(head.state_version, version))

    async def wait(self, seconds: float) -> None:
        """Waits until there is something to send, or until `finish`, but at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                await self._ready.wait()
        except TimeoutError:
            pass  # the response has no message

    def finish(self) -> None:
        """Ends the wait. What is written later is not sent."""
        self.is_finished = True
        self._ready.set()

    def release(self) -> None:
        """Subtracts the held bytes: the response is made."""
        self.account.add(-self._held_bytes)
        self._held_bytes = 0

    def set_account(self, account: Account) -> None:
        """Does nothing: the account is known from the start."""

    def count_held(self, size: int) -> None:
        """Counts bytes until `release`."""
        self._held_bytes += size
        self.account.add(size)

    def count_unsent(self, at_least: int = 0) -> None:
        """Does nothing: the response is written after the poll."""

    def pause_reading(self) -> None:
        """Does nothing: the client sends no messages."""

    def resume_reading(self) -> None:
        """Does nothing."""

    def ping(self) -> None:
        """Does nothing: a poll is shorter than the timeouts of proxies."""

    def close(self, code: int, reason: str) -> None:
        """Ends the poll, and the session with it, unless the node asks the client to come back."""
        if self.closed is None and not self.is_finished:
            self.closed = (code, reason)
            self.payloads.append(messages.encode(messages.Closed(code=code, reason=reason)))
            self.finish()

    def close_when_written(self) -> None:
        """Ends the poll."""
        self.finish()

    def abort(self) -> None:
        """Ends the poll."""
        self.finish()

    @property
    def close_code(self) -> int:
        """The code with which the node has ended the poll; 1000 without one."""
        return CloseCode.NORMAL.code if self.closed is None else self.closed[0]


async def poll(
    node: Node,
    upgrade: AcceptedUpgrade,
    transport: PollTransport,
    session: str | None,
    channels: Mapping[str, PolledChannel],
    wait: float,
) -> str:
    """Collects what the client has missed in `transport`, or waits for at most `wait` seconds. Returns the session's id.

    `session`: the id of a session that goes on; None begins one. The slot of `upgrade` is released in every case. Raises
    ServiceError if a channel of the session cannot be served now; the client repeats the poll.
    """
    identity = upgrade.identity
    if identity is None:
        raise TypeError("a poll needs an identity")
    connection = Connection(
        session or new_id(),
        transport,
        Session(identity, features=upgrade.announcement.features),
        upgrade.slot,
        node.streams.connection_context,
    )
    connection.is_expiry_sent = transport.is_expiry_announced  # sent again, it would end every poll at once
    gauge = node.runtime.metrics.connections.polls
    gauge.inc()
    node.lifecycle.add(connection)
    try:
        if session is None:
            connection.reply(make_welcome(node, connection))
            node.runtime.metrics.connections.connects.labels(upgrade.credentials).inc()
            node.admission.client_versions.count(upgrade.announcement)
            node.admission.recent_clients.record_connect(upgrade.slot.network, identity)
        await _subscribe(node, connection, channels)
        await _go_live(node, upgrade.slot, connection, transport, channels)
        connection.session.is_ready = True
        if not transport.payloads:
            await transport.wait(wait)
        connection.flush()
    finally:
        transport.finish()
        gauge.dec()
        await _leave(node, connection)
    return connection.id


async def _subscribe(node: Node, connection: Connection, channels: Mapping[str, PolledChannel]) -> None:
    for name, channel in channels.items():
        is_known = channel.known is not None
        since = channel.since if channel.known is None else channel.known.position
        try:
            waiting = node.streams.subscriptions.join_authorised(
                connection, name, channel.spec, None, since, is_continued=is_known
            )
            if waiting is not None:
                await waiting
        except ServiceError as error:
            _refuse(node, connection, name, error, is_known=is_known)


async def _go_live(
    node: Node,
    slot: ConnectionSlot,
    connection: Connection,
    transport: PollTransport,
    channels: Mapping[str, PolledChannel],
) -> None:
    subscriptions = node.streams.subscriptions
    is_subscribed = connection.session.is_subscribed
    known = {name: one.known for name, one in channels.items() if one.known is not None and is_subscribed(name)}
    if known:
        # Before the frames that come meanwhile, which `continue_live` sends.
        transport.heads.update(known)
        started = await subscriptions.continue_live(connection, known)
        connection.flush()
        if len(started) == len(channels):
            return
    for subscription in connection.session.subscriptions:
        name = subscription.channel.name
        if subscription.phase is not Phase.PENDING or connection.is_closing:
            continue
        if name in known and not _may_read(node, slot, connection, transport):
            continue  # the next poll reads it
        try:
            if not transport.account.has_capacity():
                raise overloaded()
            head = await subscriptions.go_live(connection, subscription)
        except ServiceError as error:
            await subscriptions.leave(connection, name)
            _refuse(node, connection, name, error, is_known=name in known)
            transport.heads.pop(name, None)
            continue
        connection.flush()
        if head is not None:
            transport.record_version(name, head.state_version)


def _may_read(node: Node, slot: ConnectionSlot, connection: Connection, transport: PollTransport) -> bool:
    """Charges the client for a channel that is read at the store. Raises ServiceError if it may read none now."""
    if transport.size > node.bounds.outbox.bytes:
        return False
    try:
        nodes = 1 + len(node.cluster.membership.states())
        node.admission.check_polled_channel(slot, connection.session.identity, nodes)
    except ServiceError:
        if not transport.payloads:
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


async def _leave(node: Node, connection: Connection) -> None:
    try:
        for subscription in connection.session.subscriptions:
            await node.streams.subscriptions.leave(connection, subscription.channel.name)
    finally:
        connection.connection_lost()
        node.lifecycle.remove(connection)
