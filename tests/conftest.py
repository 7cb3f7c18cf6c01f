"""What holds for every test: it ends its asyncio tasks, and tests that wait longest start first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.examples import register_profiles

register_profiles()

UNIT = Path(__file__).parent / "unit"

LONGEST = ("faults", "browser", "autobahn")
"""Marks of the tests that take longest and wait most. pytest-xdist hands out tests from the front: while one process waits in
these, the others compute, and none of them is left over at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves `LONGEST` to the front. pytest-randomly has drawn the order by then; within each mark it stays."""
    marks = {item: {mark.name for mark in item.iter_markers()} for item in items}
    items.sort(
        key=lambda item: next((place for place, name in enumerate(LONGEST) if name in marks[item]), len(LONGEST))
    )


@pytest_asyncio.fixture
async def _tasks_end(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """`_no_task_stays`. Unit tests run in asyncio's debug mode."""
    if request.node.path.is_relative_to(UNIT):
        asyncio.get_running_loop().set_debug(True)
    async with _no_task_stays():
        yield


@pytest_asyncio.fixture(loop_scope="session")
async def _tasks_end_in_the_session_loop() -> AsyncIterator[None]:
    """`_no_task_stays`, for tests that share an event loop because they share a browser."""
    async with _no_task_stays():
        yield


@asynccontextmanager
async def _no_task_stays() -> AsyncIterator[None]:
    """Fails the test if a task that it started is still running after it."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    # A task that was cancelled by the test needs turns of the loop to end; one that waits for something never does.
    for _ in range(10):
        if not any(not task.done() for task in left):
            return
        await asyncio.sleep(0)
    names = [repr(task) for task in left if not task.done()]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    if names:
        pytest.fail("the test left asyncio tasks behind:\n  " + "\n  ".join(names), pytrace=False)


@pytest.fixture(autouse=True)
def _no_tasks_left_behind(request: pytest.FixtureRequest) -> None:
    """Asks for `_no_task_stays` where the test runs on an event loop; before all other fixtures, so that it looks after them."""
    if (marker := request.node.get_closest_marker("asyncio")) is not None:
        shares = marker.kwargs.get("loop_scope") == "session"
        request.getfixturevalue("_tasks_end_in_the_session_loop" if shares else "_tasks_end")
