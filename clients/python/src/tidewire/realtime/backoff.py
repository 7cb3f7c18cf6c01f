"""How long to wait before the next try, and before the next message."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Mapping
from typing import Any


class Backoff:
    """Random waits, up to a bound that doubles with each failure ("full jitter")."""

    def __init__(self, base: float = 0.5, cap: float = 20.0, random: Callable[[], float] = _random.random) -> None:
        self._base = base
        self._cap = cap
        self._random = random
        self.failures = 0

    def next(self) -> float:
        """Returns the seconds to wait after one more failure."""
        bound = min(self._cap, self._base * 2.0 ** min(self.failures, 30))
        self.failures += 1
        return self._random() * bound

    def reset(self) -> None:
        """Begins again, after a success."""
        self.failures = 0


class Pacer:
    """Keeps messages within the rates that `welcome` has named, so that none is refused."""

    def __init__(self) -> None:
        self._rate = self._burst = self._level = 0.0
        self._at = 0.0

    def start(self, limits: Mapping[str, Any], now: float) -> None:
        """Takes the limits of a new connection; without any, messages do not wait."""
        user = limits.get("user") or {}
        rates = [one.get("rate") for one in (limits, user)]
        bursts = [one.get("burst") for one in (limits, user)]
        self._rate = min((float(rate) for rate in rates if rate), default=0.0)
        self._burst = self._level = max(1.0, min((float(burst) for burst in bursts if burst), default=0.0) * 0.9)
        self._at = now

    def take(self, now: float) -> float:
        """Counts a message; returns the seconds to wait before it is sent."""
        if not self._rate:
            return 0.0
        self._level = min(self._burst, self._level + (now - self._at) * self._rate) - 1.0
        self._at = now
        return max(0.0, -self._level / self._rate)
