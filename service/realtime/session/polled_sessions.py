"""The sessions of long polls at this node. A session stays here between two polls, with its place under the caps, its presence
and its rooms, until another node takes it, or the client has not polled again in time.

session = await sessions.find(id) or sessions.open(...)
with sessions.polling(session, ...):
    await poll(node, session, channels, wait)
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

from msgspec import Struct

from service.contract.model import ChannelSpec
from service.core.broker import DeliveredHead
from service.core.clock import Timer
from service.core.identity import Identity
from service.core.position import Position
from service.core.session import Phase, Session
from service.errors import ServiceError
from service.realtime.admission.slots import SessionSlot
from service.realtime.connections.connection import Connection
from service.realtime.node import Node
from service.realtime.session.handshake import AcceptedUpgrade, make_welcome
from service.realtime.session.poll_transport import PollTransport


class PolledChannel(Struct, frozen=True):
    """A channel that a poll asks for. The identity may subscribe to it."""

    spec: ChannelSpec
    subscribed_at: float
    since: Position | None = None
    """From where the client wants to resume; None: from now, or from `known`."""
    known: DeliveredHead | None = None
    """How far the session was served, by its receipt."""
    tail: int = 0
    """The number of last events that `subscribed` brings, for a channel that is new to the session."""
    grant: Identity | None = None
    """The rights that the backend has granted with the subscription."""
    by_server: bool = False
    """True if the token or the backend has made the subscription."""


class HeldSession:
    """A session of long polls. Implements MessageHandler and ServerSubscriber for its connection."""

    __slots__ = ("_node", "connection", "has_left", "is_polling", "joining", "slot", "transport")

    def __init__(self, node: Node, connection: Connection, transport: PollTransport, slot: SessionSlot) -> None:
        self._node = node
        self.connection = connection
        self.transport = transport
        self.slot = slot
        self.is_polling = False
        """True during a poll."""
        self.has_left = False
        """True once the session leaves its channels, for good at this node."""
        self.joining = asyncio.Lock()
        """Held while channels are joined and their news are read, so that no two joins overlap."""

    @property
    def is_ended(self) -> bool:
        """True if the session cannot go on at this node."""
        return self.connection.closing is not None or self.transport.is_moved or self.transport.closed is not None

    async def prepare(self, identity: Identity, channels: Mapping[str, PolledChannel], before: Collection[str]) -> None:
        """Leaves channels that the client does not want any more, and applies a new token.

        What the backend has added stays, unless the client knew of it: then it is in `before`. Raises ServiceError.
        """
        connection, subscriptions = self.connection, self._node.streams.subscriptions
        for subscription in connection.session.subscriptions:
            name = subscription.channel.name
            wanted = channels.get(name)
            if wanted is not None:
                subscription.since = None if wanted.known is None else wanted.known.position
            elif name in before or not subscription.by_server:
                await subscriptions.leave(connection, name)
        if identity != connection.session.identity:
            connection.session.identity = identity
            self._node.cluster.revocations.enforce(connection)
            await subscriptions.reauthorise(connection)

    def subscribe(self, channel: str, grant: Identity) -> bool:
        """Subscribes the client on behalf of the backend. The poll that waits, or the next one, gets `subscribed`."""
        self._node.runtime.tasks.spawn("subscription", self._subscribe(channel, grant))
        return True

    async def _subscribe(self, channel: str, grant: Identity) -> None:
        async with self.joining:
            if self.has_left:
                return
            await self._add(channel, grant)
        self.connection.flush()

    async def _add(self, channel: str, grant: Identity) -> None:
        session, subscriptions = self.connection.session, self._node.streams.subscriptions
        session.is_ready = False  # so that the version of the snapshot is known here
        try:
            waiting = subscriptions.add(self.connection, channel, grant)
            if waiting is not None:
                await waiting
            added = session.find(channel)
            if added is not None and added.phase is Phase.PENDING and not self.transport.is_finished:
                head = await subscriptions.go_live(self.connection, added)
                self.connection.flush()
                self.transport.record_version(channel, 0 if head is None else head.state_version)
        except ServiceError as error:
            self._node.runtime.metrics.messages.errors.labels(code=error.code.code).inc()
        finally:
            session.is_ready = not self.transport.is_finished

    def cancel_subscribe(self, channel: str) -> bool:
        """Returns False: no subscription waits for a command."""
        return False

    def message_received(self, message: str | bytes) -> None:
        """Does nothing: polls have no messages."""

    def pause_writing(self) -> None:
        """Does nothing: a poll takes everything."""

    def resume_writing(self) -> None:
        """Does nothing."""

    def eof_received(self) -> bool:
        """Returns False: nothing is being handled."""
        return False

    def connection_lost(self) -> None:
        """Does nothing: the session goes on."""


class PolledSessions:
    """Opens sessions, finds them for their next poll, and ends them."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._lease = node.bounds.presence_ttl
        """Seconds after a poll in which the client may poll again."""
        self._held: dict[str, HeldSession] = {}
        self._leaving: dict[str, asyncio.Event] = {}
        """Set once a session that has ended here has left its channels and its place under the caps."""
        self._expiries: OrderedDict[str, float] = OrderedDict()
        """When the sessions between two polls expire, the next one first."""
        self._timer: Timer | None = None
        node.runtime.metrics.connections.poll_sessions.set_function(lambda: len(self._held))

    async def find(self, id: str) -> HeldSession | None:
        """Returns the session with this id, if it is at this node.

        Waits until a session with this id that has ended here has left, because two connections cannot share an id.
        """
        while (leaving := self._leaving.get(id)) is not None:
            await leaving.wait()
        return self._held.get(id)

    def open(self, id: str, upgrade: AcceptedUpgrade, slot: SessionSlot, *, is_new: bool) -> HeldSession:
        """Starts a session, or goes on with one of another node."""
        node, identity = self._node, upgrade.identity
        if identity is None:
            raise TypeError("a poll needs an identity")
        transport = PollTransport(node.streams.budget.account(identity.tenant), lambda: self._on_end(id))
        connection = Connection(
            id,
            transport,
            Session(identity, features=upgrade.announcement.features),
            slot,
            node.streams.connection_context,
        )
        session = self._held[id] = transport.handler = HeldSession(node, connection, transport, slot)
        node.lifecycle.add(connection, upgrade.announcement)
        if is_new:
            node.runtime.metrics.connections.connects.labels(upgrade.credentials).inc()
            node.admission.client_versions.count(upgrade.announcement)
            node.admission.recent_clients.record_connect(slot.network, identity)
        return session

    @contextmanager
    def polling(
        self, session: HeldSession, features: frozenset[str], *, is_new: bool, is_expiry_announced: bool
    ) -> Iterator[None]:
        """For the time of a poll. Afterwards, the session waits for the next one, unless it has ended.

        `is_new`: the client gets `welcome`. After an exception, a new session ends.
        """
        connection = session.connection
        self._expiries.pop(connection.id, None)
        session.is_polling = True
        session.transport.begin(is_expiry_announced=is_expiry_announced)
        connection.session.features = features
        connection.is_expiry_sent = is_expiry_announced  # sent again, it would end every poll at once
        is_done = False
        try:
            if is_new:
                connection.reply(make_welcome(self._node, connection))
            yield
            is_done = True
        finally:
            session.is_polling = False
            session.transport.finish()
            if session.is_ended or (is_new and not is_done):
                self._on_end(connection.id)
            else:
                self._pause(session)

    def _pause(self, session: HeldSession) -> None:
        connection, clock = session.connection, self._node.runtime.clock
        for subscription in connection.session.subscriptions:
            self._node.streams.subscriptions.pause(connection, subscription)
        self._expiries[connection.id] = clock.monotonic() + self._lease
        if self._timer is None:
            self._timer = clock.call_later(self._lease, self._expire)

    def _expire(self) -> None:
        clock = self._node.runtime.clock
        now, self._timer = clock.monotonic(), None
        while self._expiries:
            id, expires_at = next(iter(self._expiries.items()))
            if expires_at > now:
                self._timer = clock.call_later(expires_at - now, self._expire)
                return
            self._held[id].transport.may_continue = False
            self._on_end(id)

    def _on_end(self, id: str) -> None:
        session = self._held.get(id)
        if session is None or session.is_polling:  # then the end of the poll calls again
            return
        del self._held[id]
        self._expiries.pop(id, None)
        if not self._expiries and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        session.has_left = True
        self._leaving[id] = asyncio.Event()
        self._node.runtime.tasks.spawn("poll session end", self._leave(session))

    async def _leave(self, session: HeldSession) -> None:
        connection, subscriptions = session.connection, self._node.streams.subscriptions
        try:
            for subscription in connection.session.subscriptions:
                if connection.transport.may_continue:
                    await subscriptions.leave(connection, subscription.channel.name)
                else:
                    await subscriptions.expire(connection, subscription)
        finally:
            session.slot.is_moved = session.transport.is_moved
            connection.connection_lost()
            self._node.lifecycle.remove(connection, is_moved=session.transport.is_moved)
            self._leaving.pop(connection.id).set()
