"""The realtime core of one process: builds its parts, and starts and closes them in order.

node = Node(gate, ports, bounds, metrics)
await node.start()
...
await node.lifecycle.drain()
await node.close()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.contract.gate import Gate
from service.core.authenticator import Authenticator
from service.core.broker import Broker
from service.core.clock import Clock
from service.core.hooks import Hooks
from service.core.page_address import PageSigner
from service.core.presence import PresenceStore
from service.core.quota import QuotaStore
from service.core.tickets import TicketStore
from service.core.webhooks import WebhookSender
from service.realtime.admission.admission import Admission
from service.realtime.admission.message_rates import MessageRates
from service.realtime.admission.quota import ConnectionQuota
from service.realtime.bounds import Bounds
from service.realtime.calls import Calls
from service.realtime.cluster.cluster import Cluster
from service.realtime.connections.transport import BatchSender
from service.realtime.decisions import Decisions
from service.realtime.facts.facts import FactConfig, Facts
from service.realtime.facts.sweeper import FactSweeper
from service.realtime.ids import new_id
from service.realtime.lifecycle.availability import Availability
from service.realtime.lifecycle.broker_health import BrokerHealth
from service.realtime.lifecycle.latency_probe import Connect
from service.realtime.lifecycle.lifecycle import Lifecycle
from service.realtime.publisher import Publisher
from service.realtime.remover import Remover
from service.realtime.runtime import Runtime
from service.realtime.streams.streams import Streams
from service.realtime.webhooks.log import WebhookLog
from service.realtime.webhooks.webhooks import Webhooks
from service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Ports:
    """What the node uses from outside the realtime core."""

    broker: Broker
    presence: PresenceStore
    tickets: TicketStore
    quota: QuotaStore
    authenticator: Authenticator
    clock: Clock
    receipt_key: bytes
    """Signs receipts. The same on all nodes."""
    page_keys: Sequence[bytes]
    """The first signs the addresses of history pages, the others still verify them. The same on all nodes."""
    connect: Connect
    """Connects the latency probe to this process."""
    hooks: Hooks | None = None
    """Asks the backend; None where the contract names no hooks."""
    webhooks: WebhookSender | None = None
    """Sends webhooks; None where the settings have no endpoints."""
    facts: PresenceStore | None = None
    """Keeps what webhooks tell the begin and the end of, and publishes nothing; None where they tell of events alone."""
    store_clock: Clock | None = None
    """The store's time, where it differs from `clock`."""
    batch_sender: BatchSender | None = None
    """Writes one frame to many sockets; None where the native sender is not built."""


