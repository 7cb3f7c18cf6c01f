"""The realtime core of one process: what the edges hand sockets to, and what the commands work with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import nan

from msgspec import Raw, structs

from service.contract.gate import Gate
from service.core.authenticator import Authenticator
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.clock import Clock
from service.core.identity import Identity
from service.core.limits import (
    MAX_REVOCATIONS,
    MAX_TOTAL_REVOCATIONS,
    PRESENCE_MEMBERS,
    PRESENCE_TTL,
    REVOCATION_TTL,
    UNREADY_AFTER,
    Compression,
    Deadlines,
    Limits,
    OutboxLimits,
    Probing,
    Rate,
    RepairLimits,
    Rollout,
)
from service.core.presence import PresenceStore
from service.core.quota import QuotaStore
from service.core.tickets import TicketStore
from service.errors import ErrorCode, ServiceError
from service.protocol import messages
from service.protocol.close import CloseCode
from service.protocol.messages import Unsubscribed
from service.realtime.admission.admission import Admission
from service.realtime.admission.quota import ConnectionQuota
from service.realtime.admission.recent_clients import RecentClients
from service.realtime.admission.refusals import Refusals
from service.realtime.admission.session_evictor import SessionEvictor
from service.realtime.cluster.control import Control
from service.realtime.cluster.revocations import RevocationGuard, Revocations
from service.realtime.connections.byte_budget import ByteBudget
from service.realtime.connections.connection import Connection
from service.realtime.connections.context import ConnectionContext, RoomContext
from service.realtime.connections.encoder import FrameEncoder
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.connections.transport import BatchSender
from service.realtime.connections.write_scheduler import WriteScheduler
from service.realtime.delivery.hub import Hub
from service.realtime.lifecycle.broker_health import BrokerHealth
from service.realtime.lifecycle.drain import Drain
from service.realtime.lifecycle.latency_probe import Connect, LatencyProbe
from service.realtime.lifecycle.monitor import ConnectionMonitor
from service.realtime.lifecycle.rebalancer import Rebalancer
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.realtime.presence.presence import Presence
from service.realtime.publisher import Publisher
from service.realtime.runtime import Runtime
from service.realtime.streams.broker_relay import BrokerRelay
from service.realtime.streams.subscriptions import Subscriptions
from service.telemetry.metrics import Metrics

REPLACED = "replaced by a newer session"


@dataclass(frozen=True, slots=True)
class Ports:
    """The outside world, as app.py wires it."""

    broker: Broker
    presence: PresenceStore
    tickets: TicketStore
    caps: QuotaStore
    authenticator: Authenticator
    clock: Clock
    connect: Connect
    """For the probe."""
    store_clock: Clock | None = None
    """The store's time, where that is another than `clock`'s."""
    sender: BatchSender | None = None
    """None: every delivery is a call of its socket."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The settings that concern the realtime core."""

    limits: Limits = field(default_factory=Limits)
    outbox: OutboxLimits = field(default_factory=OutboxLimits)
    compression: Compression = field(default_factory=Compression)
    repair: RepairLimits = field(default_factory=RepairLimits)
    deadlines: Deadlines = field(default_factory=Deadlines)
    rollout: Rollout = field(default_factory=Rollout)
    unready_after: float = UNREADY_AFTER
    """Seconds without the broker after which the node is not ready."""
    presence_members: int = PRESENCE_MEMBERS
    """Users in a channel above which presence is told as a count."""
    presence_ttl: float = PRESENCE_TTL
    """Seconds that an entry in presence lasts unless it is renewed."""
    anonymous_tenant: str | None = None
    """The tenant of connections without credentials; None if they are refused."""
    revocation_ttl: float = REVOCATION_TTL
    """Seconds that a revocation lasts."""
    revocations: int = MAX_REVOCATIONS
    """Revocations that are kept of a tenant."""
    revocations_total: int = MAX_TOTAL_REVOCATIONS
    """Of all tenants together."""
    probe: Probing = field(default_factory=Probing)


