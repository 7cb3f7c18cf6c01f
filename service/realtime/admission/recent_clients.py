"""Counts the different clients behind connects, closes and slow consumers of the last minutes.

One client that connects and ends in a loop makes as many events as a crowd, but is one client. Alerts about many clients read
these counts, not the counters of events. docs/adr/0038-alerts-on-call.md says what a client is here.
"""

from __future__ import annotations

from itertools import count

from service.core.clock import Clock
from service.core.identity import Identity
from service.core.quota import QuotaScope
from service.core.recent_keys import RecentKeys
from service.protocol.close import CloseCode
from service.realtime.admission.slots import Slots
from service.telemetry.metrics import Metrics

CONNECT_WINDOW = 120.0
"""Seconds that a client is counted after it connected: the alert on it is about a burst."""
CLOSE_WINDOW = 300.0
"""Seconds that a client is counted after a connection of it closed."""
MIN_KEPT = 10_000
"""Clients that each count can hold; more where `limits.connections` is more, so that a storm of all of them is counted whole."""

_ABNORMAL = frozenset(
    close.code for close in (CloseCode.ABNORMAL, CloseCode.INTERNAL, CloseCode.OVERLOAD, CloseCode.DEADLINE)
)
"""Close codes of connections that are broken off or end by a fault."""


class RecentClients:
    """Of one node. A client is a user at an address, or for connections without a user an address.

    Where so many connections have the same user and address that they must be many clients, each connection counts as one:
    they come through a proxy that `proxy.hops` leaves out, or through one NAT.
    """

    def __init__(self, slots: Slots, connections: int, clock: Clock, metrics: Metrics) -> None:
        self._slots = slots
        self._clock = clock
        most = max(MIN_KEPT, connections)
        self._connected: RecentKeys[int] = RecentKeys(clock, CONNECT_WINDOW, most)
        self._closed: RecentKeys[int] = RecentKeys(clock, CLOSE_WINDOW, most)
        self._abnormally_closed: RecentKeys[int] = RecentKeys(clock, CLOSE_WINDOW, most)
        self._slow: RecentKeys[int] = RecentKeys(clock, CLOSE_WINDOW, most)
        self._serial = count()
        self._crowd: tuple[str, str, str] | None = None
        """The user and address that most connections had, until `_crowd_until`: in a storm they leave before they come back."""
        self._crowd_until = 0.0
        metrics.clients.recent_connect_clients.set_function(self._connected.__len__)
        metrics.clients.recent_close_clients.set_function(self._closed.__len__)
        metrics.clients.recent_abnormal_close_clients.set_function(self._abnormally_closed.__len__)
        metrics.clients.recent_slow_clients.set_function(self._slow.__len__)

    def connected(self, network: str, identity: Identity) -> None:
        """Counts the client of a connection that is authenticated."""
        self._connected.add(self._key(network, identity))

    def closed(self, network: str, identity: Identity | None, code: int) -> None:
        """Counts the client of a connection that closed with this code. Call it while the connection has its seat."""
        key = self._key(network, identity)
        self._closed.add(key)
        if code in _ABNORMAL:
            self._abnormally_closed.add(key)

    def slow(self, network: str, identity: Identity) -> None:
        """Counts the client of a connection that is closed because it does not read fast enough."""
        self._slow.add(self._key(network, identity))

    def _key(self, network: str, identity: Identity | None) -> int:
        # Hashes: ten thousands of them are kept, and no names.
        tenant, user = (identity.tenant, identity.user) if identity is not None and identity.user else ("", "")
        client = (network, tenant, user)
        return next(self._serial) if self._is_crowd(client) else hash(client)

    def _is_crowd(self, client: tuple[str, str, str]) -> bool:
        """Whether so many connections have, or had a moment ago, this address and user that they must be many clients."""
        slots = self._slots
        network, tenant, user = client
        if slots.is_proxy(network):
            held = slots.quota.count(QuotaScope(tenant, user)) if user else slots.total
            if 2 * held > slots.total:
                self._crowd, self._crowd_until = client, self._clock.monotonic() + CLOSE_WINDOW
                return True
        return client == self._crowd and self._clock.monotonic() < self._crowd_until
