"""Garbage collection and event loop lag are measured, and measuring ends when told."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator

import pytest

from service.telemetry.metrics import Metrics
from service.telemetry.runtime import GC_THRESHOLDS, LAG_WINDOW, GcMonitor, LoopLag, freeze_gc


def sample(metrics: Metrics, name: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(name, labels)
    assert found is not None
    return found


@pytest.fixture
def watch() -> Iterator[tuple[Metrics, GcMonitor]]:
    metrics = Metrics()
    watch = GcMonitor(metrics)
    watch.install()
    yield metrics, watch
    watch.uninstall()


def test_gc_monitor_observes_each_generation(watch: tuple[Metrics, GcMonitor]) -> None:
    metrics, _ = watch
    before = sample(metrics, "tidewire_gc_pause_seconds_count", generation="2")
    gc.collect(2)
    assert sample(metrics, "tidewire_gc_pause_seconds_count", generation="2") == before + 1
    assert 0 < sample(metrics, "tidewire_gc_pause_seconds_sum", generation="2") < 60


def test_gc_monitor_installed_twice_counts_once(watch: tuple[Metrics, GcMonitor]) -> None:
    metrics, watching = watch
    callbacks = len(gc.callbacks)
    watching.install()
    assert len(gc.callbacks) == callbacks
    watching.uninstall()
    watching.uninstall()
    assert len(gc.callbacks) == callbacks - 1
    before = sample(metrics, "tidewire_gc_pause_seconds_count", generation="2")
    gc.collect(2)
    assert sample(metrics, "tidewire_gc_pause_seconds_count", generation="2") == before


class HandTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class HandLoop:
    """An event loop whose time the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timers: list[HandTimer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> HandTimer:
        self.timers.append(HandTimer(callback))
        return self.timers[-1]

    def fire(self, after: float) -> None:
        self.now += after
        self.timers[-1].callback()


def test_loop_lag_is_the_delay_of_the_callback() -> None:
    metrics, loop = Metrics(), HandLoop()
    told: list[float] = []
    lag = LoopLag(metrics, loop, interval=0.25, on_lag=told.append)
    lag.start()
    loop.fire(0.25)
    loop.fire(0.75)
    assert told == pytest.approx([0.0, 0.5])
    assert sample(metrics, "tidewire_loop_lag_seconds_count") == 2
    assert sample(metrics, "tidewire_loop_lag_seconds_sum") == pytest.approx(0.5)
    assert sample(metrics, "tidewire_loop_lag_max_seconds") == pytest.approx(0.5)


def test_loop_lag_max_covers_the_window() -> None:
    metrics, loop = Metrics(), HandLoop()
    LoopLag(metrics, loop, interval=0.25).start()
    loop.fire(1.25)
    for _ in range(LAG_WINDOW - 1):
        loop.fire(0.25)
    assert sample(metrics, "tidewire_loop_lag_max_seconds") == pytest.approx(1.0)
    loop.fire(0.25)
    assert sample(metrics, "tidewire_loop_lag_max_seconds") == pytest.approx(0.0)


def test_loop_lag_stop_cancels_the_only_timer() -> None:
    loop = HandLoop()
    lag = LoopLag(Metrics(), loop)
    lag.start()
    lag.start()
    assert len(loop.timers) == 1
    lag.stop()
    lag.stop()
    assert loop.timers[0].cancelled


async def test_loop_lag_on_a_real_loop_needs_no_task() -> None:
    metrics, loop = Metrics(), asyncio.get_running_loop()
    tasks = asyncio.all_tasks()
    lag = LoopLag(metrics, loop, interval=0.001)
    measured = asyncio.Event()
    show = metrics.process.loop_lag_max_seconds.set

    def told(value: float) -> None:
        show(value)
        measured.set()

    metrics.process.loop_lag_max_seconds.set = told  # type: ignore[method-assign]  # so that the test can await a measurement
    lag.start()
    assert asyncio.all_tasks() == tasks
    async with asyncio.timeout(10):
        await measured.wait()
    lag.stop()
    assert sample(metrics, "tidewire_loop_lag_seconds_count") >= 1


def test_freeze_gc_is_not_observed_as_a_pause(watch: tuple[Metrics, GcMonitor]) -> None:
    metrics, _ = watch
    before = sample(metrics, "tidewire_gc_pause_seconds_count", generation="2")
    thresholds = gc.get_threshold()
    try:
        freeze_gc()
        assert gc.get_threshold() == GC_THRESHOLDS
        assert gc.get_freeze_count() > 1_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    assert sample(metrics, "tidewire_gc_pause_seconds_count", generation="2") == before
    gc.collect(2)
    assert sample(metrics, "tidewire_gc_pause_seconds_count", generation="2") == before + 1, "and observing goes on"
