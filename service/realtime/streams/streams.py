"""The parts of a node that carry events from the broker to its connections."""

from __future__ import annotations

from collections.abc import Iterator

from service.contract.gate import Gate
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.hooks import Hooks
from service.core.page_address import PageSigner
from service.core.presence import PresenceStore
from service.core.revocation import RevocationTable
from service.protocol.close import CloseCode
from service.realtime.admission.admission import Admission
from service.realtime.bounds import Bounds
from service.realtime.connections.byte_budget import ByteBudget
from service.realtime.connections.connection import Connection
from service.realtime.connections.context import ConnectionContext, RoomContext
from service.realtime.connections.encoder import FrameEncoder
from service.realtime.connections.frame import event_frame
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.connections.transport import BatchSender
from service.realtime.connections.write_scheduler import WriteScheduler
from service.realtime.decisions import Decisions
from service.realtime.delivery.hub import Hub
from service.realtime.facts.facts import Facts
from service.realtime.presence.presence import Presence
from service.realtime.presence.updates import PresenceUpdates
from service.realtime.publisher import Publisher
from service.realtime.runtime import Runtime
from service.realtime.streams.broker_relay import BrokerRelay
from service.realtime.streams.channel_membership import ChannelMembership
from service.realtime.streams.empty_channels import EmptyChannels
from service.realtime.streams.history_reader import HistoryReader
from service.realtime.streams.rechecks import Rechecks
from service.realtime.streams.subscription_grants import SubscriptionGrants
from service.realtime.streams.subscriptions import Subscriptions


class Streams:
    """Owns the connections of a node, their rooms, and the relay between rooms and broker."""

    def __init__(
        self,
        gate: Gate,
        decisions: Decisions,
        publisher: Publisher,
        hooks: Hooks | None,
        broker: Broker,
        presence: PresenceStore,
        sender: BatchSender | None,
        signer: PageSigner,
        admission: Admission,
        facts: Facts | None,
        bounds: Bounds,
        runtime: Runtime,
        store_runtime: Runtime,
    ) -> None:
        """`store_runtime` uses the store clock, `runtime` the node's own clock. `hooks`: None if the contract names none.
        `facts`: None if nobody is told of clients and channels."""
        self._clock = runtime.clock
        self._metrics = runtime.metrics
        self._recent_clients = admission.recent_clients
        self.facts = facts
        channel_facts = facts if gate.has_channel_webhooks else None
        self.budget = ByteBudget(bounds.outbox.node_bytes, bounds.outbox.tenant_share)
        self.registry = ConnectionRegistry(runtime.metrics)
        scheduler, encoder = WriteScheduler(runtime.clock), FrameEncoder(bounds.compression)
        self.room_context = RoomContext(runtime.clock, runtime.metrics, scheduler, encoder, bounds.limits.batch, sender)
        self.hub = Hub(self.room_context)
        self.presence = Presence(
            presence,
            broker,
            store_runtime,
            self._channels_with_presence,
            self._deliver_here,
            debounce=bounds.deadlines.presence_leave,
            max_members=bounds.presence_members,
            ttl=bounds.presence_ttl,
            is_shared=admission.quota.is_shared,
        )
        self.presence_updates = PresenceUpdates(gate, self.presence, runtime.metrics, bounds.presence_update_bytes)
        self.relay = BrokerRelay(
            self.hub,
            broker,
            self.presence,
            runtime,
            repair=bounds.repair,
            find_connection=self.registry.get,
            on_interrupted=admission.quota.renew_soon,
        )
        self._membership = ChannelMembership(
            self.hub, broker, self.relay.recovery, self.relay.checker, bounds.outbox, channel_facts, runtime
        )
        self.revoked = RevocationTable(bounds.revocations, bounds.revocations_total)
        self.grants = SubscriptionGrants(self.revoked, runtime.clock, bounds.deadlines, runtime.metrics)
        self.rechecks = Rechecks(decisions, runtime)
        self.subscriptions = Subscriptions(
            gate,
            decisions,
            self._membership,
            self.presence,
            self.grants,
            self.rechecks,
            EmptyChannels(gate, broker, publisher, hooks, bounds.hook_answers, runtime),
            channel_facts,
            runtime,
            bounds.limits.subscriptions,
        )
        self.history = HistoryReader(
            gate, broker, signer, store_runtime.clock, bounds.history_pages, bounds.outbox.recovery_bytes
        )
        self.connection_context = ConnectionContext(
            runtime.clock,
            runtime.metrics,
            scheduler,
            encoder,
            bounds.limits.batch,
            bounds.outbox,
            on_close=self._stop_delivery,
        )
        outbox = runtime.metrics.outbox
        outbox.max_outbox_bytes.set(bounds.outbox.node_bytes)
        outbox.outbox_bytes.set_function(lambda: self.budget.used)
        outbox.outbox_used_ratio.set_function(lambda: self.budget.used_ratio)

    def start(self) -> None:
        """Starts the position checks and the renewal of presence. The broker must have started."""
        self.relay.start()
        self.presence.start()

    def drain(self) -> None:
        """From now on, users and channels that leave are gone for other nodes only when their entries expire."""
        self.presence.drain()
        if self.facts is not None:
            self.facts.drain()

    def close(self) -> None:
        """Cancels the timers. Presence entries expire in the store."""
        self.grants.close()
        self.rechecks.close()
        self.presence.close()
        self.relay.close()

    def _deliver_here(self, event: Event) -> None:
        """Sends an ephemeral event only to this node's subscribers."""
        room = self.hub.get(event.channel)
        if room is not None and room.is_listening():
            room.push(event_frame(event, self._clock.monotonic()), 0.0)

    def _channels_with_presence(self) -> Iterator[ChannelKey]:
        return (room.key for room in self.hub.rooms() if room.is_broker_subscribed and room.spec.presence)

    def _stop_delivery(self, connection: Connection, code: CloseCode, reason: str) -> None:
        if code is CloseCode.SLOW_CONSUMER:
            self._metrics.outbox.slow_consumers.inc()
            self._recent_clients.record_slow_consumer(connection.slot.network, connection.session.identity)
        for subscription in connection.session.subscriptions:
            self._membership.detach(connection, subscription)
