"""Turns an accepted upgrade into an authenticated connection. Only connections can run commands. Only this module and the latency
probe create them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from msgspec import UNSET, Raw, Struct

from service.aio.eager_start import continue_in_task
from service.contract.model import ChannelSpec
from service.core.hooks import ClientContext
from service.core.identity import Identity, anonymous
from service.core.position import Position
from service.core.session import Session
from service.errors import ErrorCode, ServiceError
from service.protocol import framing, messages
from service.protocol.close import CloseCode, CloseConnection
from service.protocol.codec import decode, message_id, split
from service.protocol.features import ENCODED_FEATURES, NO_ANNOUNCEMENT, Announcement
from service.protocol.messages import Hello, Welcome
from service.realtime.admission.slots import ConnectionSlot
from service.realtime.connections.connection import Connection
from service.realtime.connections.transport import Transport
from service.realtime.ids import new_connection_id
from service.realtime.node import Node
from service.realtime.session.pre_auth_buffer import PreAuthBuffer

NO_CHANNELS: Mapping[str, ChannelSpec] = MappingProxyType({})
NO_POSITIONS: Mapping[str, Position] = MappingProxyType({})
NO_TAILS: Mapping[str, int] = MappingProxyType({})
Join = tuple[str, ChannelSpec | None, Position | None, int]
"""A channel to subscribe to, its declaration, the position from which it resumes, and the number of last events to bring.
Without a declaration, the token names the channel, and nothing is authorised yet."""


class AcceptedUpgrade(Struct, frozen=True):
    """An upgrade that has passed every check, with the results of the checks."""

    slot: ConnectionSlot
    identity: Identity | None = None
    """None if the client must send `hello`."""
    credentials: str = "hello"
    """The way in which the client authenticates: bearer, ticket, cookie, hook or hello."""
    channels: Mapping[str, ChannelSpec] = NO_CHANNELS
    """The channels in the upgrade's URL and their declarations. The identity may subscribe to them."""
    is_ready: bool = False
    """True if the upgrade's URL has `ready=1`: then deliveries start without the message `ready`."""
    announcement: Announcement = NO_ANNOUNCEMENT
    """What the client says of itself in the upgrade's URL."""
    context: ClientContext | None = None
    """What the hook `connect` may know of a client that sends `hello`; None without that hook."""
    has_receipts: bool = False
    """True if the client gets receipts, because it cannot send over this connection."""
    positions: Mapping[str, Position] = NO_POSITIONS
    """The positions from which channels of `channels` resume."""
    tails: Mapping[str, int] = NO_TAILS
    """The numbers of last events that `subscribed` of channels of `channels` bring."""
    may_add_channels: bool = True
    """False if the client gets only the channels that it has named."""

    def joins(self) -> Iterator[Join]:
        """Iterates over the subscriptions that come with the upgrade."""
        positions, tails = self.positions, self.tails
        return iter([(name, spec, positions.get(name), tails.get(name, 0)) for name, spec in self.channels.items()])


async def authenticate_hello(
    node: Node, transport: Transport, buffer: PreAuthBuffer, upgrade: AcceptedUpgrade
) -> tuple[Identity, str, Iterator[str | Raw]]:
    """Waits for `hello`, and authenticates its token.

    Returns the identity, the way in which it authenticated, and the messages after `hello` in the same frame. On failure, sends
    the error to the client and raises CloseConnection.
    """
    slot = upgrade.slot
    identity, credentials, rest = await _receive_hello(node, transport, upgrade, buffer)
    try:
        waiting = slot.identify(identity)
        if waiting is not None:
            await waiting
    except ServiceError as error:
        raise _refuse(node, transport, slot, error, CloseCode.RATE_LIMITED) from error
    transport.set_account(node.streams.budget.account(identity.tenant))
    return identity, credentials, rest


def open_connection(
    node: Node, transport: Transport, upgrade: AcceptedUpgrade, identity: Identity, credentials: str, head: bytes = b""
) -> Connection:
    """Creates a connection, and sends `welcome` after `head`. On failure, sends the error and raises CloseConnection."""
    slot = upgrade.slot
    if node.admission.is_draining:  # the drain began after the check, and does not know this client
        if head:
            transport.write(head)
        _check_open(node, transport, slot)
    announcement = upgrade.announcement
    session = Session(identity, upgrade.is_ready, announcement.features)
    connection = Connection(new_connection_id(identity.user), transport, session, slot, node.streams.connection_context)
    connection.greet(make_welcome(node, connection), head, waits=upgrade.is_ready)
    node.runtime.metrics.connections.connects.labels(credentials).value += 1.0
    node.admission.client_versions.count(announcement)
    node.admission.recent_clients.record_connect(slot.network, identity)
    return connection


def make_welcome(node: Node, connection: Connection) -> Welcome:
    """Returns the first message of a connection."""
    identity = connection.session.identity
    ttl = node.lifecycle.monitor.token_ttl(connection)
    return Welcome(
        connection=connection.id,
        user=identity.user,
        heartbeat=node.bounds.deadlines.heartbeat,
        limits=node.admission.advertised_limits.for_identity(identity),
        features=ENCODED_FEATURES,
        expires_in=None if ttl is None else max(0, int(ttl)),
        data=UNSET if identity.welcome_data is None else Raw(identity.welcome_data),
    )


