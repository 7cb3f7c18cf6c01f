"""Distinguishes a silent server from a stalled process of our own."""

from __future__ import annotations


class SilenceDetector:
    """Checks at each ping whether the server has sent anything lately. Times are those of the event loop, in seconds."""

    __slots__ = ("_last_tick", "_ping_interval", "_silence_timeout", "last_data")

    def __init__(self, ping_interval: float, silence_timeout: float, now: float) -> None:
        self._ping_interval = ping_interval
        self._silence_timeout = silence_timeout
        self._last_tick = now
        self.last_data = now
        """When the server last sent something; the owner writes it for each piece of data."""

    def has_stalled(self, now: float) -> bool:
        """Called at each ping. Whether this process has stalled since the last ping.

        If it has, unread data may have arrived, so the silence is counted from now.
        """
        has_stalled = now - self._last_tick > 2 * self._ping_interval
        self._last_tick = now
        if has_stalled:
            self.last_data = now
        return has_stalled

    def is_silent(self, now: float) -> bool:
        """Whether the server counts as lost."""
        return now - self.last_data >= self._silence_timeout
