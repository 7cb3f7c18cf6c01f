"""Keeps a node's connections within the file descriptors of its process, and reports when none are left."""

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
from service.realtime.runtime import Runtime
from service.telemetry.process import open_files
from service.web.http.http_connections import HttpConnections

CHECK_INTERVAL = 1.0
"""Seconds between two checks of the process's limit and of the descriptors that are left."""
REPORT_INTERVAL = 60.0
"""Seconds between two log events about exhausted descriptors."""
OUT_OF_DESCRIPTORS = "the node may open too few files"
"""The close reason of a connection that is closed to free a reserved descriptor."""

_log = structlog.get_logger("web")


class DescriptorMonitor:
    """Lowers the caps to what the process may open, and keeps client connections off the reserved descriptors."""

    def __init__(
        self,
        limits: Limits,
        admission: Admission,
        registry: ConnectionRegistry,
        http_connections: HttpConnections,
        ops_connections: HttpConnections,
        runtime: Runtime,
    ) -> None:
        self._limits = limits
        self._admission = admission
        self._registry = registry
        self._http = http_connections
        self._ops = ops_connections
        self._runtime = runtime
        self._max_files: Callable[[], float] = lambda: inf
        self._in_use = 0
        """Descriptors in use before the first connection."""
        self._plan: DescriptorPlan | None = None
        """None while nothing limits the process."""
        self._report_limiter = _ReportLimiter(runtime.clock)
        self._timer: Timer | None = None

    def start(self, max_files: Callable[[], float]) -> None:
        """Starts the checks. Everything except connections must be open before. Raises TooFewFilesError.

        `max_files` returns how many files the process may open; infinite without a limit.
        """
        counted = open_files()
        self._in_use = TYPICAL_IN_USE if isnan(counted) else int(counted)
        self._max_files = max_files
        check_limit(max_files(), self._in_use, self._limits)
        self._check()

    def stop(self) -> None:
        """Stops the checks."""
        if self._timer is not None:
            self._timer.cancel()

    def accepts(self, transport: asyncio.Transport) -> bool:
        """Whether a new connection may stay: False if it got a reserved descriptor. Then one waiting connection is closed,
        which frees a descriptor for the next one."""
        planned = self._plan
        if planned is None or self._is_far_from_reserve(planned):
            return True
        socket = transport.get_extra_info("socket")
        if socket is None or socket.fileno() < planned.first_reserved:
            return True
        self._runtime.metrics.limits.limit_hits.labels(limit="open_files").inc()
        self._http.evict_longest_waiting()
        self._report_limiter.count_refused()
        self._report(planned)
        return False

    def _is_far_from_reserve(self, planned: DescriptorPlan) -> bool:
        """True if so few clients are connected that none has a reserved descriptor, even if the rest of the process has opened
        as many again as the whole reserve. uvloop keeps 80 bytes for a connection whose descriptor was once read."""
        clients = self._admission.slots.total + len(self._http) + len(self._ops)
        return clients + planned.in_use + planned.reserve < planned.first_reserved

    # --- once a second ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self._timer = self._runtime.clock.call_later(CHECK_INTERVAL, self._check)
        limit = self._max_files()
        before = self._plan
        if (int(limit) if isfinite(limit) else None) != (None if before is None else before.limit):
            self._apply_limit(limit)
        planned = self._plan
        if planned is None:
            return
        lowest_free = _find_lowest_free()
        if lowest_free == inf or (before is not None and planned.limit < before.limit):
            self._free_reserve(planned)
        if self._is_exhausted(planned, lowest_free):
            self._report(planned)

    def _apply_limit(self, limit: float) -> None:
        """Sets the caps for this limit: at the start, and after an operator has changed it."""
        limits = self._limits
        planned = self._plan = plan(int(limit), self._in_use, limits) if isfinite(limit) else None
        if planned is None:
            self._admission.slots.lower_max_connections(limits.connections)
            self._http.caps.lower(limits.http_connections)
            self._ops.caps.lower(limits.ops_connections)
            return
        self._admission.slots.lower_max_connections(planned.connections)
        self._http.caps.lower(
            planned.http_connections, lambda: planned.client_descriptors - self._admission.slots.total
        )
        self._ops.caps.lower(planned.ops_connections)
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
        """Closes client connections on reserved descriptors, which they got before the limit was lowered.

        Descriptors above the limit stay open: closing them would make no new descriptor available.
        """
        closed = 0
        for transport in self._http:
            socket = transport.get_extra_info("socket")
            if socket is not None and planned.first_reserved <= socket.fileno() < planned.limit:
                transport.abort()
                closed += 1
        for connection in self._registry:
            if planned.first_reserved <= connection.transport.fd < planned.limit:
                connection.close(CloseCode.OVERLOAD, OUT_OF_DESCRIPTORS)
                connection.transport.close_when_written()  # without waiting for the peer's close frame
                closed += 1
        if closed:
            self._runtime.metrics.limits.limit_hits.labels(limit="open_files").inc(closed)
            _log.warning("descriptors_freed", closed=closed, limit=planned.limit, reserve=planned.reserve)

    def _is_exhausted(self, planned: DescriptorPlan, lowest_free: float) -> bool:
        has_hit_lowered_cap = self._http.caps.pop_lowered_cap_hit()
        return (
            (planned.connections < self._limits.connections and self._admission.slots.total >= planned.connections)
            or has_hit_lowered_cap
            or lowest_free >= planned.first_reserved
        )

    def _report(self, planned: DescriptorPlan) -> None:
        refused = self._report_limiter.pop_refused()
        if refused is None:
            return
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


class _ReportLimiter:
    """Allows one report per REPORT_INTERVAL, and counts the connections refused between two reports."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._reported_at = -inf
        self._refused = 0

    def count_refused(self) -> None:
        """Counts a connection that was closed at once."""
        self._refused += 1

    def pop_refused(self) -> int | None:
        """The connections refused since the last report; None if the interval is not over."""
        now = self._clock.monotonic()
        if now - self._reported_at < REPORT_INTERVAL:
            return None
        self._reported_at = now
        refused, self._refused = self._refused, 0
        return refused


def _find_lowest_free() -> float:
    """The number of the next descriptor, which the system chooses as the lowest free one; infinite if there is none."""
    try:
        free = os.open(os.devnull, os.O_RDONLY)
    except OSError:
        return inf
    os.close(free)
    return free
