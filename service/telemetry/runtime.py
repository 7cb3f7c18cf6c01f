"""Measures what delays the process: pauses of the garbage collector, and the lag of the event loop."""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Literal, Protocol

from service.telemetry.metrics import Metrics

LAG_INTERVAL = 0.25
"""Seconds between two measurements of the event loop's lag."""
LAG_WINDOW = 60
"""Measurements that `loop_lag_max` covers: 15 s, the usual scrape interval."""


GC_THRESHOLDS = (15_000, 1_000, 2)
"""Arguments of `gc.set_threshold`: the net allocations before a collection of generation 0; for each older generation,
the collections of the younger one before its own.

A collection takes about half a microsecond for each object, and stops the process meanwhile: 15 000 young objects take
a few milliseconds. Older generations are collected only after 15 million surviving allocations.

Python's defaults (700, 10, 10) collect every few hundred messages and find nothing. The last reference frees the objects of a
message or a connection (tests/integration/test_shutdown.py checks that for connections).
"""


def freeze_gc() -> None:
    """Freezes all current objects, so that collections skip them. Call it once, when the service is set up.

    No client is served yet, so this collection is not recorded as a pause.
    """
    observers, gc.callbacks[:] = gc.callbacks[:], []
    gc.collect()
    gc.callbacks[:] = observers
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class GcMonitor:
    """Records how long each garbage collection stops the process."""

    def __init__(self, metrics: Metrics) -> None:
        # One child for each generation, created now, because `labels()` acquires a lock that the interrupted code may
        # hold. The lock of a child is held only for float arithmetic, during which no collection runs.
        self._pauses = [metrics.process.gc_pause_seconds.labels(str(generation)) for generation in range(3)]
        self._started = 0.0

    def install(self) -> None:
        """Starts recording. Does nothing if it has started."""
        if self._observe not in gc.callbacks:
            gc.callbacks.append(self._observe)

    def uninstall(self) -> None:
        """Stops recording. Does nothing if it has not started."""
        if self._observe in gc.callbacks:
            gc.callbacks.remove(self._observe)

    def _observe(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        if phase == "start":
            self._started = perf_counter()
        elif self._started:  # if installed during a collection, only its end is observed
            self._pauses[info["generation"]].observe(perf_counter() - self._started)


class Timer(Protocol):
    """A scheduled call."""

    def cancel(self) -> None:
        """Cancels the call."""


class Loop(Protocol):
    """The methods of an event loop that measuring needs."""

    def time(self) -> float:
        """Returns monotonic seconds."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls `callback` once after `delay` seconds."""


class LoopLag:
    """Measures how late the event loop runs callbacks, with a timer and no task."""

    def __init__(
        self,
        metrics: Metrics,
        loop: Loop,
        interval: float = LAG_INTERVAL,
        on_lag: Callable[[float], None] = lambda lag: None,
    ) -> None:
        """`on_lag` is called with every measurement."""
        self._on_lag = on_lag
        self._metrics = metrics
        self._loop = loop
        self._interval = interval
        self._recent: deque[float] = deque(maxlen=LAG_WINDOW)
        self._due = 0.0
        self._timer: Timer | None = None

    def start(self) -> None:
        """Starts measuring. Does nothing if it has started."""
        if self._timer is None:
            self._schedule()

    def stop(self) -> None:
        """Stops measuring and cancels the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule(self) -> None:
        self._due = self._loop.time() + self._interval
        self._timer = self._loop.call_later(self._interval, self._measure)

    def _measure(self) -> None:
        lag = max(0.0, self._loop.time() - self._due)
        self._schedule()
        self._recent.append(lag)
        self._metrics.process.loop_lag_seconds.observe(lag)
        self._metrics.process.loop_lag_max_seconds.set(max(self._recent))
        self._on_lag(lag)
