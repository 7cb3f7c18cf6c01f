"""What holds for every test: it ends its asyncio tasks. Fault and load tests come last, when nothing else is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Moves the tests marked `faults`, then those marked `load`, to the end, each group in its own order."""
    last = ("faults", "load")
    items.sort(
        key=lambda item: max(
            (last.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in last), default=0
        )
    )


@pytest_asyncio.fixture
async def _tasks_end() -> AsyncIterator[None]:
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
    """Asks for `_tasks_end` where the test runs on an event loop; before all other fixtures, so that it looks after them."""
    if request.node.get_closest_marker("asyncio") is not None:
        request.getfixturevalue("_tasks_end")
