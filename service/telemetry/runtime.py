"""What the interpreter and the event loop do to latency: garbage collection pauses, and how late callbacks run."""

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
"""Measurements that `loop_lag_max` looks back on: 15 s, the usual scrape interval."""


GC_THRESHOLDS = (15_000, 1_000, 2)
"""Allocations beyond deallocations before the youngest generation is collected, and its collections before the next ones are.

A collection takes about half a microsecond for each object that it looks at, and nobody is served meanwhile: 15 000 young ones
take some milliseconds, and older ones have their turn only after 15 million allocations that stayed.

Python's own (700, 10, 10) look at young objects for every few hundred messages, and find none: what a message or a connection
leaves behind is freed by its last reference (tests/integration/test_shutdown.py holds connections to that).
"""


def settle_gc() -> None:
    """To be called once all is set up: what lives now lives for ever, and collections need not look at it.

    Nobody is served yet, so this collection is no pause, and is not observed.
    """
    observers, gc.callbacks[:] = gc.callbacks[:], []
    gc.collect()
    gc.callbacks[:] = observers
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class GcWatch:
    """Observes how long each garbage collection stops the process."""

    def __init__(self, metrics: Metrics) -> None:
        # One child a generation, made now: `labels()` takes a lock that the code interrupted by a collection may hold. A
        # child's own lock is held for float arithmetic only, during which nothing is collected.
        self._pauses = [metrics.process.gc_pause_seconds.labels(str(generation)) for generation in range(3)]
        self._started = 0.0

    def install(self) -> None:
        """Starts observing; harmless when it has started."""
        if self._observe not in gc.callbacks:
            gc.callbacks.append(self._observe)

    def uninstall(self) -> None:
        """Stops observing; harmless when it has not started."""
        if self._observe in gc.callbacks:
            gc.callbacks.remove(self._observe)

    def _observe(self, phase: Literal["start", "stop"], info: dict[str, int]) -> None:
        if phase == "start":
            self._started = perf_counter()
        elif self._started:  # installed during a collection, it sees the end alone
            self._pauses[info["generation"]].observe(perf_counter() - self._started)


class Timer(Protocol):
    """What `call_later` gives."""

    def cancel(self) -> None:
        """Makes sure that the callback is not called."""


class Loop(Protocol):
    """The part of an event loop that measuring needs."""

    def time(self) -> float:
        """Seconds that never go back."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls back once."""


class LoopLag:
    """Measures by how much the event loop is late, with a timer and no task."""

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
        """Starts measuring; harmless when it has started."""
        if self._timer is None:
            self._schedule()

    def stop(self) -> None:
        """Stops measuring and leaves no timer behind."""
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
