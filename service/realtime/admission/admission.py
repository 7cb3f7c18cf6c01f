"""Decides which connections this node accepts, and how much each may send."""

from __future__ import annotations

from service.core.backoff import jittered
from service.core.clock import Clock
from service.core.identity import Identity, anonymous
from service.core.limits import Limits, Rollout
from service.core.session import Session
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Command, Publish, Ready, Subscribe, Unsubscribe
from service.realtime.admission.advertised_limits import AdvertisedLimits
from service.realtime.admission.client_versions import ClientVersions
from service.realtime.admission.message_rates import ConnectionRates, Exceeded, Kind, MessageRates
from service.realtime.admission.quota import ConnectionQuota
from service.realtime.admission.recent_clients import RecentClients
from service.realtime.admission.refusals import Refusals
from service.realtime.admission.request_rates import RequestRates, rate_limited
from service.realtime.admission.slots import ConnectionSlot, Slots
from service.realtime.admission.upgrade_rate import UpgradeRate
from service.telemetry.metrics import Metrics

MAX_EVICTED = 1_000
"""Idle buckets of one kind that one `evict_idle` evicts."""


class Admission:
    """The caps and rates of this node.

    Example:
        admission.requests.check_connect(network)
        admission.slots.check(network)
        slot = admission.slots.acquire(network)
        waiting = slot.identify(identity)
        admission.check_message(slot, session, command)
        slot.release()
    """

    def __init__(
        self,
        limits: Limits,
        rollout: Rollout,
        rates: MessageRates,
        quota: ConnectionQuota,
        clock: Clock,
        metrics: Metrics,
        contract_hash: str = "",
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._rates = rates
        self.slots = Slots(limits, quota, rates, metrics)
        self.requests = RequestRates(limits, clock, metrics)
        self.upgrades = UpgradeRate(rollout, clock, metrics)
        self.quota = quota
        self.refusals = Refusals(self.slots, clock, metrics)
        self.recent_clients = RecentClients(self.slots, limits.connections, clock, metrics)
        self.advertised_limits = AdvertisedLimits(limits)
        self.client_versions = ClientVersions(limits.client_versions, contract_hash, metrics)
        self._is_draining = False
        metrics.connections.max_connections.set(limits.connections)

    def start(self) -> None:
        """Starts to renew this node's claims in the quota store."""
        self.quota.start()

    async def close(self) -> None:
        """Frees the places of connections that have ended, and cancels the timers."""
        await self.quota.flush()
        self.quota.close()

    @property
    def is_draining(self) -> bool:
        """True if this node accepts no new connections because it shuts down."""
        return self._is_draining

    def set_draining(self, *, draining: bool) -> None:
        """Stops accepting new connections, or starts again."""
        self._is_draining = draining

    def check_open(self) -> None:
        """Raises ServiceError(DRAINING) if this node accepts no new connections."""
        if self._is_draining:
            raise ServiceError(ErrorCode.DRAINING, "this node is shutting down", retry_after=jittered(1.0))

    def check_message(self, slot: ConnectionSlot, session: Session, command: Command | None) -> None:
        """Counts a message in every bucket of its connection. `command` is None for a message that is not a command.

        Raises ServiceError(RATE_LIMITED); then no bucket has counted the message.

        The first `ready` and each `unsubscribe` from a subscribed channel are free. If they were refused, the client would
        receive nothing, or would stay present in the channel.
        """
        if type(command) is not Publish:
            if isinstance(command, Subscribe):
                self._count_subscribes(slot, 1)
                return
            if isinstance(command, Unsubscribe) and session.is_subscribed(command.channel):
                return
            if isinstance(command, Ready) and not session.is_ready:
                return
        exceeded = self._rates.acquire_message(slot, self._clock.monotonic())
        if exceeded is not None:
            raise self._rate_limited(exceeded, "messages")

    def check_sender(self, network: str, identity: Identity, nodes: int, messages: int = 1) -> None:
        """Counts messages that come over HTTP, without a connection. `nodes`: all that the client may send to.

        Raises ServiceError(RATE_LIMITED). A message costs the shared rates of its user, address and tenant as much as one over
        a connection.
        """
        self.requests.check_sender(network, identity, nodes, messages)
        self._check_passing(network, identity, messages)

    def check_page(self, network: str, tenant: str) -> None:
        """Counts the read of a history page by its signed address, which names no user. Raises ServiceError(RATE_LIMITED)."""
        self._check_passing(network, anonymous(tenant), 1)

    def _check_passing(self, network: str, identity: Identity, messages: int) -> None:
        rates = self._rates.register(network, identity)
        exceeded = self._rates.acquire(rates, "messages", self._clock.monotonic(), messages)
        self._rates.unregister(network, identity)
        if exceeded is not None:
            raise self._rate_limited(exceeded, "messages")

    def check_polled_channel(self, slot: ConnectionSlot, identity: Identity, nodes: int) -> None:
        """Counts a channel that a poll reads at the store, as a subscribe. Raises ServiceError(RATE_LIMITED)."""
        self.requests.check_polled_channel(slot.network, identity, nodes)
        self._count_subscribes(slot, 1)

    def check_subscribes(self, slot: ConnectionSlot, count: int, *, is_upgrade: bool) -> None:
        """Counts the channels in an upgrade's URL. Only checks them for a plain request. Raises ServiceError(RATE_LIMITED)."""
        self._count_subscribes(slot, count)
        if not is_upgrade:
            self._rates.refund(slot, "subscribes", count)

    def is_abusive(self, slot: ConnectionSlot, refusal: ServiceError) -> bool:
        """Records a frame with messages above a rate. True if the connection had too many such frames lately."""
        return self._rates.is_abusive(slot, refusal.details["scope"], self._clock.monotonic())

    def evict_idle(self, now: float) -> None:
        """Evicts idle users and addresses whose buckets are full. A new full bucket replaces them when they return."""
        self._rates.reset_full(now)
        self.requests.evict_full(now, MAX_EVICTED)
        self._rates.evict_full(now, MAX_EVICTED)

    def _count_subscribes(self, rates: ConnectionRates, count: int) -> None:
        exceeded = self._rates.acquire_subscribes(rates, self._clock.monotonic(), count)
        if exceeded is not None:
            raise self._rate_limited(exceeded, "subscribes")

    def _rate_limited(self, exceeded: Exceeded, kind: Kind) -> ServiceError:
        scope = exceeded.scope
        metric = scope if kind == "messages" else f"{scope}_{kind}"
        return rate_limited(self._metrics, metric, f"too many {kind} from this {scope}", exceeded.wait, scope=scope)
