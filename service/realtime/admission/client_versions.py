"""Counts connections by the version of their client, and by the contract that the client was made for."""

from __future__ import annotations

from service.protocol.features import NO_ANNOUNCEMENT, Announcement
from service.telemetry.fast_metrics import OTHER, FastCounter
from service.telemetry.metrics import Metrics

UNKNOWN = "unknown"
"""Both labels of a client that does not announce its name and version."""


class ClientVersions:
    """Counts what clients announce. At most `max_versions` pairs of name and version have counters of their own.

    Clients choose the names, so the first pairs since the start of the node are kept, and all others count as `other`.
    """

    def __init__(self, max_versions: int, contract_hash: str, metrics: Metrics) -> None:
        """`contract_hash`: that of this node's contract; empty if no contract equals it."""
        self._max_versions = max_versions
        self._contract_hash = contract_hash
        self._versions = metrics.clients.client_versions
        self._unknown = self._versions.labels(UNKNOWN, UNKNOWN)
        self._counters: dict[tuple[str, str], FastCounter] = {}
        contracts = metrics.clients.client_contracts
        self._same, self._other, self._none = (contracts.labels(name) for name in ("same", OTHER, "none"))

    def count(self, announcement: Announcement) -> None:
        """Counts a connection that has authenticated."""
        if announcement is NO_ANNOUNCEMENT:  # checked first because it is cheap
            self._unknown.value += 1
            self._none.value += 1
            return
        self._counter(announcement).inc()
        contract = announcement.contract
        if not contract:
            self._none.inc()
        elif contract == self._contract_hash:
            self._same.inc()
        else:
            self._other.inc()

    def _counter(self, announcement: Announcement) -> FastCounter:
        if not announcement.client:
            return self._unknown
        pair = (announcement.client, announcement.version)
        counter = self._counters.get(pair)
        if counter is None:
            if len(self._counters) >= self._max_versions:
                return self._versions.labels(OTHER, OTHER)
            counter = self._counters[pair] = self._versions.labels(*pair)
        return counter