class Node:
    """Everything one process carries. Made by app.py, started and closed once."""

    def __init__(self, gate: Gate, ports: Ports, bounds: Bounds, metrics: Metrics) -> None:
        self.gate = gate
        self.bounds = bounds
        self.metrics = metrics
        self._told = {anonymous: _told(bounds.limits, anonymous=anonymous) for anonymous in (False, True)}
        """By whether the identity is anonymous."""
        self.broker = ports.broker
        self.tickets = ports.tickets
        self.clock = ports.clock
        self.store_clock = ports.store_clock or ports.clock
        """For what all nodes have to agree on."""
        self.runtime = Runtime.create(ports.clock, metrics)
        self.tasks = self.runtime.tasks
        store_runtime = self.runtime.with_clock(self.store_clock)
        self.budget = ByteBudget(bounds.outbox.node_bytes, bounds.outbox.tenant_share)
        self.quota = ConnectionQuota(ports.caps, bounds.limits, self.runtime)
        self.admission = Admission(bounds.limits, bounds.rollout, self.quota, ports.clock, metrics)
        self.refusals = Refusals(self.admission.slots, ports.clock, metrics)
        self.recent_clients = RecentClients(self.admission.slots, bounds.limits.connections, ports.clock, metrics)
        self.registry = ConnectionRegistry(metrics)
        self.reconnects = ReconnectScheduler(ports.clock, metrics)
        self.monitor = ConnectionMonitor(
            self.registry,
            bounds.deadlines,
            bounds.outbox,
            ports.clock,
            metrics,
            tidy=self.admission.evict_idle,
            rollout=bounds.rollout,
            reconnects=self.reconnects,
        )
        room_context = RoomContext(
            clock=ports.clock,
            metrics=metrics,
            scheduler=WriteScheduler(ports.clock),
            encoder=FrameEncoder(bounds.compression),
            max_batch=bounds.limits.batch,
            batch_sender=ports.sender,
        )
        self.connection_context = ConnectionContext(
            clock=ports.clock,
            metrics=metrics,
            scheduler=room_context.scheduler,
            encoder=room_context.encoder,
            max_batch=bounds.limits.batch,
            outbox_limits=bounds.outbox,
            on_close=self._closing,
        )
        self.hub = Hub(room_context)
        self.relay = BrokerRelay(
            self.hub,
            ports.broker,
            self.runtime,
            outbox=bounds.outbox,
            repair=bounds.repair,
        )
        self.revocations = Revocations(
            self.registry,
            ports.broker,
            store_runtime,
            token_clock=ports.clock,
            tap=self.relay.tap,
            ttl=bounds.revocation_ttl,
            most=bounds.revocations,
            total=bounds.revocations_total,
        )
        self.authenticator = RevocationGuard(ports.authenticator, self.revocations)
        self.control = Control(self, self.revocations, ports.broker, self.runtime)
        self.probe = LatencyProbe(
            self.control.me,
            bounds.probe,
            ports.broker,
            ports.connect,
            room_context,
            self.connection_context,
            self.runtime,
        )
        for tap in (*self.control.taps, self.probe):
            self.relay.tap(tap.channel, tap)
        self.publisher = Publisher(gate, ports.broker, self.store_clock, metrics)
        self.presence = Presence(
            ports.presence,
            ports.broker,
            store_runtime,
            self._channels_with_presence,
            self.relay.deliver,
            debounce=bounds.deadlines.presence_leave,
            max_members=bounds.presence_members,
            ttl=bounds.presence_ttl,
        )
        self.relay.presence = self.presence
        self.relay.on_interrupted = self.quota.renew_soon
        self.subscriptions = Subscriptions(gate, self.relay, self.presence, metrics)
        self.health = BrokerHealth(ports.broker, self.runtime, patience=bounds.unready_after)
        self.evictor = SessionEvictor(ports.caps, bounds.limits, self.runtime, self._replace)
        self._greeting: set[asyncio.Timeout] = set()
        self.rebalancing = Rebalancer(
            self.registry,
            self.reconnects,
            lambda: self.control.words,
            lambda: self.is_accepting and not self.health.is_away,
            bounds.rollout,
            ports.clock,
            metrics,
        )
        self._drain = Drain(self.registry, self.reconnects, bounds.rollout, bounds.deadlines, metrics)
        metrics.lifecycle.draining.set_function(lambda: float(self.admission.is_draining))
        metrics.lifecycle.drain_left.set_function(lambda: len(self.registry) if self.admission.is_draining else 0)
        metrics.connections.max_connections.set(bounds.limits.connections)
        metrics.outbox.max_outbox_bytes.set(bounds.outbox.node_bytes)
        metrics.outbox.outbox_bytes.set_function(lambda: self.budget.used)
        metrics.outbox.outbox_used_ratio.set_function(lambda: self.budget.used_ratio)
        for share in (0.5, 0.9, 1.0):
            metrics.connections.connection_age_seconds.labels(quantile=f"{share:g}").set_function(
                partial(self._age, share)
            )

    async def start(self) -> None:
        """Starts the broker and the sweep. Raises ServiceError if the broker cannot be had; then nothing is left running."""
        try:
            await self.broker.start(self.relay)
            self.relay.start()
            self.presence.start()
            self.quota.start()
            self.evictor.start()
            self.health.start()
            await self.control.start()
            await self.probe.start()
        except BaseException:
            await self.close()
            raise
        self.monitor.start()
        self.rebalancing.start()

    async def close(self) -> None:
        """Ends whatever is left, then the broker. Call `drain` first."""
        self.monitor.close()
        self.rebalancing.close()
        self.reconnects.close()
        self.probe.close()
        self.health.close()
        await self.control.close()
        self.quota.close()
        self.evictor.close()
        self.presence.close()
        self.relay.close()
        await self.tasks.close()
        self.hub.close()
        await self.broker.close()

    def limits_of(self, identity: Identity) -> Raw:
        """The limits that concern a client with this identity, as `welcome` tells them: `messages.Limits`, encoded."""
        return self._told[identity.is_anonymous]

    def check_ready(self) -> None:
        """Returns if this node by itself should get new connections, else raises ServiceError with the reason. The broker
        is `health`'s matter."""
        self.admission.check_open()
        if self.tasks.failed is not None:
            raise ServiceError(ErrorCode.INTERNAL, f"the task {self.tasks.failed!r} has died")

    @contextlib.contextmanager
    def greeting(self, patience: asyncio.Timeout) -> Iterator[None]:
        """For the length of a wait for `hello`: a drain ends the wait at once."""
        self._greeting.add(patience)
        try:
            yield
        finally:
            self._greeting.discard(patience)

    def _age(self, share: float) -> float:
        """Seconds that this share of the connections have lasted at most; NaN if there are none."""
        began = self.registry.opened_at(1.0 - share)
        return nan if began is None else self.clock.monotonic() - began

    def _closing(self, connection: Connection, code: CloseCode, reason: str) -> None:
        # No delivery from here on.
        if code is CloseCode.SLOW_CONSUMER:
            self.metrics.outbox.slow_consumers.inc()
            self.recent_clients.record_slow_consumer(connection.slot.network, connection.session.identity)
        for subscription in connection.session.subscriptions.values():
            self.relay.detach(connection, subscription)

    @property
    def is_accepting(self) -> bool:
        """Whether this node gets new connections, as far as the other nodes are concerned."""
        return not self.admission.is_draining and self.tasks.failed is None and not self.health.is_worn_out

    @property
    def is_draining(self) -> bool:
        """Whether its connections are being moved to other nodes."""
        return self.admission.is_draining

    @property
    def drain_timed_out(self) -> bool:
        """Whether it has drained, and connections were cut because the time was over."""
        return self._drain.timed_out

    @property
    def connections(self) -> int:
        """How many there are here."""
        return len(self.registry)

    def subscribers(self, channel: ChannelKey) -> int:
        """How many connections have joined the channel here."""
        room = self.hub.get(channel)
        return room.member_count if room is not None else 0

    async def disconnect(self, tenant: str, user: str, reason: str) -> int:
        """Closes all connections that the user has here; returns how many. `control` does it on all nodes."""
        connections = self.registry.of_user(tenant, user)
        for connection in connections:
            connection.close(CloseCode.FORBIDDEN, reason)
        return len(connections)

    async def unsubscribe(self, tenant: str, user: str, channel: str) -> int:
        """Ends the user's subscriptions to the channel here; returns how many there were. `control` does it on all nodes."""
        count = 0
        for connection in self.registry.of_user(tenant, user):
            if connection.session.is_subscribed(channel):
                # Told first: leaving may wait for the broker, and what the client asks for meanwhile is answered at once.
                connection.reply(Unsubscribed(channel=channel, code="removed"))
                await self.subscriptions.leave(connection, channel)
                count += 1
        return count

    async def close_connections(self, ids: Sequence[str], code: CloseCode, reason: str) -> int:
        """Closes those of the connections that are here; returns how many were. `control` does it on all nodes."""
        connections = [found for id in ids if (found := self.registry.get(id)) is not None]
        for connection in connections:
            connection.close(code, reason)
        return len(connections)

    def evict_oldest_sessions(self, newest: Connection) -> None:
        """Where the settings say so, ends the user's oldest connections above the cap. Comes after the newest has come in:
        one that is refused in the end replaces nobody."""
        limits = self.bounds.limits
        identity = newest.session.identity
        if limits.on_user_cap != "replace" or identity.is_anonymous:
            return
        for oldest in self.registry.of_user(identity.tenant, identity.user)[: -limits.connections_per_user]:
            oldest.close(CloseCode.REPLACED, REPLACED)
            self.retire(oldest)
        self.evictor.add(identity, newest.id)

    async def _replace(self, connections: Sequence[str]) -> None:
        await self.control.close_connections(connections, CloseCode.REPLACED, REPLACED)

    def retire(self, connection: Connection) -> None:
        """Gives a connection's place back."""
        self.evictor.remove(connection.session.identity, connection.id)
        self.registry.remove(connection)
        self.reconnects.gone(connection)
        connection.slot.release()

    async def drain(self) -> None:
        """Takes no more connections, tells every client its own time to come back, and closes them evenly.

        Returns when all are gone or `deadlines.shutdown` is over.
        """
        self.admission.set_draining(draining=True)
        self.control.tell()
        self.presence.drain()
        for patience in self._greeting:
            if not patience.expired():  # else its task has yet to hear of it, and the time cannot be set any more
                patience.reschedule(asyncio.get_running_loop().time())
        await self._drain.run()

    def hurry(self) -> None:
        """Has a drain, one that is to come too, close all connections at once."""
        self._drain.hurry()

    def _channels_with_presence(self) -> Iterator[ChannelKey]:
        return (room.key for room in self.hub.rooms() if room.is_broker_subscribed and room.spec.presence)


def _told(limits: Limits, *, anonymous: bool) -> Raw:
    connection, connect = limits.subscribe_rate, limits.connect_rate_per_ip
    address = _shared(limits.connections_per_ip, limits.ip_rate, limits.ip_subscribe_rate)
    user = _shared(limits.connections_per_user, limits.user_rate, limits.user_subscribe_rate)
    told = messages.Limits(
        message=limits.message_bytes,
        batch=limits.batch,
        subscriptions=limits.subscriptions,
        rate=limits.connection_rate.per_second,
        burst=limits.connection_rate.burst,
        subscribe_rate=connection.per_second,
        subscribe_burst=connection.burst,
        violations=limits.rate_violations,
        address=structs.replace(address, connect_rate=connect.per_second, connect_burst=connect.burst),
        user=None if anonymous else user,
    )
    return Raw(messages.encode(told))


def _shared(connections: int, messages_rate: Rate, subscribes: Rate) -> messages.SharedLimits:
    return messages.SharedLimits(
        connections=connections,
        rate=messages_rate.per_second,
        burst=messages_rate.burst,
        subscribe_rate=subscribes.per_second,
        subscribe_burst=subscribes.burst,
    )
