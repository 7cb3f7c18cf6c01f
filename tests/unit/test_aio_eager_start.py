"""Work that is begun outside of a task: done at once, or gone on with in one, as if it had been there from the start."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine
from typing import Any

import pytest

from service.aio.eager_start import continue_in_task, start_eagerly
from service.aio.tasks import TaskSupervisor
from service.telemetry.metrics import Metrics

DEADLINE = 5.0

Work = Coroutine[Any, Any, None]


class Begun:
    """What became of work that was begun by a callback of the loop, where there is no task."""

    def __init__(self, error: BaseException | None, task: asyncio.Task[None] | None) -> None:
        self.error = error
        self.task = task

    @property
    def is_done(self) -> bool:
        return self.task is None and self.error is None

    async def result(self) -> None:
        assert self.task is not None
        async with asyncio.timeout(DEADLINE):
            await self.task


async def begun(work: Work) -> Begun:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Begun] = loop.create_future()

    def start() -> None:
        assert asyncio.current_task() is None
        try:
            rest = start_eagerly(work)
        except Exception as error:
            answer.set_result(Begun(error, None))
        else:
            answer.set_result(Begun(None, loop.create_task(rest) if rest is not None else None))

    loop.call_soon(start)
    async with asyncio.timeout(DEADLINE):
        return await answer


async def test_work_that_never_waits_is_done_at_once() -> None:
    said: list[str] = []

    async def inner() -> str:
        return "inner"

    async def work() -> None:
        said.append(await inner())
        assert asyncio.current_task() is None
        said.append("end")

    assert (await begun(work())).is_done
    assert said == ["inner", "end"]


async def test_work_continues_in_the_task_after_its_wait() -> None:
    first, second = asyncio.Future[int](), asyncio.Future[int]()
    said: list[object] = []

    async def work() -> None:
        said.append(asyncio.current_task())
        said.append(await first)
        said.append(asyncio.current_task())
        await asyncio.sleep(0)
        said.append(await second)

    it = await begun(work())
    assert said == [None], "it has begun, and waits"
    first.set_result(1)
    second.set_result(2)
    await it.result()
    assert said == [None, 1, it.task, 2]


async def test_result_before_the_task_starts_is_kept() -> None:
    value = asyncio.Future[str]()
    said: list[str] = []

    async def work() -> None:
        said.append(await value)

    rest = start_eagerly(work())
    assert rest is not None
    value.set_result("x")
    async with asyncio.timeout(DEADLINE):
        await asyncio.create_task(rest)
    assert said == ["x"]


async def test_rest_is_a_coroutine() -> None:
    """Python 3.12 and later take no generators."""

    async def work() -> None:
        await continue_in_task()

    rest = start_eagerly(work())
    assert isinstance(rest, types.CoroutineType)
    async with asyncio.timeout(DEADLINE):
        await asyncio.create_task(rest)


async def test_error_before_the_first_wait_is_raised_at_once() -> None:
    async def work() -> None:
        raise LookupError("at once")

    it = await begun(work())
    assert isinstance(it.error, LookupError)
    assert it.task is None


async def test_error_after_the_first_wait_is_raised_in_the_task() -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise LookupError("later")

    with pytest.raises(LookupError, match="later"):
        await (await begun(work())).result()


async def test_work_handles_errors_of_what_it_awaits() -> None:
    awaited = asyncio.Future[None]()
    said: list[str] = []

    async def work() -> None:
        try:
            await awaited
        except LookupError as error:
            said.append(str(error))
        await asyncio.sleep(0)
        said.append("went on")

    it = await begun(work())
    awaited.set_exception(LookupError("gone"))
    await it.result()
    assert said == ["gone", "went on"]


class Waiting:
    """Work that waits for ever, and notes how that ends."""

    def __init__(self, *, stubborn: bool = False) -> None:
        self.never = asyncio.Future[None]()
        self.said: list[str] = []
        self._stubborn = stubborn

    async def work(self) -> None:
        try:
            await self.never
        except asyncio.CancelledError:
            self.said.append("cancelled")
            await asyncio.sleep(0)  # cleaning up may wait
            self.said.append("cleaned up")
            if not self._stubborn:
                raise
        self.said.append("went on")


@pytest.mark.parametrize("after_a_turn", [True, False], ids=["while it waits", "before the task's first step"])
class TestCancelling:
    async def test_cancel_reaches_the_work_which_cleans_up(self, after_a_turn: bool) -> None:
        waiting = Waiting()
        rest = start_eagerly(waiting.work())
        assert rest is not None
        task = asyncio.create_task(rest)
        if after_a_turn:
            await asyncio.sleep(0)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert waiting.said == ["cancelled", "cleaned up"]
        assert waiting.never.cancelled() == after_a_turn, "as with any task: what was waited for is cancelled, too"

    async def test_cancel_refused_by_the_work_is_ignored(self, after_a_turn: bool) -> None:
        waiting = Waiting(stubborn=True)
        rest = start_eagerly(waiting.work())
        assert rest is not None
        task = asyncio.create_task(rest)
        if after_a_turn:
            await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(DEADLINE):
            await task
        assert waiting.said == ["cancelled", "cleaned up", "went on"]

    async def test_cancel_by_the_supervisor_leaves_nothing(self, after_a_turn: bool) -> None:
        metrics = Metrics()
        supervisor = TaskSupervisor(metrics.process.count_task_death)
        waiting = Waiting()
        rest = start_eagerly(waiting.work())
        assert rest is not None
        supervisor.spawn("command", rest)
        if after_a_turn:
            await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE):
            await supervisor.close()
        assert waiting.said == ["cancelled", "cleaned up"]
        assert metrics.process.supervised_task_deaths.labels(task="command").value == 0


async def test_unawaited_rest_closes_the_work() -> None:
    said: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Future[None]()
        finally:
            said.append("closed")

    rest = start_eagerly(work())
    assert rest is not None
    rest.close()
    assert said == ["closed"]


async def test_timeout_needs_a_task() -> None:
    said: list[str] = []

    async def work() -> None:
        with pytest.raises(RuntimeError):
            await asyncio.timeout(0.001).__aenter__()
        await continue_in_task()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Future[None]()
        async with asyncio.timeout(DEADLINE):
            await asyncio.sleep(0)
        said.append("in time")

    it = await begun(work())
    await it.result()
    assert said == ["in time"]


async def test_timeout_around_the_task_cancels_the_work() -> None:
    waiting = Waiting()
    rest = start_eagerly(waiting.work())
    assert rest is not None
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.create_task(rest)
    assert waiting.said == ["cancelled", "cleaned up"]


async def test_going_into_a_task_once_more_costs_a_turn_and_changes_nothing() -> None:
    said: list[object] = []

    async def work() -> None:
        await continue_in_task()
        said.append(asyncio.current_task())
        await continue_in_task()
        said.append(asyncio.current_task())

    it = await begun(work())
    assert said == []
    await it.result()
    assert said == [it.task, it.task]
