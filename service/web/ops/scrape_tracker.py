"""Tracks which addresses scrape `/metrics`, so that a node can wait for its last scrape before it exits."""

from __future__ import annotations

import asyncio

from service.core.clock import Clock
from service.core.recent_keys import RecentKeys

SCRAPER_TTL = 150.0
"""Seconds after its last scrape for which an address counts as a scraper: more than two default scrape intervals of
Prometheus."""
MAX_SCRAPERS = 32
"""Addresses that are remembered. Above this, the address with the oldest scrape is evicted."""


class ScrapeTracker:
    """Remembers recent scrapers and waits until each of them has scraped again."""

    def __init__(self, clock: Clock) -> None:
        self._recent: RecentKeys[str] = RecentKeys(clock, SCRAPER_TTL, MAX_SCRAPERS)
        self._awaited: set[str] = set()
        self._is_complete = asyncio.Event()
        self._is_cancelled = False

    def record(self, address: str) -> None:
        """Records that a scrape was rendered for this address."""
        self._recent.add(address)
        self._awaited.discard(address)
        if not self._awaited:
            self._is_complete.set()

    @property
    def recent(self) -> set[str]:
        """The addresses that scraped within SCRAPER_TTL."""
        return set(self._recent)

    async def wait_for_each(self, timeout: float) -> bool:  # noqa: ASYNC109  # returns False after the timeout
        """Waits until every recent scraper has scraped again; False after `timeout` seconds or `cancel_wait`."""
        self._awaited = self.recent
        if not self._awaited:
            return True
        if self._is_cancelled:
            return False
        self._is_complete.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._is_complete.wait()
        except TimeoutError:
            return False
        return not self._awaited

    def cancel_wait(self) -> None:
        """Ends the current wait and every later one at once."""
        self._is_cancelled = True
        self._is_complete.set()
