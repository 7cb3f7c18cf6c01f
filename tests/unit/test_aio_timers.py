"""Repeating work by a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from service.aio.tasks import TaskSupervisor
from service.aio.timers import DelayedTask, PeriodicTask, sleep
from tests.support.clock import FakeClock


class Stage:
    """A clock, a supervisor, and the times of runs, in seconds since the start."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.start = self.clock.monotonic()
        self.deaths: list[str] = []
        self.tasks = TaskSupervisor(self.deaths.append)
        self.runs: list[float] = []

    def note(self) -> None:
        self.runs.append(self.clock.monotonic() - self.start)

    async def advance(self, seconds: float) -> None:
        """Moves time in steps of a second, and lets the tasks run between two steps."""
        for _ in range(round(seconds)):
            self.clock.advance(1.0)
            for _ in range(5):
                await asyncio.sleep(0)

    def delayed(self) -> DelayedTask:
        async def work() -> None:
            self.note()

        return DelayedTask(self.clock, self.tasks, "delayed", work)

    def periodic(self, work: Callable[[], Awaitable[float | None]], interval: float = 10.0) -> PeriodicTask:
        return PeriodicTask(self.clock, self.tasks, "periodic", work, interval=interval)


async def test_delayed_task_requests_share_one_run() -> None:
    stage = Stage()
    delayed = stage.delayed()
    delayed.schedule(3.0)
    await stage.advance(2)
    delayed.schedule(3.0)
    assert delayed.is_scheduled
    await stage.advance(10)
    assert stage.runs == [3.0]
    assert not delayed.is_scheduled


async def test_delayed_task_reschedule_moves_the_run() -> None:
    stage = Stage()
    delayed = stage.delayed()
    delayed.schedule(8.0)
    delayed.reschedule(2.0)
    await stage.advance(10)
    assert stage.runs == [2.0]


@pytest.mark.parametrize("end", ["cancel", "close"])
async def test_delayed_task_cancelled_does_not_run(end: str) -> None:
    stage = Stage()
    delayed = stage.delayed()
    delayed.schedule(1.0)
    getattr(delayed, end)()
    if end == "close":
        delayed.schedule(1.0)
    await stage.advance(5)
    assert not stage.runs


async def test_periodic_task_runs_after_each_interval() -> None:
    stage = Stage()

    async def work() -> None:
        stage.note()

    periodic = stage.periodic(work)
    periodic.start(1.0)
    await stage.advance(25)
    periodic.close()
    await stage.advance(25)
    assert stage.runs == [1.0, 11.0, 21.0]


async def test_periodic_task_work_chooses_the_next_interval() -> None:
    stage = Stage()

    async def work() -> float | None:
        stage.note()
        return 2.0 if len(stage.runs) == 1 else None

    periodic = stage.periodic(work)
    periodic.start()
    await stage.advance(30)
    periodic.close()
    assert stage.runs == [10.0, 12.0, 22.0]


async def test_periodic_task_run_within_moves_the_next_run_only() -> None:
    stage = Stage()

    async def work() -> None:
        stage.note()

    periodic = stage.periodic(work)
    periodic.run_within(1.0)
    await stage.advance(5)
    assert not stage.runs, "it has not been started"
    periodic.start()
    periodic.run_within(1.0)
    await stage.advance(12)
    periodic.close()
    assert stage.runs == [6.0, 16.0]


async def test_periodic_task_that_raises_is_counted_and_runs_again() -> None:
    stage = Stage()

    async def work() -> None:
        stage.note()
        raise ValueError("broken")

    periodic = stage.periodic(work)
    periodic.start()
    await stage.advance(25)
    periodic.close()
    assert stage.runs == [10.0, 20.0]
    assert stage.deaths == ["periodic", "periodic"]
    assert stage.tasks.died == "periodic"
    assert stage.tasks.failed is None


async def test_periodic_task_closed_while_it_runs_does_not_run_again() -> None:
    stage = Stage()
    release = asyncio.Event()

    async def work() -> None:
        stage.note()
        await release.wait()

    periodic = stage.periodic(work)
    periodic.start(1.0)
    await stage.advance(1)
    assert periodic.is_running
    periodic.close()
    release.set()
    await stage.advance(30)
    assert stage.runs == [1.0]
    assert not periodic.is_running


async def test_sleep_cancelled_leaves_no_timer() -> None:
    clock = FakeClock()
    task = asyncio.create_task(sleep(clock, 5.0))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not clock.pending


async def test_critical_task_that_returns_is_a_death() -> None:
    stage = Stage()

    async def work() -> None:
        return

    stage.tasks.spawn("plain", work())
    stage.tasks.spawn("critical", work(), critical=True)
    await stage.advance(1)
    assert stage.deaths == ["critical"]
    assert stage.tasks.failed == "critical"
