"""ScrapeTracker: a node waits for the last scrape of each recent scraper."""

from __future__ import annotations

import asyncio

from service.web.ops.scrape_tracker import MAX_SCRAPERS, SCRAPER_TTL, ScrapeTracker
from tests.support.clock import FakeClock

LONG = 60.0
"""Seconds; a timeout that no test reaches."""


def waiting(tracker: ScrapeTracker) -> asyncio.Task[bool]:
    return asyncio.create_task(tracker.wait_for_each(LONG))


async def test_wait_without_scrapers_returns_at_once() -> None:
    assert await ScrapeTracker(FakeClock()).wait_for_each(LONG)


async def test_wait_ends_when_each_scraper_has_scraped_again() -> None:
    tracker = ScrapeTracker(FakeClock())
    tracker.record("10.0.0.1")
    tracker.record("10.0.0.2")
    wait = waiting(tracker)
    await asyncio.sleep(0)
    tracker.record("10.0.0.1")
    tracker.record("10.0.0.1")
    await asyncio.sleep(0)
    assert not wait.done(), "the second Prometheus server has not scraped again yet"
    tracker.record("10.0.0.2")
    assert await wait


async def test_wait_ignores_scrapers_past_the_ttl() -> None:
    clock = FakeClock()
    tracker = ScrapeTracker(clock)
    tracker.record("10.0.0.1")
    clock.advance(SCRAPER_TTL + 1)
    assert tracker.recent == set()
    assert await tracker.wait_for_each(LONG)


async def test_wait_after_its_timeout_returns_false() -> None:
    tracker = ScrapeTracker(FakeClock())
    tracker.record("10.0.0.1")
    assert not await tracker.wait_for_each(0.01)


async def test_cancel_wait_ends_current_and_later_waits() -> None:
    tracker = ScrapeTracker(FakeClock())
    tracker.record("10.0.0.1")
    wait = waiting(tracker)
    await asyncio.sleep(0)
    tracker.cancel_wait()
    assert not await wait
    assert not await tracker.wait_for_each(LONG)


def test_tracker_above_max_scrapers_forgets_the_oldest() -> None:
    tracker = ScrapeTracker(FakeClock())
    for number in range(MAX_SCRAPERS + 5):
        tracker.record(f"10.0.0.{number}")
    assert len(tracker.recent) == MAX_SCRAPERS
    assert "10.0.0.0" not in tracker.recent
