"""Who may come in, and how much they may send: caps on connections, rates of messages."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from functools import lru_cache

from service.core.clock import Clock
from service.core.identity import Identity
from service.core.limits import KeyedBuckets, Limits, Rollout
from service.core.turnstile import Turnstile
from service.errors import ErrorCode, ServiceError
from service.realtime.caps import Caps
from service.realtime.connection import Connection
from service.telemetry.metrics import Metrics

VIOLATION_WINDOW = 10.0
"""Seconds within which `limits.rate_violations` messages above a rate end a connection."""


SLICE = 1_000
"""Buckets that are forgotten at a time."""


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


class Seat:
    """One connection's place under the caps, taken before its WebSocket exists and given back once."""

    __slots__ = ("_admission", "_identity", "_open", "network")

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
            await self._admission.caps.confirm(identity)

    def release(self) -> None:
        """Gives the seat back; harmless the second time."""
        if self._open:
            self._open = False
            self._admission.give_back(self.network, self._identity)


class Admission:
    """Caps and rates of this node. A `network` is what `network_of` makes of a client's address; `caps` counts by tenant and
    user, on all nodes."""

    def __init__(self, limits: Limits, rollout: Rollout, caps: Caps, clock: Clock, metrics: Metrics) -> None:
        self._limits = limits
        self.caps = caps
        self._clock = clock
        self._metrics = metrics
        self._total = 0
        self._pending = 0
        self._per_ip: Counter[str] = Counter()
        self._connects = KeyedBuckets(limits.connect_rate_per_ip, limits.tracked)
        self._users = KeyedBuckets(limits.user_rate, limits.tracked)
        self._ips = KeyedBuckets(limits.ip_rate, limits.tracked)
        self._turnstile = Turnstile(rollout.accept_rate, clock.monotonic())
        self._tenants = KeyedBuckets(limits.tenant_rate, limits.tracked)
        self.draining = False

    def check_open(self) -> None:
        """Raises ServiceError(DRAINING) if the node takes no new connections."""
        if self.draining:
            raise ServiceError(ErrorCode.DRAINING, "this node is shutting down", retry_after=1)

    def check_connect_rate(self, network: str) -> None:
        """Raises ServiceError(RATE_LIMITED) if the address asks for upgrades or tickets too often."""
        wait = self._connects.take(network, self._clock.monotonic())
        if wait:
            self._metrics.rate_limited.labels(scope="connect").inc()
            raise ServiceError(
                ErrorCode.RATE_LIMITED, "too many connection attempts from this address", retry_after=math.ceil(wait)
            )

    def check_caps(self, network: str) -> None:
        """Raises ServiceError(TOO_MANY_CONNECTIONS) if the node or the address is full."""
        self._cap("connections", self._total, self._limits.connections)
        self._cap("pending", self._pending, self._limits.pending)
        self._cap("connections_per_ip", self._per_ip[network], self._limits.connections_per_ip)

    def enter(self, *, is_upgrade: bool, is_browser: bool) -> None:
        """Counts an upgrade that is about to be accepted; a plain request only asks. Raises ServiceError(OVERLOADED), with a
        moment of its own to come back, if too many have been accepted lately."""
        # A browser cannot read why its upgrade was refused, and its page asks again: the two get one place between them.
        share = 0.5 if is_browser or not is_upgrade else 1.0
        now = self._clock.monotonic()
        wait = self._turnstile.enter(now, share) if is_upgrade else self._turnstile.look(now, share)
        if wait:
            self._metrics.limit_hits.labels(limit="accept_rate").inc()
            raise ServiceError(
                ErrorCode.OVERLOADED, "this node accepts no more connections at the moment", retry_after=round(wait, 3)
            )

    def leave(self) -> None:
        """Takes back that an upgrade has entered: it was refused for something else."""
        self._turnstile.leave()

    def take_seat(self, network: str) -> Seat:
        """Counts a connection that has passed `check_caps`; it is pending until it is identified."""
        self._total += 1
        self._pending += 1
        self._per_ip[network] += 1
        self._metrics.pending.inc()
        return Seat(self, network)

    def count_identity(self, identity: Identity) -> None:
        """For Seat alone."""
        self.caps.take(identity)
        self._pending -= 1
        self._metrics.pending.dec()

    def give_back(self, network: str, identity: Identity | None) -> None:
        """For Seat alone."""
        self._total -= 1
        self._per_ip[network] -= 1
        if self._per_ip[network] <= 0:
            del self._per_ip[network]
        if identity is None:
            self._pending -= 1
            self._metrics.pending.dec()
        else:
            self.caps.give_back(identity)

    def _cap(self, name: str, used: int, limit: int) -> None:
        if used >= limit:
            self._metrics.limit_hits.labels(limit=name).inc()
            raise ServiceError(
                ErrorCode.TOO_MANY_CONNECTIONS, f"limits.{name} ({limit}) is reached", scope=name, retry_after=5
            )

    def check_rate(self, connection: Connection) -> None:
        """Takes one inbound message from every bucket it counts for. Raises ServiceError(RATE_LIMITED)."""
        now = self._clock.monotonic()
        identity = connection.session.identity
        wait = connection.bucket.take(now)
        scope = "connection"
        if not wait and not identity.is_anonymous:
            wait, scope = self._users.take((identity.tenant, identity.user), now), "user"
        if not wait:
            wait, scope = self._ips.take(connection.seat.network, now), "ip"
        if not wait:
            wait, scope = self._tenants.take(identity.tenant, now), "tenant"
        if wait:
            self._metrics.rate_limited.labels(scope=scope).inc()
            raise ServiceError(
                ErrorCode.RATE_LIMITED,
                f"too many messages from this {scope}",
                scope=scope,
                retry_after=round(wait, 3),
            )

    def tidy(self, now: float) -> None:
        """Forgets users and addresses that have been quiet: of most who are connected there is nothing to remember."""
        for buckets in (self._connects, self._users, self._ips):
            buckets.forget_full(now, SLICE)

    def is_abusive(self, connection: Connection) -> bool:
        """Notes a message above the rate; True once there were too many lately."""
        now = self._clock.monotonic()
        recent = (*(at for at in connection.violations if at > now - VIOLATION_WINDOW), now)
        connection.violations = recent
        return len(recent) > self._limits.rate_violations
