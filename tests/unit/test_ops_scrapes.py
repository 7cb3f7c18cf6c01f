"""The last scrape of a node that goes away: it is waited for, for as long as there is somebody to wait for."""

from __future__ import annotations

import asyncio

from service.web.ops.scrapes import MAX_ADDRESSES, RECENT, Scrapes
from tests.support.clock import FakeClock

LONG = 60.0
"""Seconds that no test waits."""


def waiting(scrapes: Scrapes) -> asyncio.Task[bool]:
    return asyncio.create_task(scrapes.wait_for_each(LONG))


async def test_wait_without_scrapers_returns_at_once() -> None:
    assert await Scrapes(FakeClock()).wait_for_each(LONG)


async def test_wait_ends_when_each_scraper_has_scraped_again() -> None:
    scrapes = Scrapes(FakeClock())
    scrapes.note("10.0.0.1")
    scrapes.note("10.0.0.2")
    wait = waiting(scrapes)
    await asyncio.sleep(0)
    scrapes.note("10.0.0.1")
    scrapes.note("10.0.0.1")
    await asyncio.sleep(0)
    assert not wait.done(), "the other of two Prometheus servers has not been here yet"
    scrapes.note("10.0.0.2")
    assert await wait


async def test_wait_does_not_count_a_scraper_that_stopped_long_ago() -> None:
    clock = FakeClock()
    scrapes = Scrapes(clock)
    scrapes.note("10.0.0.1")
    clock.advance(RECENT + 1)
    assert scrapes.recent == set()
    assert await scrapes.wait_for_each(LONG)


async def test_wait_ends_after_its_time() -> None:
    scrapes = Scrapes(FakeClock())
    scrapes.note("10.0.0.1")
    assert not await scrapes.wait_for_each(0.01)


async def test_wait_is_ended_by_a_hurry_before_or_during_it() -> None:
    scrapes = Scrapes(FakeClock())
    scrapes.note("10.0.0.1")
    wait = waiting(scrapes)
    await asyncio.sleep(0)
    scrapes.hurry()
    assert not await wait
    assert not await scrapes.wait_for_each(LONG)


def test_number_of_remembered_addresses_is_bounded() -> None:
    scrapes = Scrapes(FakeClock())
    for number in range(MAX_ADDRESSES + 5):
        scrapes.note(f"10.0.0.{number}")
    assert len(scrapes.recent) == MAX_ADDRESSES
    assert "10.0.0.0" not in scrapes.recent
