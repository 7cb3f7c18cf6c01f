"""Joins the frames of one room that arrive within a batching window."""

from __future__ import annotations

from collections.abc import Callable, Collection

from service.core.clock import Clock, Timer
from service.realtime.connections.frame import Frame

_NEVER = float("inf")
_LONG_AGO = -_NEVER
"""Rooms share these objects, to save memory."""


class Batcher:
    """Collects frames until the batching window of one of them ends. A frame replaces a pending one with the same key."""

    __slots__ = ("_clock", "_due_at", "_serial", "_timer", "flushed_at", "is_due", "pending")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.pending: dict[int | tuple[str, str, str], Frame] | None = None
        """The frames; None while there are none, to save memory. Only this class changes it."""
        self._serial = 0
        """The key of the last frame without one."""
        self.flushed_at = _LONG_AGO
        """Monotonic seconds of the last `take` that returned frames. Set it when a frame goes out without a batch."""
        self._timer: Timer | None = None
        self._due_at = _NEVER
        """Monotonic seconds at which the timer fires."""
        self.is_due = False
        """True if the pending frames may be sent now."""

    def add(self, frame: Frame, window: float, on_due: Callable[[], None]) -> None:
        """Adds a frame, and calls `on_due` when `window` seconds have passed since the last `take`.

        All pending frames are due then, so that the events of a channel keep their order across event types.
        """
        pending, key = self.pending, frame.key
        if pending is None:
            pending = self.pending = {}
        if key is None:
            self._serial += 1
            pending[self._serial] = frame
        else:
            if frame.keeps_order:
                pending.pop(key, None)
            pending[key] = frame
        if not window:
            if not self.is_due:  # else `on_due` was called for an earlier frame
                self.is_due = True
                on_due()
            return
        now = self._clock.monotonic()
        due_at = self.flushed_at + window
        if due_at <= now:
            self.is_due = True
            on_due()
        elif due_at < self._due_at and not self.is_due:
            if self._timer is not None:
                self._timer.cancel()
            self._due_at = due_at
            self._timer = self._clock.call_later(due_at - now, lambda: self._window_ended(on_due))

    def _window_ended(self, on_due: Callable[[], None]) -> None:
        self._timer = None
        self._due_at = _NEVER
        self.is_due = True
        on_due()

    def take(self) -> Collection[Frame]:
        """Removes and returns all frames, in order. If there are any, the next window starts now."""
        if self._timer is not None:
            self._stop_timer(self._timer)
        self.is_due = False
        pending = self.pending
        if pending is None:
            return ()
        self.pending = None
        self.flushed_at = self._clock.monotonic()
        return pending.values()

    def clear(self) -> None:
        """Drops all frames and cancels the timer."""
        self.pending = None
        if self._timer is not None:
            self._stop_timer(self._timer)
        self.is_due = False

    def _stop_timer(self, timer: Timer) -> None:
        timer.cancel()
        self._timer = None
        self._due_at = _NEVER
