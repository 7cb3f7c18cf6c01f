"""Whether the broker is there, and for how long it has not been: a blip must not take a node full of connections out of
service, as every other node has the same blip."""

from __future__ import annotations

import asyncio

import structlog

from service.core.broker import Broker
from service.core.clock import Timer
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.telemetry.outage import EXPLAIN_TIMEOUT, OutageLog

INTERVAL = 1.0
"""Seconds between two looks."""
DEADLINE = 1.0
"""Seconds for one. A test holds it below the readiness probe's timeoutSeconds (tests/unit/test_constants.py)."""
assert INTERVAL + DEADLINE < EXPLAIN_TIMEOUT  # noqa: S101  # an outage is detected before other failures are logged

_log = structlog.get_logger("health")


class BrokerHealth:
    """Looks after the broker all the time, so that it is known since when it is away."""

    def __init__(self, broker: Broker, runtime: Runtime, *, patience: float) -> None:
        self._broker = broker
        self._runtime = runtime
        self._patience = patience
        self._away_since: float | None = None
        self._outage = OutageLog(_log, "the broker is away", "the broker is back", runtime.clock.monotonic)
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begins to look at a broker that has just started."""
        self._runtime.metrics.broker.broker_up.set(1)
        self._timer = self._runtime.clock.call_later(INTERVAL, self._spawn)

    def close(self) -> None:
        """Stops looking."""
        if self._timer is not None:
            self._timer.cancel()

    def _spawn(self) -> None:
        self._timer = self._runtime.clock.call_later(INTERVAL, self._spawn)
        self._runtime.tasks.spawn("broker health", self._look())

    async def _look(self) -> None:
        await self.fault()

    async def fault(self) -> ServiceError | None:
        """What is wrong with the broker right now; None if nothing is."""
        fault: ServiceError | None = None
        try:
            async with asyncio.timeout(DEADLINE):
                await self._broker.check()
        except ServiceError as error:
            fault = error
        except TimeoutError:
            fault = ServiceError(ErrorCode.BROKER_UNAVAILABLE, f"the broker did not answer within {DEADLINE:g} s")
        self._runtime.metrics.broker.broker_up.set(fault is None)
        self._note(fault)
        return fault

    def _note(self, fault: ServiceError | None) -> None:
        outages, now = self._runtime.outages, self._runtime.clock.monotonic()
        if fault is not None:
            self._outage.failed(reason=fault.message)
            outages.broker_lost()
            if self._away_since is None:
                self._away_since = now
        elif self._away_since is not None:
            self._outage.recovered()
            outages.broker_recovered(now)
            self._away_since = None

    @property
    def is_away(self) -> bool:
        """Whether the broker did not answer when it was asked last."""
        return self._away_since is not None

    @property
    def is_worn_out(self) -> bool:
        """Whether the broker has been away for longer than a node may wait for it and still be ready."""
        return self._away_since is not None and self._runtime.clock.monotonic() - self._away_since >= self._patience
