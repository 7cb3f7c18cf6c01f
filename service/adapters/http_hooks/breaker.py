"""A circuit breaker: spares an endpoint that fails, and those who would wait for it."""

from __future__ import annotations

from collections.abc import Callable

MAX_FAILURES = 10
"""Failures in a row after which the breaker opens."""
MIN_PAUSE, MAX_PAUSE = 1.0, 30.0
"""Seconds until the next trial: the first after it opens, twice as long after each failed trial."""


class CircuitBreaker:
    """Closed: everything may pass. Open: nothing may, until a pause is over; then one trial decides."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._failures = 0
        self._pause = MIN_PAUSE
        self._next_trial = 0.0
        self.is_open = False
        """True from MAX_FAILURES failures in a row until a success."""

    def may_pass(self) -> bool:
        """True if a request may be made now. While the breaker is open, the caller becomes the trial."""
        if not self.is_open:
            return True
        now = self._monotonic()
        if now < self._next_trial:
            return False
        self._next_trial = now + self._pause  # the next one, should the trial never report
        return True

    def succeeded(self) -> None:
        """Records a success: closes the breaker."""
        self._failures, self._pause, self.is_open = 0, MIN_PAUSE, False

    def failed(self) -> None:
        """Records a failure."""
        self._failures += 1
        if self.is_open:
            self._pause = min(2 * self._pause, MAX_PAUSE)
        elif self._failures < MAX_FAILURES:
            return
        self.is_open = True
        self._next_trial = self._monotonic() + self._pause
