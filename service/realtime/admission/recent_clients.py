"""Counts the different clients that connected, closed or read too slowly in the last minutes.

One client that reconnects in a loop causes as many connects as many clients. So alerts about many clients read these counts, not
the counters of connects. docs/adr/0038-alerts-on-call.md defines a client.
"""

from __future__ import annotations

from itertools import count

from service.core.clock import Clock
from service.core.identity import Identity
from service.core.quota import QuotaScope
from service.core.recent_estimate import RecentEstimate
from service.protocol.close import CloseCode
from service.realtime.admission.slots import Slots
from service.telemetry.metrics import Metrics

CONNECT_WINDOW = 120.0
"""Seconds that a client is counted after it connected. Short, because its alert is about a burst."""
CLOSE_WINDOW = 300.0
"""Seconds that a client is counted after one of its connections closed."""
MIN_CLIENTS = 10_000
"""Clients up to which each count is precise to 1 %, or `limits.connections` if that is more: as after a reconnect of all."""

_ABNORMAL = frozenset(
    close.code for close in (CloseCode.ABNORMAL, CloseCode.INTERNAL, CloseCode.OVERLOAD, CloseCode.DEADLINE)
)
"""Close codes of connections that ended without a close frame or by a fault."""


class RecentClients:
    """Counts the recent clients of one node. A client is a user at an address, or an address without a user.

    If most connections have the same user and address, they come through one NAT, or through a proxy that `proxy.hops` does not
    count. Then each connection counts as a client.
    """

    def __init__(self, slots: Slots, max_connections: int, clock: Clock, metrics: Metrics) -> None:
        self._slots = slots
        self._clock = clock
        max_clients = max(MIN_CLIENTS, max_connections)
        self._connected = RecentEstimate(clock, CONNECT_WINDOW, max_clients)
        self._closed = RecentEstimate(clock, CLOSE_WINDOW, max_clients)
        self._abnormally_closed = RecentEstimate(clock, CLOSE_WINDOW, max_clients)
        self._slow = RecentEstimate(clock, CLOSE_WINDOW, max_clients)
        self._serial = count()
        self._shared: tuple[str, str, str] | None = None
        """The user and address of most connections. Kept until `_shared_until`, because a mass reconnect closes them first."""
        self._shared_until = 0.0
        metrics.clients.recent_connect_clients.set_function(self._connected.__len__)
        metrics.clients.recent_close_clients.set_function(self._closed.__len__)
        metrics.clients.recent_abnormal_close_clients.set_function(self._abnormally_closed.__len__)
        metrics.clients.recent_slow_clients.set_function(self._slow.__len__)

    def record_connect(self, network: str, identity: Identity) -> None:
        """Counts the client of a connection that has authenticated."""
        self._connected.add(self._key(network, identity))

    def record_close(self, network: str, identity: Identity | None, code: int) -> None:
        """Counts the client of a connection that closed with this code. Call it before the connection releases its slot."""
        key = self._key(network, identity)
        self._closed.add(key)
        if code in _ABNORMAL:
            self._abnormally_closed.add(key)

    def record_slow_consumer(self, network: str, identity: Identity) -> None:
        """Counts the client of a connection that is closed because it does not read fast enough."""
        self._slow.add(self._key(network, identity))

    def _key(self, network: str, identity: Identity | None) -> int:
        client = (
            (network, identity.tenant, identity.user) if identity is not None and identity.user else (network, "", "")
        )
        is_proxy = self._slots.is_proxy(network)
        if (is_proxy or client == self._shared) and self._is_shared(client, is_proxy=is_proxy):
            return hash(str(next(self._serial)))  # not the number itself: the estimate needs random bits
        return hash(client)

    def _is_shared(self, client: tuple[str, str, str], *, is_proxy: bool) -> bool:
        """True if most connections have, or recently had, this address and user. Then they belong to many clients."""
        slots = self._slots
        _, tenant, user = client
        if is_proxy:
            connections = slots.quota.count(QuotaScope(tenant, user)) if user else slots.total
            if 2 * connections > slots.total:
                self._shared, self._shared_until = client, self._clock.monotonic() + CLOSE_WINDOW
                return True
        return client == self._shared and self._clock.monotonic() < self._shared_until
