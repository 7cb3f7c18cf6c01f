"""Waits before retries: those of the service itself, and those that it tells refused clients.

backoff = Backoff(0.1, 5.0)
await sleep(backoff.next())   # 0.05 to 0.1 s, then 0.1 to 0.2 s, …
backoff.reset()               # after a success
"""

from __future__ import annotations

import random

MAX_RETRY_AFTER = 60.0
"""Maximum seconds that a refused client is told to wait. The load after a minute is unknown."""
GOLDEN_RATIO = 0.618_033_988_749_895
"""Any number of its multiples, modulo 1, are spread evenly over 0 to 1."""


class Backoff:
    """Exponential backoff: from `initial` to `maximum` seconds, doubled each time, with up to half removed at random."""

    __slots__ = ("_initial", "_maximum", "_next")

    def __init__(self, initial: float, maximum: float) -> None:
        self._initial = initial
        self._maximum = maximum
        self._next = initial

    def next(self) -> float:
        """Returns the next wait in seconds."""
        wait, self._next = self._next, min(2 * self._next, self._maximum)
        return wait * random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, guards nothing

    def reset(self) -> None:
        """Starts again at the initial wait."""
        self._next = self._initial


def jittered(seconds: float) -> float:
    """Returns a random wait from `seconds` to twice that, so that clients refused at the same time return at different times."""
    return round(random.uniform(seconds, 2 * seconds), 3)  # noqa: S311  # spreads load, guards nothing


def next_retry_slot(last: float, now: float, soonest: float, step: float, full: float) -> tuple[float, float]:
    """Returns the next retry slot after `last` (a time), and the seconds until then.

    Args:
        last: The slot of the previous refused client.
        now: The current time.
        soonest: Seconds until a retry could succeed.
        step: Seconds that one request costs.
        full: Seconds that fill an empty bucket. Waits beyond that are replaced by random ones from its second half.
    """
    longest = min(MAX_RETRY_AFTER, full)
    slot = max(last, now + soonest - step) + step
    if slot <= now + longest:
        return slot, max(soonest, slot - now)
    return now + longest, max(soonest, random.uniform(longest / 2, longest))  # noqa: S311  # as above
