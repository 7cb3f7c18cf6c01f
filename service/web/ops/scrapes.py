"""Who reads `/metrics`, so that the last numbers of a node that goes away are read too."""

from __future__ import annotations

import asyncio

from service.core.clock import Clock
from service.core.recent_keys import RecentKeys

RECENT = 150.0
"""Seconds after its last scrape in which an address counts as one that scrapes: more than two of Prometheus' default minute."""
MAX_ADDRESSES = 32
"""Addresses that are remembered; with more, the one that scraped longest ago is forgotten."""


class Scrapes:
    """Remembers the addresses that scraped lately, and waits until each has done so once more."""

    def __init__(self, clock: Clock) -> None:
        self._recent: RecentKeys[str] = RecentKeys(clock, RECENT, MAX_ADDRESSES)
        self._missing: set[str] = set()
        self._is_complete = asyncio.Event()
        self._is_hurried = False

    def note(self, address: str) -> None:
        """Takes note of a scrape that has been rendered."""
        self._recent.add(address)
        self._missing.discard(address)
        if not self._missing:
            self._is_complete.set()

    @property
    def recent(self) -> set[str]:
        """The addresses that scraped lately."""
        return set(self._recent)

    async def wait_for_each(self, within: float) -> bool:
        """Waits until every address that scraped lately has scraped again; False if that takes longer than so many seconds, or
        is hurried."""
        self._missing = self.recent
        if not self._missing:
            return True
        if self._is_hurried:
            return False
        self._is_complete.clear()
        try:
            async with asyncio.timeout(within):
                await self._is_complete.wait()
        except TimeoutError:
            return False
        return not self._missing

    def hurry(self) -> None:
        """Ends the wait, also one that has not begun."""
        self._is_hurried = True
        self._is_complete.set()
