"""Counts refused clients by cause: the client, the service, or a drain.

So alerts can distinguish an outage from one client that retries in a loop. For refusals that clients cause, the different
addresses are counted, too.
"""

from __future__ import annotations

from typing import Literal

from service.core.clock import Clock
from service.core.recent_keys import RecentKeys
from service.errors import ErrorCode, ServiceError
from service.realtime.admission.slots import Slots
from service.telemetry.metrics import Metrics

Door = Literal["upgrade", "hello", "ticket", "stream", "emit", "call", "poll", "history"]
"""The step at which a client is refused."""
Cause = Literal["client", "service", "draining"]
"""`client`: its own message or limit. `service`: a limit or a fault of this node. `draining`: the node shuts down."""

WINDOW = 300.0
"""Seconds that a refused address is counted."""
MAX_ADDRESSES = 10_000
"""Maximum number of counted addresses. One more evicts the address that was refused longest ago."""

_SERVICE_CODES = frozenset({ErrorCode.OVERLOADED, ErrorCode.BROKER_UNAVAILABLE, ErrorCode.INTERNAL})
_CLIENT_CAPS = frozenset({"connections_per_ip", "connections_per_user"})
"""Caps that a single client can reach."""


class Refusals:
    """Counts the refusals of one node."""

    def __init__(self, slots: Slots, clock: Clock, metrics: Metrics) -> None:
        self._slots = slots
        self._metrics = metrics
        self._addresses: RecentKeys[str] = RecentKeys(clock, WINDOW, MAX_ADDRESSES)
        metrics.clients.refused_addresses.set_function(self._addresses.__len__)

    def count(self, error: ServiceError, door: Door, network: str) -> None:
        """Counts a refusal of a client at this address."""
        cause = self._cause(error, network)
        self._metrics.clients.upgrade_refusals.labels(cause, door, error.code.code).inc()
        if cause == "client":
            self._addresses.add(network)

    def _cause(self, error: ServiceError, network: str) -> Cause:
        if error.code is ErrorCode.DRAINING:
            return "draining"
        if error.code in _SERVICE_CODES:
            return "service"
        if error.code is ErrorCode.TOO_MANY_CONNECTIONS and error.details.get("scope") not in _CLIENT_CAPS:
            return "service"
        if error.code in (ErrorCode.TOO_MANY_CONNECTIONS, ErrorCode.RATE_LIMITED) and self._slots.is_proxy(network):
            return "service"  # `proxy.hops` is too low: the limits of one address refuse all clients
        return "client"
