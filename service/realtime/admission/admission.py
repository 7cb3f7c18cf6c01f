"""Who may come in, and how much they may send: caps on connections, rates of messages."""

from __future__ import annotations

import ipaddress
from collections import Counter
from functools import lru_cache
from random import uniform
from typing import Any

import structlog

from service.core.accept_throttle import AcceptThrottle
from service.core.adaptive_rate import AdaptiveRate
from service.core.backoff import jittered
from service.core.clock import Clock
from service.core.identity import Identity
from service.core.limits import Limits, Rollout
from service.core.token_bucket import KeyedBuckets
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Command, Ready, Subscribe, Unsubscribe
from service.realtime.admission.quota import ConnectionQuota, cap_reached
from service.realtime.connections.connection import Connection
from service.realtime.connections.rates import ConnectionRates, Exceeded, Kind, Rates
from service.telemetry.metrics import Metrics
from service.telemetry.outage import OutageLog

SLICE = 1_000
"""Buckets that are forgotten at a time."""
FAILED_SHARE = 0.01
"""How much of an address's burst a request of the backend API without a valid key uses up."""

MANY = 100
"""Connections of a node, more than half of which one client would not have."""

_log = structlog.get_logger("admission")


@lru_cache(maxsize=4096)  # behind a proxy, or in a storm, the same ones come again and again
def network_of(address: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that an IPv6 subscriber controls."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class ConnectionSlot:
    """One connection's place under the caps, taken before its WebSocket exists and given back once."""

    __slots__ = ("_admission", "_identity", "_open", "network", "rates")

    rates: ConnectionRates
    """What the connection may send; there is none before it is identified."""

    def __init__(self, admission: Admission, network: str) -> None:
        self._admission = admission
        self._identity: Identity | None = None
        self._open = True
        self.network = network

    async def identify(self, identity: Identity) -> None:
        """Counts the seat for its tenant and user. Raises ServiceError(TOO_MANY_CONNECTIONS); it must be released then."""
        if self._identity is None:
            self._admission.count_identity(identity)
            self._identity = identity  # before anything is awaited: whoever releases it meanwhile gives this back too
            self.rates = self._admission.rates.acquire(self.network, identity)
            if self._admission.caps.is_shared:
                await self._admission.caps.confirm(identity)

    def release(self) -> None:
        """Gives the seat back; harmless the second time."""
        if self._open:
            self._open = False
            self._admission.give_back(self.network, self._identity)


class Admission:
    """Caps and rates of this node. A `network` is what `network_of` makes of a client's address; `caps` counts by tenant and
    user, on all nodes."""

    def __init__(self, limits: Limits, rollout: Rollout, caps: ConnectionQuota, clock: Clock, metrics: Metrics) -> None:
        self._limits = limits
        self.caps = caps
        self._clock = clock
        self._metrics = metrics
        self.max_connections = limits.connections
        """`limits.connections`, or what the process has descriptors for."""
        self._total = 0
        self._pending = 0
        self._per_ip: Counter[str] = Counter()
        self._connects = KeyedBuckets(limits.connect_rate_per_ip, limits.tracked)
        self._api_addresses = KeyedBuckets(limits.api_rate_per_ip, limits.tracked)
        self._api_keys = KeyedBuckets(limits.api_rate_per_key, limits.tracked)
        self.rates = Rates(limits)
        """Of all connections: each takes its own with its seat, and gives them back with it."""
        now = clock.monotonic()
        self._accept_throttle = AcceptThrottle(rollout.accept_rate, now)
        self._accept_rate = AdaptiveRate(rollout.accept_rate, rollout.accept_max_lag, now)
        self._overload = OutageLog(_log, "accept_rate_reduced", "accept_rate_restored", clock.monotonic, reminds=False)
        metrics.limits.accept_rate.set(rollout.accept_rate.per_second)
        self.draining = False

    @property
    def total(self) -> int:
        """Connections under the caps, those too that are still being checked."""
        return self._total

    def is_proxy(self, network: str) -> bool:
        """Whether so many of the connections come from this address that it must stand for many clients."""
        return self._total >= MANY and 2 * self._per_ip.get(network, 0) > self._total

    def lower_connections(self, cap: int) -> None:
        """Sets the cap on connections, to what the process has descriptors for."""
        self.max_connections = cap
        self._metrics.connections.max_connections.set(cap)

    def check_open(self) -> None:
        """Raises ServiceError(DRAINING) if the node takes no new connections."""
        if self.draining:
            raise ServiceError(ErrorCode.DRAINING, "this node is shutting down", retry_after=jittered(1.0))

    def check_connect_rate(self, network: str) -> None:
        """Raises ServiceError(RATE_LIMITED) if the address asks for upgrades or tickets too often."""
        now = self._clock.monotonic()
        bucket = self._connects.bucket(network, now)
        if bucket.acquire(now):
            raise self._rate_limited(
                "connect", "too many connection attempts from this address", bucket.schedule_retry(now)
            )

    def check_api_address(self, network: str) -> None:
        """Takes a request of the backend API, whose key is still to be looked at. Raises ServiceError(RATE_LIMITED)."""
        now = self._clock.monotonic()
        bucket = self._api_addresses.bucket(network, now)
        if bucket.acquire(now):
            raise self._rate_limited(
                "api_ip", "too many requests from this address", bucket.schedule_retry(now), scope="ip"
            )

    def check_api_key(self, network: str, tenant: str, key: str) -> None:
        """Takes a request with a good key, by its name, after `check_api_address`. Raises ServiceError(RATE_LIMITED); then it has
        cost the address nothing."""
        now = self._clock.monotonic()
        bucket = self._api_keys.bucket((tenant, key), now)
        if bucket.acquire(now):
            self._api_addresses.bucket(network, now).refund()
            raise self._rate_limited(
                "api_key", "too many requests with this API key", bucket.schedule_retry(now), scope="key"
            )

    def charge_failed_api_request(self, network: str) -> None:
        """Makes a request without a good key dearer for its address than others."""
        cost = self._limits.api_rate_per_ip.burst * FAILED_SHARE
        self._api_addresses.bucket(network, self._clock.monotonic()).charge(max(0.0, cost - 1.0))

    def _rate_limited(self, metric: str, message: str, wait: float, **details: Any) -> ServiceError:
        self._metrics.limits.rate_limited.labels(scope=metric).inc()
        # Many can be refused at the same moment, each for a bucket of its own.
        told = round(uniform(wait, 1.25 * wait), 3)  # noqa: S311  # spreads load, guards nothing
        return ServiceError(ErrorCode.RATE_LIMITED, message, **details, retry_after=told)

    def check_caps(self, network: str) -> None:
        """Raises ServiceError(TOO_MANY_CONNECTIONS) if the node or the address is full."""
        limits, of_address = self._limits, self._per_ip.get(network, 0)
        if self._total >= self.max_connections:
            raise cap_reached("connections", self.max_connections, self._metrics)
        if self._pending >= limits.pending:
            raise cap_reached("pending", limits.pending, self._metrics)
        if of_address >= limits.connections_per_ip:
            raise cap_reached("connections_per_ip", limits.connections_per_ip, self._metrics)

    def enter(self, *, is_upgrade: bool, is_browser: bool) -> None:
        """Counts an upgrade that is about to be accepted; a plain request only asks. Raises ServiceError(OVERLOADED), with a
        moment of its own to come back, if too many have been accepted lately."""
        # A browser cannot read why its upgrade was refused, and its page asks again: the two get one place between them.
        share = 0.5 if is_browser or not is_upgrade else 1.0
        now = self._clock.monotonic()
        wait = self._accept_throttle.acquire(now, share) if is_upgrade else self._accept_throttle.check(now, share)
        if wait:
            self._metrics.limits.limit_hits.labels(limit="accept_rate").inc()
            raise ServiceError(
                ErrorCode.OVERLOADED, "this node accepts no more connections at the moment", retry_after=round(wait, 3)
            )

    def leave(self) -> None:
        """Takes back that an upgrade has entered: it was refused for something else."""
        self._accept_throttle.refund()

    @property
    def accept_rate(self) -> float:
        """Upgrades a second that are accepted at present."""
        return self._accept_rate.rate.per_second

    def observe_lag(self, lag: float) -> None:
        """Takes how late the event loop is, in seconds: a slow node accepts fewer upgrades than it may."""
        adaptive, now = self._accept_rate, self._clock.monotonic()
        before = adaptive.rate
        adaptive.observe(lag, now)
        if adaptive.rate is before:
            return
        self._accept_throttle.set_rate(adaptive.rate, now)
        self._metrics.limits.accept_rate.set(adaptive.rate.per_second)
        if adaptive.is_reduced:
            self._overload.failed(lag=round(lag, 3), per_second=adaptive.rate.per_second)
        else:
            self._overload.recovered(per_second=adaptive.rate.per_second)

    def acquire_slot(self, network: str) -> ConnectionSlot:
        """Counts a connection that has passed `check_caps`; it is pending until it is identified."""
        self._total += 1
        self._pending += 1
        self._per_ip[network] += 1
        self._metrics.connections.pending_connections.inc()
        return ConnectionSlot(self, network)

    def count_identity(self, identity: Identity) -> None:
        """For Seat alone."""
        self.caps.take(identity)
        self._pending -= 1
        self._metrics.connections.pending_connections.dec()

    def give_back(self, network: str, identity: Identity | None) -> None:
        """For Seat alone."""
        self._total -= 1
        self._per_ip[network] -= 1
        if self._per_ip[network] <= 0:
            del self._per_ip[network]
        if identity is None:
            self._pending -= 1
            self._metrics.connections.pending_connections.dec()
        else:
            self.caps.give_back(identity)
            self.rates.release(network, identity)

    def check_rate(self, connection: Connection, command: Command | None) -> None:
        """Takes what a message costs from every bucket that it counts for. Raises ServiceError(RATE_LIMITED); then it has cost
        nothing. `command` is None for a message that is none.

        The first `ready` costs nothing, and leaving a channel was paid for by joining it: a client whose `ready` or
        `unsubscribe` is refused would be deaf, or present where it is not.
        """
        rates = connection.slot.rates
        if isinstance(command, Subscribe):
            self._take_subscribes(rates, 1)
            return
        session = connection.session
        if isinstance(command, Unsubscribe) and session.is_subscribed(command.channel):
            return
        if isinstance(command, Ready) and not session.is_ready:
            return
        exceeded = self.rates.take_message(rates, self._clock.monotonic())
        if exceeded is not None:
            raise self._above_rate(exceeded, "messages")

    def check_subscribes(self, slot: ConnectionSlot, count: int, *, is_upgrade: bool) -> None:
        """Takes what the channels in an upgrade's address cost; a plain request only asks. Raises ServiceError(RATE_LIMITED)."""
        self._take_subscribes(slot.rates, count)
        if not is_upgrade:
            self.rates.give_back(slot.rates, "subscribes", count)

    def _take_subscribes(self, rates: ConnectionRates, count: int) -> None:
        exceeded = self.rates.take_subscribes(rates, self._clock.monotonic(), count)
        if exceeded is not None:
            raise self._above_rate(exceeded, "subscribes")

    def _above_rate(self, exceeded: Exceeded, kind: Kind) -> ServiceError:
        scope = exceeded.scope
        metric = scope if kind == "messages" else f"{scope}_{kind}"
        return self._rate_limited(metric, f"too many {kind} from this {scope}", exceeded.wait, scope=scope)

    def tidy(self, now: float) -> None:
        """Forgets users and addresses that have been quiet: of most who are connected there is nothing to remember."""
        for buckets in (self._connects, self._api_addresses, self._api_keys):
            buckets.evict_full(now, SLICE)
        self.rates.forget_full(now, SLICE)

    def is_abusive(self, connection: Connection, refusal: ServiceError) -> bool:
        """Notes a frame with messages above a rate; True once there were too many lately."""
        return self.rates.is_abusive(connection.slot.rates, refusal.details["scope"], self._clock.monotonic())
