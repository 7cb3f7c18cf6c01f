"""Logs for loops that try again: one line when something begins to fail, one when it succeeds again, none for each try."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class OutageLog:
    """Logs the beginning of an outage as a warning, and its end with the seconds that it lasted.

    Tries that share a log name themselves by `key`: the outage ends when none of those that failed is left.
    """

    __slots__ = ("_failing", "_log", "_monotonic", "_since", "_what")

    def __init__(self, log: Any, failed: str, recovered: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        """`log`: a structlog logger. `failed` and `recovered`: the two log events."""
        self._log = log
        self._what = (failed, recovered)
        self._monotonic = monotonic
        self._since = 0.0
        self._failing: set[object] = set()

    @property
    def is_on(self) -> bool:
        """Whether something is failing now."""
        return bool(self._failing)

    def failed(self, key: object = None, **fields: object) -> None:
        """A try has failed; logs the fields if it is the first of the outage."""
        if not self._failing:
            self._since = self._monotonic()
            self._log.warning(self._what[0], **fields)
        self._failing.add(key)

    def over(self, key: object = None, **fields: object) -> None:
        """A try has succeeded, or nobody wants it any more. Harmless when it had not failed."""
        if self._failing:
            self._failing.discard(key)
            if not self._failing:
                self._log.info(self._what[1], seconds=round(self._monotonic() - self._since, 1), **fields)
