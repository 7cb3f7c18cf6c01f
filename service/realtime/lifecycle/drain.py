"""The drain: how all connections of a node leave it before it ends."""

from __future__ import annotations

import asyncio

import structlog

from service.core.limits import Deadlines, Rollout
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.telemetry.metrics import Metrics

WINDOW = 0.75
"""The share of `deadlines.shutdown` that closes are spread over at most; the rest is for goodbyes that take their time."""

AFTERMATH = 1.0
"""Seconds that those who are cut have to leave their channels, which may take the broker's word."""

_log = structlog.get_logger("drain")


class Drain:
    """Of one node, which lets nobody in any more when it begins."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        reconnects: ReconnectScheduler,
        rollout: Rollout,
        deadlines: Deadlines,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._reconnects = reconnects
        self._rollout = rollout
        self._deadlines = deadlines
        self._metrics = metrics
        self._is_hurried = False
        self._is_over = False
        self.timed_out = False
        """Whether connections were cut because the time was over."""

    async def run(self) -> None:
        """Has every client told its own time to come back, and closes all evenly.

        Returns when they are gone; those that are not within `deadlines.shutdown` are cut. There is one drain of a node: after
        it this returns at once.
        """
        if self._is_over:
            return
        self._reconnects.withdraw()  # whoever would have gone later
        self._reconnects.ask(self._registry, over=self._window(len(self._registry)), reason="shutdown")
        if not await self._emptied_within(self._deadlines.shutdown):
            self.timed_out = True
            self._metrics.lifecycle.drain_timeouts.inc()
            self._metrics.lifecycle.drain_cut_connections.inc(len(self._registry))
            _log.warning("drain timed out", left=len(self._registry))
            for connection in self._registry:
                connection.transport.abort()
            await self._emptied_within(AFTERMATH)
        self._is_over = True

    async def _emptied_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._registry.wait_empty()
        except TimeoutError:
            return False
        return True

    def hurry(self) -> None:
        """Closes all as fast as the loop can, now or when the drain begins."""
        self._is_hurried = True
        self._reconnects.hurry()

    def _window(self, count: int) -> float:
        """Seconds that so many closes are spread over."""
        if self._is_hurried:
            return 0.0
        wanted, most = count / self._rollout.drain_rate, WINDOW * self._deadlines.shutdown
        if wanted <= most:
            return wanted
        _log.warning(
            "closing faster than rollout.drain_rate",
            connections=count,
            seconds=round(most, 1),
            per_second=round(count / most, 1),
            reason=f"at its rate they would need deadlines.shutdown to be {wanted / WINDOW:.0f} s",
        )
        return most
