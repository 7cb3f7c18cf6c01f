"""Keeps the connections of a node within the file descriptors that its process may have, and says when there are no more."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from math import inf, isfinite, isnan

import structlog

from service.core.clock import Clock, Timer
from service.core.descriptors import TYPICAL_IN_USE, DescriptorPlan, check_limit, plan, sufficient_limit
from service.core.limits import Limits
from service.protocol.close import CloseCode
from service.realtime.admission.admission import Admission
from service.realtime.connections.registry import ConnectionRegistry
from service.telemetry.metrics import Metrics
from service.telemetry.process import open_files
from service.web.http.http_connections import HttpConnections

CHECK_INTERVAL = 1.0
"""Seconds between two looks at how many descriptors are left, and whether the limit is still the same."""
REPORT_INTERVAL = 60.0
"""Seconds between two lines that say that there are none."""
OUT_OF_DESCRIPTORS = "the node may open too few files"
"""What a connection is told that is closed to free a descriptor of the reserve."""

_log = structlog.get_logger("web")


class Descriptors:
    """Lowers the caps to what the process may open, and keeps the reserve free of connections of the public listener."""

    def __init__(
        self,
        limits: Limits,
        admission: Admission,
        registry: ConnectionRegistry,
        http_connections: HttpConnections,
        ops_connections: HttpConnections,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._limits = limits
        self._admission = admission
        self._registry = registry
        self._http = http_connections
        self._ops = ops_connections
        self._clock = clock
        self._metrics = metrics
        self._limit: Callable[[], float] = lambda: inf
        self._in_use = 0
        self._plan: DescriptorPlan | None = None
        """None while nothing limits the process."""
        self._first_reserved = inf
        self._reported_at = -inf
        self._refused = 0
        """Connections closed at once since the last report."""
        self._timer: Timer | None = None

    def start(self, limit: Callable[[], float]) -> None:
        """To be called when everything but connections is open. `limit`: how many files the process may open; inf for any
        number. Raises TooFewFilesError."""
        counted = open_files()
        self._in_use = TYPICAL_IN_USE if isnan(counted) else int(counted)
        self._limit = limit
        check_limit(limit(), self._in_use, self._limits)
        self._check()

    def stop(self) -> None:
        """Ends looking."""
        if self._timer is not None:
            self._timer.cancel()

    def take(self, transport: asyncio.Transport) -> bool:
        """Whether a connection that was just accepted may stay; one that may not has taken a descriptor of the reserve."""
        if self._first_reserved == inf:
            return True
        socket = transport.get_extra_info("socket")
        if socket is None or socket.fileno() < self._first_reserved:
            return True
        self._refused += 1
        self._metrics.limits.limit_hits.labels(limit="open_files").inc()
        self._http.close_longest_waiting()  # so that the next one finds a place
        self._report()
        return False

    # --- once a second ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self._timer = self._clock.call_later(CHECK_INTERVAL, self._check)
        limit = self._limit()
        before = self._plan
        if (int(limit) if isfinite(limit) else None) != (None if before is None else before.limit):
            self._follow(limit)
        planned = self._plan
        if planned is None:
            return
        lowest_free = _lowest_free()
        if lowest_free == inf or (before is not None and planned.limit < before.limit):
            self._free_reserve(planned)
        if self._is_full(planned, lowest_free):
            self._report()

    def _follow(self, limit: float) -> None:
        """Sets the caps for this limit, at the start and when an operator has changed it."""
        limits = self._limits
        planned = self._plan = plan(int(limit), self._in_use, limits) if isfinite(limit) else None
        if planned is None:
            self._first_reserved = inf
            self._admission.slots.lower_max_connections(limits.connections)
            self._http.lower(limits.http_connections)
            self._ops.lower(limits.ops_connections)
            return
        self._first_reserved = planned.first_reserved
        self._admission.slots.lower_max_connections(planned.connections)
        self._http.lower(planned.http_connections, lambda: planned.client_descriptors - self._admission.slots.total)
        self._ops.lower(planned.ops_connections)
        if planned.connections < limits.connections:
            _log.warning(
                "connections_lowered",
                reason=(
                    f"limits.connections is {limits.connections}, but this process may open {planned.limit} files: "
                    f"{planned.in_use} are in use and {planned.reserve} are kept for health, metrics and the broker, which "
                    f"leaves {planned.connections} connections and {planned.http_connections} without a WebSocket. Raise the "
                    f"hard limit of open files (ulimit -Hn, LimitNOFILE) to {sufficient_limit(self._in_use, limits)} or lower "
                    "limits.connections"
                ),
                limit=planned.limit,
                in_use=planned.in_use,
                reserve=planned.reserve,
                connections=planned.connections,
                http_connections=planned.http_connections,
            )

    def _free_reserve(self, planned: DescriptorPlan) -> None:
        """Closes the connections of the public listener that have a descriptor of the reserve: it was theirs before the limit was
        lowered. Those with a number above the limit stay, as closing them would free nothing."""
        closed = 0
        for transport in self._http:
            socket = transport.get_extra_info("socket")
            if socket is not None and planned.first_reserved <= socket.fileno() < planned.limit:
                transport.abort()
                closed += 1
        for connection in self._registry:
            if planned.first_reserved <= connection.transport.fd < planned.limit:
                connection.close(CloseCode.OVERLOAD, OUT_OF_DESCRIPTORS)
                connection.transport.hang_up()  # without waiting for the peer's answer
                closed += 1
        if closed:
            self._metrics.limits.limit_hits.labels(limit="open_files").inc(closed)
            _log.warning("descriptors_freed", closed=closed, limit=planned.limit, reserve=planned.reserve)

    def _is_full(self, planned: DescriptorPlan, lowest_free: float) -> bool:
        is_at_lowered_cap, self._http.is_at_lowered_cap = self._http.is_at_lowered_cap, False
        return (
            (planned.connections < self._limits.connections and self._admission.slots.total >= planned.connections)
            or is_at_lowered_cap
            or lowest_free >= planned.first_reserved
        )

    def _report(self) -> None:
        now = self._clock.monotonic()
        planned = self._plan
        if planned is None or now - self._reported_at < REPORT_INTERVAL:
            return
        self._reported_at = now
        refused, self._refused = self._refused, 0
        counted = open_files()
        _log.warning(
            "descriptors_exhausted",
            open=None if isnan(counted) else int(counted),
            limit=planned.limit,
            reserve=planned.reserve,
            connections=self._admission.slots.total,
            http_connections=len(self._http),
            ops_connections=len(self._ops),
            refused=refused,
        )


def _lowest_free() -> float:
    """The number that the next descriptor gets; inf if there is none. As many are in use at least."""
    try:
        free = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return inf
    os.close(free)
    return free