def _check_open(node: Node, transport: Transport, slot: ConnectionSlot) -> None:
    try:
        node.admission.check_open()
    except ServiceError as error:
        raise _refuse(node, transport, slot, error, CloseCode.RESTART) from error


async def _receive_hello(
    node: Node, transport: Transport, upgrade: AcceptedUpgrade, buffer: PreAuthBuffer
) -> tuple[Identity, str, Iterator[str | Raw]]:
    slot = upgrade.slot
    frame = await _receive_first_frame(node, transport, slot, buffer)
    message: str | Raw | None = None
    try:
        rest = iter(split_frame(node, frame))
        message = next(rest)
        command = decode(message)
        if not isinstance(command, Hello):
            raise ServiceError(ErrorCode.UNAUTHENTICATED, "the first message must be hello", path="$.type")
    except ServiceError as error:
        request = None if message is None else message_id(message)
        raise _refuse(node, transport, slot, error, CloseCode.BAD_REQUEST, request) from error
    try:
        return *await _authenticate(node, command.token, upgrade.context), rest
    except ServiceError as error:
        close = CloseCode.OVERLOAD if error.retryable else CloseCode.UNAUTHORIZED
        if error.code is ErrorCode.FORBIDDEN:
            close = CloseCode.FORBIDDEN
        raise _refuse(node, transport, slot, error, close) from error


async def _authenticate(node: Node, token: str | None, context: ClientContext | None) -> tuple[Identity, str]:
    """Returns the identity of a `hello`, and the kind of its credentials."""
    authenticator = node.cluster.authenticator
    if token is not None:
        return await authenticator.authenticate(token, context), "hello"
    identity = await authenticator.authenticate_without_token(context)
    if identity is not None:
        return identity, "hook"
    if node.bounds.anonymous_tenant is None:
        raise ServiceError(ErrorCode.UNAUTHENTICATED, "hello needs a token here", path="$.token")
    return anonymous(node.bounds.anonymous_tenant), "anonymous"


def split_frame(node: Node, frame: str | bytes) -> list[str | Raw]:
    """Splits a frame into at least one message. Raises ServiceError: MALFORMED, or INVALID_MESSAGE for too many messages."""
    if isinstance(frame, str) and frame.startswith("{"):
        return [frame]  # a single message, as nearly always
    parts = list(split(frame))
    max_batch = node.bounds.limits.batch
    if len(parts) > max_batch:
        node.runtime.metrics.limits.limit_hits.labels(limit="batch").inc()
        raise ServiceError(ErrorCode.INVALID_MESSAGE, f"a batch has at most {max_batch} messages", path="$")
    if not parts:
        raise ServiceError(ErrorCode.MALFORMED, "a batch has at least one message", path="$")
    return parts


async def _receive_first_frame(node: Node, transport: Transport, slot: ConnectionSlot, buffer: PreAuthBuffer) -> str:
    await continue_in_task()  # asyncio.timeout needs a task
    _check_open(node, transport, slot)  # a drain that started before `track` does not end this wait
    deadline = node.bounds.deadlines.hello
    try:
        async with asyncio.timeout(deadline) as timeout:
            with node.lifecycle.pending_handshakes.track(timeout):
                frame = await buffer.receive()
    except TimeoutError as expired:
        _check_open(node, transport, slot)  # a drain ends the wait early
        node.runtime.metrics.limits.limit_hits.labels(limit="hello_deadline").inc()
        error = ServiceError(ErrorCode.DEADLINE, f"no hello within {deadline:g} s")
        raise _refuse(node, transport, slot, error, CloseCode.DEADLINE) from expired
    if frame is None:
        raise CloseConnection(CloseCode.ABNORMAL, "the client has left before hello")
    if isinstance(frame, bytes):
        error = ServiceError(ErrorCode.BINARY_REFUSED, "frames are UTF-8 JSON text")
        raise _refuse(node, transport, slot, error, CloseCode.BAD_REQUEST)
    return frame


def _refuse(
    node: Node,
    transport: Transport,
    slot: ConnectionSlot,
    error: ServiceError,
    close: CloseCode,
    request: str | None = None,
) -> CloseConnection:
    node.admission.refusals.count(error, "hello", slot.network)
    node.runtime.metrics.messages.errors.labels(code=error.code.code).inc()
    transport.write(framing.frame(framing.TEXT, messages.encode(error_message(error, request))))
    return CloseConnection(close, error.message)


def error_message(error: ServiceError, request: str | None) -> messages.Error:
    """Returns the error message for a client. It hides the address and the errors of the broker."""
    is_broker = error.code is ErrorCode.BROKER_UNAVAILABLE
    return messages.Error(
        code=error.code.code,
        message=error.code.meaning if is_broker else error.message,
        retryable=error.retryable,
        details=dict(error.details),
        id=request,
    )
