"""The connections that wait for `hello`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class PendingHandshakes:
    """The timeouts of all waits for `hello`, so that a drain can end them."""

    def __init__(self) -> None:
        self._timeouts: set[asyncio.Timeout] = set()

    def __len__(self) -> int:
        return len(self._timeouts)

    @contextlib.contextmanager
    def track(self, timeout: asyncio.Timeout) -> Iterator[None]:
        """Tracks a wait until the `with` block ends."""
        self._timeouts.add(timeout)
        try:
            yield
        finally:
            self._timeouts.discard(timeout)

    def expire(self) -> None:
        """Ends every wait, as if its timeout had passed."""
        now = asyncio.get_running_loop().time()
        for timeout in self._timeouts:
            if not timeout.expired():  # an expired timeout cannot be rescheduled, and its task runs next
                timeout.reschedule(now)
