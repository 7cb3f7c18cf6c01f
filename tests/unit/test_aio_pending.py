"""Results that come later: who waits is called at once, and who was cancelled is not."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from service.aio.pending import Pending


async def test_callbacks_run_at_once_and_in_order() -> None:
    pending, calls = Pending[int](), list[tuple[str, int]]()
    pending.add_done_callback(lambda done: calls.append(("first", done.result())))
    pending.add_done_callback(lambda done: calls.append(("second", done.result())))
    pending.resolve(7)
    assert calls == [("first", 7), ("second", 7)]
    pending.add_done_callback(lambda done: calls.append(("late", done.result())))
    assert calls[2:] == [("late", 7)]


async def test_only_the_first_end_counts() -> None:
    pending, calls = Pending[int](), list[Pending[int]]()
    pending.add_done_callback(calls.append)
    pending.fail(ValueError("first"))
    pending.resolve(7)
    pending.fail(ValueError("second"))
    assert calls == [pending]
    with pytest.raises(ValueError, match="first"):
        pending.result()


@pytest.mark.parametrize("comes", ["before", "after"])
async def test_awaiting_returns_the_result_or_raises_the_error(comes: str) -> None:
    good, bad = Pending[int](), Pending[int]()

    def end() -> None:
        good.resolve(7)
        bad.fail(ValueError("no"))

    if comes == "before":
        end()
    else:
        asyncio.get_running_loop().call_soon(end)
    assert await good == 7
    with pytest.raises(ValueError, match="no"):
        await bad


async def test_callback_that_raises_is_logged_and_delays_no_other() -> None:
    pending, calls = Pending[int](), list[int]()
    pending.add_done_callback(list[object]().remove)  # raises ValueError
    pending.add_done_callback(lambda done: calls.append(done.result()))
    with capture_logs() as logs:
        pending.resolve(7)
    assert calls == [7]
    assert [entry["event"] for entry in logs] == ["callback_failed"]


async def test_cancelled_wait_calls_nobody_back() -> None:
    pending, calls = Pending[int](), list[Pending[int]]()
    pending.add_done_callback(calls.append)

    async def wait() -> int:
        return await pending

    waiting = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pending.is_done
    pending.resolve(7)
    assert calls == []
