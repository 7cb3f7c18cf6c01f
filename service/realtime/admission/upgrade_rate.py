"""Limits the upgrades that this node accepts per second: the setting, or less while its event loop is late."""

from __future__ import annotations

import structlog

from service.core.accept_throttle import AcceptThrottle
from service.core.adaptive_rate import AdaptiveRate
from service.core.clock import Clock
from service.core.limits import Rollout
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics
from service.telemetry.outage import OutageLog

_log = structlog.get_logger("admission")


class UpgradeRate:
    """Refuses upgrades above the accept rate, each with its own `retry_after`."""

    def __init__(self, rollout: Rollout, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        now = clock.monotonic()
        self._throttle = AcceptThrottle(rollout.accept_rate, now)
        self._adaptive = AdaptiveRate(rollout.accept_rate, rollout.accept_max_lag, now)
        self._overload = OutageLog(_log, "accept_rate_reduced", "accept_rate_restored", clock.monotonic, reminds=False)
        metrics.limits.accept_rate.set(rollout.accept_rate.per_second)

    @property
    def per_second(self) -> float:
        """Upgrades per second that are accepted now."""
        return self._adaptive.rate.per_second

    def accept(self, *, is_upgrade: bool, is_browser: bool) -> None:
        """Counts an upgrade that is about to be accepted. Only checks the rate for a plain request.

        Raises ServiceError(OVERLOADED), with its own `retry_after`.
        """
        # A browser cannot read why its upgrade was refused. So its page sends a plain request to ask, and each counts half.
        share = 0.5 if is_browser or not is_upgrade else 1.0
        now = self._clock.monotonic()
        wait = self._throttle.acquire(now, share) if is_upgrade else self._throttle.check(now, share)
        if wait:
            self._metrics.limits.limit_hits.labels(limit="accept_rate").inc()
            raise ServiceError(
                ErrorCode.OVERLOADED, "this node accepts no more connections at the moment", retry_after=round(wait, 3)
            )

    def cancel(self) -> None:
        """Uncounts an accepted upgrade that was refused for another reason."""
        self._throttle.refund()

    def observe_lag(self, lag: float) -> None:
        """Adapts the rate to the lag of the event loop in seconds."""
        adaptive, now = self._adaptive, self._clock.monotonic()
        before = adaptive.rate
        adaptive.observe(lag, now)
        if adaptive.rate is before:
            return
        self._throttle.set_rate(adaptive.rate, now)
        self._metrics.limits.accept_rate.set(adaptive.rate.per_second)
        if adaptive.is_reduced:
            self._overload.failed(lag=round(lag, 3), per_second=adaptive.rate.per_second)
        else:
            self._overload.recovered(per_second=adaptive.rate.per_second)
