"""The slots of this node. Each connection occupies one, from before its WebSocket exists until its end."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from functools import lru_cache

from service.core.identity import Identity
from service.core.limits import Limits
from service.realtime.admission.message_rates import ConnectionRates, MessageRates
from service.realtime.admission.quota import ConnectionQuota, cap_reached
from service.telemetry.metrics import Metrics

MIN_PROXY_CONNECTIONS = 100
"""From this many connections on, an address with more than half of them counts as a proxy."""


@lru_cache(maxsize=4096)  # behind a proxy or in a mass reconnect, the same addresses repeat
def network_of(address: str) -> str:
    """Returns what counts as one address: an IPv4 address, or the /64 network of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


class ConnectionSlot(ConnectionRates, eq=False, gc=False, kw_only=True):
    """The place of one connection under the caps, and its rates. One object, to save memory."""

    _slots: Slots | None
    """None once the slot is released."""
    _identity: Identity | None = None

    @property
    def network(self) -> str:
        """The client's address, or its network, by which limits count."""
        return self.address.network

    def identify(self, identity: Identity) -> Awaitable[None] | None:
        """Counts the slot for its tenant and user. Returns what has to be waited for; None if other nodes need not be asked.

        Raises ServiceError(TOO_MANY_CONNECTIONS), at once or at the end of the wait; then release the slot.
        """
        slots = self._slots
        if slots is None or self._identity is not None:
            return None
        slots.identify(self, identity)
        self._identity = identity  # set before the wait, so that a release meanwhile also frees the quota
        return slots.quota.confirm(identity) if slots.quota.is_shared else None

    def release(self) -> None:
        """Frees the slot. A second call does nothing."""
        slots, self._slots = self._slots, None
        if slots is not None:
            slots.release(self, self._identity)


class SessionSlot(ConnectionSlot, eq=False, gc=False, kw_only=True):
    """The place of a session of long polls under the caps. It counts once over all nodes, also between two polls."""

    session: str
    is_moved: bool = False
    """True if the session goes on at another node, which counts it from now on."""

    async def hold(self, identity: Identity, on_moved: Callable[[], None]) -> int:
        """Counts the slot for its tenant and user. Returns what `ConnectionQuota.hold` returns, and raises the same."""
        slots = self._slots
        if slots is None:
            return 0
        slots.identify(self, identity)
        self._identity = identity
        return await slots.quota.hold(identity, self.session, on_moved)

    def move(self, network: str) -> None:
        """Counts the slot for another address, from which the client polls now. Raises ServiceError(TOO_MANY_CONNECTIONS)."""
        if self._slots is not None and network != self.network:
            self._slots.move(self, network)

    def release(self) -> None:
        """Frees the slot. A second call does nothing."""
        slots, identity = self._slots, self._identity
        if slots is not None and identity is not None:
            slots.quota.drop(identity, self.session, is_moved=self.is_moved)
        ConnectionSlot.release(self)


class Slots:
    """Counts the connections of this node: all, those without an identity, and by address."""

    def __init__(self, limits: Limits, quota: ConnectionQuota, rates: MessageRates, metrics: Metrics) -> None:
        self._limits = limits
        self.quota = quota
        self._rates = rates
        self._metrics = metrics
        self.max_connections = limits.connections
        """`limits.connections`, or less if the process has too few file descriptors."""
        self.total = 0
        """Occupied slots."""
        self._pending = 0
        """Occupied slots without an identity."""
        self._pending_gauge = metrics.connections.pending_connections

    @property
    def networks(self) -> int:
        """Addresses that have connections on this node."""
        return len(self._rates.addresses.used)

    def is_proxy(self, network: str) -> bool:
        """True if so many connections come from this address that it must be shared by many clients."""
        if self.total < MIN_PROXY_CONNECTIONS:
            return False
        address = self._rates.addresses.used.get(network)
        return address is not None and 2 * address.connections > self.total

    def lower_max_connections(self, max_connections: int) -> None:
        """Lowers the cap to the number that the process's file descriptors allow."""
        self.max_connections = max_connections
        self._metrics.connections.max_connections.set(max_connections)

    def check(self, network: str) -> None:
        """Raises ServiceError(TOO_MANY_CONNECTIONS) if the node or the address is full."""
        limits = self._limits
        if self.total >= self.max_connections:
            raise cap_reached("connections", self.max_connections, self._metrics)
        if self._pending >= limits.pending:
            raise cap_reached("pending", limits.pending, self._metrics)
        self._check_address(network)

    def _check_address(self, network: str) -> None:
        address = self._rates.addresses.used.get(network)
        if address is not None and address.connections >= self._limits.connections_per_ip:
            raise cap_reached("connections_per_ip", self._limits.connections_per_ip, self._metrics)

    def acquire(self, network: str) -> ConnectionSlot:
        """Occupies a slot for a connection that has passed `check`."""
        self._add_pending()
        return ConnectionSlot(self._rates.addresses.acquire(network), _slots=self)

    def acquire_session(self, network: str, session: str) -> SessionSlot:
        """Occupies a slot for a session of long polls that has passed `check`."""
        self._add_pending()
        return SessionSlot(self._rates.addresses.acquire(network), _slots=self, session=session)

    def _add_pending(self) -> None:
        self.total += 1
        self._pending += 1
        self._pending_gauge.value += 1.0

    def move(self, slot: SessionSlot, network: str) -> None:
        """Counts a slot for another address. For SessionSlot."""
        self._check_address(network)
        before, slot.address = slot.network, self._rates.addresses.acquire(network)
        self._rates.addresses.release(before)

    def identify(self, slot: ConnectionSlot, identity: Identity) -> None:
        """Reserves the quota of an identity. For ConnectionSlot."""
        self.quota.reserve(slot, identity)
        self._pending -= 1
        self._pending_gauge.value -= 1.0

    def release(self, slot: ConnectionSlot, identity: Identity | None) -> None:
        """Frees a slot. For ConnectionSlot."""
        self.total -= 1
        self._rates.addresses.release(slot.address.network)
        if identity is None:
            self._pending -= 1
            self._pending_gauge.value -= 1.0
        else:
            self.quota.release(slot, identity)
