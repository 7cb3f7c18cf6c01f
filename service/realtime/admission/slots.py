"""The slots of this node: each connection occupies one from before its WebSocket exists until it has ended."""

from __future__ import annotations

import ipaddress
from collections import Counter
from functools import lru_cache

from service.core.identity import Identity
from service.core.limits import Limits
from service.realtime.admission.message_rates import ConnectionRates, MessageRates
from service.realtime.admission.quota import ConnectionQuota, cap_reached
from service.telemetry.metrics import Metrics

MIN_PROXY_CONNECTIONS = 100
"""Connections of a node, more than half of which one client would not have."""


@lru_cache(maxsize=4096)  # behind a proxy, or in a storm, the same addresses come again and again
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
    """One connection's place under the caps, released once."""

    __slots__ = ("_identity", "_is_open", "_slots", "network", "rates")

    rates: ConnectionRates
    """How much the connection may send. Not set before it is identified."""

    def __init__(self, slots: Slots, network: str) -> None:
        self._slots = slots
        self._identity: Identity | None = None
        self._is_open = True
        self.network = network

    async def identify(self, identity: Identity) -> None:
        """Counts the slot for its tenant and user. Raises ServiceError(TOO_MANY_CONNECTIONS); release the slot then."""
        if self._identity is None:
            self.rates = self._slots.identify(self.network, identity)
            self._identity = identity  # before anything is awaited: a release meanwhile must release this, too
            if self._slots.quota.is_shared:
                await self._slots.quota.confirm(identity)

    def release(self) -> None:
        """Frees the slot. Harmless the second time."""
        if self._is_open:
            self._is_open = False
            self._slots.release(self.network, self._identity)


class Slots:
    """Counts the connections of this node: in all, unidentified, and by address."""

    def __init__(self, limits: Limits, quota: ConnectionQuota, rates: MessageRates, metrics: Metrics) -> None:
        self._limits = limits
        self.quota = quota
        self._rates = rates
        self._metrics = metrics
        self.max_connections = limits.connections
        """`limits.connections`, or what the process has file descriptors for."""
        self.total = 0
        """Occupied slots."""
        self._pending = 0
        """Occupied slots without an identity."""
        self._by_network: Counter[str] = Counter()

    def is_proxy(self, network: str) -> bool:
        """Whether so many connections come from this address that it must stand for many clients."""
        return self.total >= MIN_PROXY_CONNECTIONS and 2 * self._by_network.get(network, 0) > self.total

    def lower_max_connections(self, max_connections: int) -> None:
        """Lowers the cap to what the process has file descriptors for."""
        self.max_connections = max_connections
        self._metrics.connections.max_connections.set(max_connections)

    def check(self, network: str) -> None:
        """Raises ServiceError(TOO_MANY_CONNECTIONS) if the node or the address is full."""
        limits = self._limits
        if self.total >= self.max_connections:
            raise cap_reached("connections", self.max_connections, self._metrics)
        if self._pending >= limits.pending:
            raise cap_reached("pending", limits.pending, self._metrics)
        if self._by_network.get(network, 0) >= limits.connections_per_ip:
            raise cap_reached("connections_per_ip", limits.connections_per_ip, self._metrics)

    def acquire(self, network: str) -> ConnectionSlot:
        """Occupies a slot for a connection that has passed `check`."""
        self.total += 1
        self._pending += 1
        self._by_network[network] += 1
        self._metrics.connections.pending_connections.inc()
        return ConnectionSlot(self, network)

    def identify(self, network: str, identity: Identity) -> ConnectionRates:
        """Reserves the quota of an identity; returns the rates that its connection shares. For ConnectionSlot."""
        self.quota.reserve(identity)
        self._pending -= 1
        self._metrics.connections.pending_connections.dec()
        return self._rates.register(network, identity)

    def release(self, network: str, identity: Identity | None) -> None:
        """Frees a slot. For ConnectionSlot."""
        self.total -= 1
        self._by_network[network] -= 1
        if self._by_network[network] <= 0:
            del self._by_network[network]
        if identity is None:
            self._pending -= 1
            self._metrics.connections.pending_connections.dec()
        else:
            self.quota.release(identity)
            self._rates.unregister(network, identity)
