"""The clocks: the real one, and the one that tests move."""

from __future__ import annotations

import asyncio
import time

import pytest

from service.adapters.clock import SystemClock
from service.core.clock import Clock, milliseconds
from tests.support.clock import START, FakeClock


async def test_system_clock_returns_time_and_calls_back() -> None:
    clock: Clock = SystemClock()
    assert abs(clock.wall() - time.time()) < 5
    assert abs(milliseconds(clock) - time.time() * 1000) < 5000
    before = clock.monotonic()
    fired = asyncio.Event()
    cancelled = clock.call_later(0, lambda: pytest.fail("it was cancelled"))
    cancelled.cancel()
    timer = clock.call_later(0.01, fired.set)
    async with asyncio.timeout(5):
        await fired.wait()
    assert clock.monotonic() >= before + 0.01
    timer.cancel()  # harmless after it has happened


def test_fake_clock_moves_only_when_advanced() -> None:
    clock = FakeClock()
    assert (clock.wall(), milliseconds(clock)) == (START, int(START * 1000))
    before = clock.monotonic()
    clock.advance(1.5)
    assert (clock.wall(), clock.monotonic()) == (START + 1.5, before + 1.5)
    clock.jump_wall(-60)
    assert (clock.wall(), clock.monotonic()) == (START - 58.5, before + 1.5)
    with pytest.raises(ValueError, match="does not go back"):
        clock.advance(-1)


def test_fake_clock_fires_timers_in_order() -> None:
    clock = FakeClock()
    began = clock.monotonic()
    fired: list[tuple[str, float]] = []

    def note(name: str) -> None:
        fired.append((name, clock.monotonic() - began))

    def chain() -> None:
        note("chain")
        clock.call_later(1, lambda: note("chained"))
        clock.call_later(60, lambda: note("too late"))

    clock.call_later(3, lambda: note("third"))
    clock.call_later(1, lambda: note("first"))
    clock.call_later(1, lambda: note("first too"))
    clock.call_later(2, chain)
    clock.call_later(2, lambda: pytest.fail("it was cancelled")).cancel()
    clock.advance(0.5)
    assert fired == []
    clock.advance(2.5)
    assert fired == [("first", 1), ("first too", 1), ("chain", 2), ("third", 3), ("chained", 3)]
    assert clock.pending == 1
    assert clock.monotonic() == began + 3


def test_fake_clock_fires_zero_delay_at_the_next_advance() -> None:
    clock = FakeClock()
    fired: list[int] = []
    clock.call_later(0, lambda: fired.append(1))
    clock.call_later(-5, lambda: fired.append(2))
    assert fired == []
    clock.advance(0)
    assert fired == [1, 2]
