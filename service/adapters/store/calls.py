"""Bounds on the calls of a store, in time and in number."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.adapters.store.errors import unavailable
from service.aio.eager_start import ensure_task
from service.telemetry.metrics import Metrics


class CallLimit:
    """Counts the calls of a broker that have not returned, and refuses more than `max_calls`."""

    __slots__ = ("_max_calls", "_metrics", "_store", "pending")

    def __init__(self, store: str, max_calls: int, metrics: Metrics) -> None:
        self._store = store
        self._max_calls = max_calls
        self._metrics = metrics
        self.pending = 0
        """Calls that have not returned."""

    def acquire(self) -> None:
        """Counts a call. Raises ServiceError above the limit."""
        if self.pending >= self._max_calls:
            self._metrics.limits.limit_hits.labels(limit="broker_queue").inc()
            raise unavailable(f"{self.pending} calls wait for {self._store} already (broker.queue)")
        self.pending += 1

    def release(self) -> None:
        """Ends a call that `acquire` has counted."""
        self.pending -= 1


@asynccontextmanager
async def call_timeout(store: str, seconds: float) -> AsyncIterator[None]:
    """Bounds a call that may have been started outside of any task. Raises ServiceError in place of TimeoutError."""
    await ensure_task()
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise late(store, seconds) from error


def late(store: str, seconds: float) -> Exception:
    """Returns the error of a call that has taken longer than its timeout."""
    return unavailable(f"{store} did not answer within {seconds:g} s")
