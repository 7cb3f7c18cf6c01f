"""Moves all connections of a node to other nodes before it ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from service.core.limits import Deadlines, Rollout
from service.realtime.calls import Calls
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.telemetry.metrics import Metrics

CLOSE_RATIO = 0.75
"""The closes are spread over at most this part of `deadlines.shutdown`. The rest is for closing handshakes."""
LEAVE_TIMEOUT = 1.0
"""Seconds in which aborted connections may unsubscribe from their channels, which may need the broker."""

_log = structlog.get_logger("drain")


class Drain:
    """The drain of a node that accepts no more connections."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        reconnects: ReconnectScheduler,
        calls: Calls,
        rollout: Rollout,
        deadlines: Deadlines,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._reconnects = reconnects
        self._calls = calls
        self._rollout = rollout
        self._deadlines = deadlines
        self._metrics = metrics
        self._skips_delays = False
        self._waits_for_calls = False
        self._is_done = False
        self._timed_out = False

    @property
    def timed_out(self) -> bool:
        """True if the drain aborted connections because `deadlines.shutdown` had passed."""
        return self._timed_out

    async def run(self) -> None:
        """Sends each client `reconnect` with its own delay, and closes all connections, spread evenly over time.

        Aborts connections that are still open after `deadlines.shutdown`. Returns when none is left. A node drains once: later
        calls return at once.
        """
        if self._is_done:
            return
        ends_at = asyncio.get_running_loop().time() + self._deadlines.shutdown
        self._reconnects.cancel_unnotified()  # the next line schedules them again, with all others
        self._reconnects.schedule(self._registry, over=self._close_window(len(self._registry)), reason="shutdown")
        if not await self._wait_empty(self._deadlines.shutdown):
            self._timed_out = True
            self._metrics.lifecycle.drain_timeouts.inc()
            self._metrics.lifecycle.drain_cut_connections.inc(len(self._registry))
            _log.warning("drain_timed_out", left=len(self._registry))
            for connection in self._registry:
                connection.transport.abort()
            await self._wait_empty(LEAVE_TIMEOUT)
        await self._finish_calls(ends_at)
        self._is_done = True

    async def _finish_calls(self, ends_at: float) -> None:
        """Waits for calls over HTTP, whose clients have no connection. Refuses those that are left at that time of the loop."""
        self._waits_for_calls = True
        if not self._skips_delays:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(ends_at):
                    await self._calls.wait_idle()
        self._calls.refuse_all()

    async def _wait_empty(self, timeout: float) -> bool:  # noqa: ASYNC109  # returns False instead of raising
        try:
            async with asyncio.timeout(timeout):
                await self._registry.wait_empty()
        except TimeoutError:
            return False
        return True

    def skip_delays(self) -> None:
        """Closes all connections as fast as the loop can, now or when the drain starts."""
        self._skips_delays = True
        self._reconnects.skip_delays()
        if self._waits_for_calls:
            self._calls.refuse_all()

    def _close_window(self, connections: int) -> float:
        """Returns the seconds over which to spread the closes of `connections` connections."""
        if self._skips_delays:
            return 0.0
        window, max_window = connections / self._rollout.drain_rate, CLOSE_RATIO * self._deadlines.shutdown
        if window <= max_window:
            return window
        _log.warning(
            "drain_rate_exceeded",
            connections=connections,
            seconds=round(max_window, 1),
            per_second=round(connections / max_window, 1),
            reason=f"rollout.drain_rate needs deadlines.shutdown to be {window / CLOSE_RATIO:.0f} s",
        )
        return max_window