class Node:
    """Owns the parts of the realtime core. Each part uses only parts that the constructor makes before it.

    A node is started once and closed once.
    """

    def __init__(self, gate: Gate, ports: Ports, bounds: Bounds, metrics: Metrics) -> None:
        self.gate = gate
        self.bounds = bounds
        self.broker = broker = ports.broker
        self.tickets = ports.tickets
        self.runtime = runtime = Runtime.create(ports.clock, metrics)
        store_runtime = runtime.with_clock(ports.store_clock or ports.clock)
        self.decisions = Decisions(gate, ports.hooks, bounds.hook_answers, runtime)
        self.webhook_log = None if ports.webhooks is None else WebhookLog(bounds.webhooks, broker, store_runtime)
        """Takes entries of webhooks; None without endpoints."""
        self.publisher = Publisher(
            gate,
            broker,
            store_runtime.clock,
            metrics,
            ports.hooks if gate.has_hooks else None,
            self.webhook_log if gate.has_event_webhooks else None,
        )
        hooks = ports.hooks if gate.call_names else None
        self.calls = Calls(gate, hooks, bounds.limits.calls, runtime)
        event_webhooks = self.webhook_log if gate.has_event_webhooks else None
        self.remover = Remover(gate, broker, store_runtime.clock, metrics, event_webhooks)
        node_id = new_id()
        rates = MessageRates(bounds.limits)
        self.admission = Admission(
            bounds.limits,
            bounds.rollout,
            rates,
            ConnectionQuota(ports.quota, bounds.limits, rates, runtime, node_id),
            runtime.clock,
            metrics,
            gate.contract_hash,
        )
        self.facts = self._make_facts(ports.facts, node_id, store_runtime)
        """Tells webhooks of clients, channels and users; None where nobody is told."""
        self.streams = Streams(
            gate,
            self.decisions,
            self.publisher,
            ports.hooks if gate.has_content_hooks else None,
            broker,
            ports.presence,
            ports.batch_sender,
            PageSigner(ports.page_keys),
            self.admission,
            self.facts,
            bounds,
            runtime,
            store_runtime,
        )
        self.availability = Availability(
            self.admission,
            self.streams.registry,
            BrokerHealth(broker, runtime, unready_after=bounds.unready_after),
            runtime.tasks,
        )
        self.cluster = Cluster(
            node_id,
            broker,
            ports.authenticator,
            self.availability,
            self.streams,
            bounds,
            runtime,
            store_runtime,
            receipt_key=ports.receipt_key,
        )
        self.webhooks = (
            None
            if self.webhook_log is None or ports.webhooks is None
            else Webhooks(
                self.webhook_log,
                ports.webhooks,
                node_id,
                self._webhook_candidates,
                broker,
                self.streams.relay.subscribe_internally,
                store_runtime,
            )
        )
        """Delivers webhooks, and what the backend API uses of them; None without endpoints."""
        self._sweeper = (
            None
            if self.facts is None or ports.facts is None or not self.facts.is_shared
            else FactSweeper(
                node_id,
                ports.facts,
                self.facts.teller,
                self.facts.lease,
                self.cluster.membership.states,
                store_runtime,
            )
        )
        self.lifecycle = Lifecycle(
            broker,
            ports.quota,
            ports.connect,
            self.availability,
            self.admission,
            self.streams,
            self.cluster,
            self.calls,
            bounds,
            runtime,
        )

    async def start(self) -> None:
        """Starts the broker, then each part. Raises ServiceError if the broker is away, after closing all parts."""
        try:
            await self.broker.start(self.streams.relay)
            self.streams.start()
            self.admission.start()
            self.availability.start()
            await self.cluster.start()
            if self.webhooks is not None:
                await self.webhooks.start()
            if self.facts is not None:
                self.facts.start()
            if self._sweeper is not None:
                self._sweeper.start()
            await self.lifecycle.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Closes each part, then the broker. Call `lifecycle.drain` first."""
        self.lifecycle.close()
        self.availability.close()
        if self._sweeper is not None:
            self._sweeper.close()
        if self.facts is not None:
            await self.facts.close()
        if self.webhooks is not None:
            await self.webhooks.close()
        await self.cluster.close()
        await self.admission.close()
        self.streams.close()
        if self.webhook_log is not None:
            await self.webhook_log.close()
        await self.runtime.tasks.close()
        self.streams.hub.close()
        await self.broker.close()

    def _make_facts(self, store: PresenceStore | None, node_id: str, store_runtime: Runtime) -> Facts | None:
        if store is None or self.webhook_log is None:
            return None
        webhooks = self.bounds.webhooks
        config = FactConfig(
            ttl=self.bounds.presence_ttl,
            debounce=self.bounds.deadlines.presence_leave,
            is_shared=self.admission.quota.is_shared,
            max_waiting=webhooks.waiting_ends,
            client_endpoint=webhooks.client_endpoint,
            client_tenant=webhooks.client_tenant,
        )
        return Facts(node_id, store, self.webhook_log, store_runtime, config)

    def _webhook_candidates(self) -> Sequence[str]:
        """Returns the ids of the live nodes that deliver the same queues of webhooks as this one."""
        digest = self.bounds.webhooks.digest
        states = self.cluster.membership.states()
        others = [node for node, state in states.items() if state.webhooks == digest and not state.draining]
        return others if self.availability.is_draining else [*others, self.cluster.node_id]
