"""Checks the broker, and measures how long it has been away.

A short outage must not take a node with connections out of service, because all other nodes have the same outage.
"""

from __future__ import annotations

import asyncio

import structlog

from service.aio.timers import PeriodicTask
from service.core.broker import Broker
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.telemetry.outage import EXPLAIN_TIMEOUT, OutageLog

CHECK_INTERVAL = 1.0
"""Seconds between two checks."""
CHECK_TIMEOUT = 1.0
"""Seconds for one check. tests/unit/test_constants.py asserts that the readiness probe's timeoutSeconds is longer."""
assert CHECK_INTERVAL + CHECK_TIMEOUT < EXPLAIN_TIMEOUT  # noqa: S101  # an outage is detected before other failures are logged

_log = structlog.get_logger("health")


class BrokerHealth:
    """Checks the broker at an interval, so that the node knows when an outage started."""

    def __init__(self, broker: Broker, runtime: Runtime, *, unready_after: float) -> None:
        """`unready_after`: seconds without the broker after which the node is not ready."""
        self._broker = broker
        self._runtime = runtime
        self._unready_after = unready_after
        self._unavailable_since: float | None = None
        self._outage = OutageLog(_log, "broker_unavailable", "broker_available", runtime.clock.monotonic)
        self._checks = PeriodicTask(runtime.clock, runtime.tasks, "broker health", self._check, interval=CHECK_INTERVAL)

    def start(self) -> None:
        """Starts the checks of a broker that has just started."""
        self._runtime.metrics.broker.broker_up.set(1)
        self._checks.start()

    def close(self) -> None:
        """Ends the checks."""
        self._checks.close()

    async def _check(self) -> None:
        await self.check()

    async def check(self) -> ServiceError | None:
        """Checks the broker now. Returns its error, or None."""
        fault: ServiceError | None = None
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await self._broker.check()
        except ServiceError as error:
            fault = error
        except TimeoutError:
            fault = ServiceError(ErrorCode.BROKER_UNAVAILABLE, f"the broker did not answer within {CHECK_TIMEOUT:g} s")
        self._runtime.metrics.broker.broker_up.set(fault is None)
        self._record(fault)
        return fault

    def _record(self, fault: ServiceError | None) -> None:
        outages, now = self._runtime.outages, self._runtime.clock.monotonic()
        if fault is not None:
            self._outage.failed(reason=fault.message)
            outages.broker_lost()
            if self._unavailable_since is None:
                self._unavailable_since = now
        elif self._unavailable_since is not None:
            self._outage.recovered()
            outages.broker_recovered(now)
            self._unavailable_since = None

    @property
    def is_unavailable(self) -> bool:
        """True if the last check failed."""
        return self._unavailable_since is not None

    @property
    def is_unavailable_past_threshold(self) -> bool:
        """True if the broker has been away for more than `unready_after` seconds."""
        since = self._unavailable_since
        return since is not None and self._runtime.clock.monotonic() - since >= self._unready_after
