"""Logs for what fails again and again: a few lines for each outage, however often something is tried."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Any

REPEAT_INTERVAL = 60.0
"""Seconds between two lines with the same event, at least."""
MAX_REMINDER_INTERVAL = 3_600.0
"""Seconds between two reminders, at most: the first comes after REPEAT_INTERVAL, each next one after twice as long."""
MAX_REASONS = 4
"""Different reasons that are logged of one outage."""
MAX_KEYS = 64
"""Keys of a LimitedLog that are told apart within REPEAT_INTERVAL; the rest share one."""
EXPLAIN_WITHIN = 5.0
"""Seconds that a failure waits for its explanation. Longer than the broker's health takes to notice an outage."""


class Outages:
    """The outage logs of a node's loops.

    While the broker is away, nearly every loop fails. `BrokerHealth` logs that once; the loops log only what it does not explain.
    """

    def __init__(self) -> None:
        self._explained_until = -inf
        self._logs: dict[str, OutageLog] = {}
        self._limited: dict[str, LimitedLog] = {}

    def broker_is_away(self) -> None:
        """From now on every failure is explained."""
        self._explained_until = inf

    def broker_is_back(self, now: float) -> None:
        """Failures after `now` (monotonic) are no longer explained."""
        self._explained_until = now

    def explains(self, since: float, now: float) -> bool:
        """Whether a failure that has lasted since then has an explanation, or may still get one."""
        return now - max(since, self._explained_until) < EXPLAIN_WITHIN

    def log(self, log: Any, failed: str, recovered: str, monotonic: Callable[[], float]) -> OutageLog:
        """The log with the event `failed`. All who ask for it share it, and name themselves by `key`."""
        if failed not in self._logs:
            self._logs[failed] = OutageLog(log, failed, recovered, monotonic, outages=self)
        return self._logs[failed]

    def limited(self, log: Any, event: str, monotonic: Callable[[], float], *, level: str = "warning") -> LimitedLog:
        """The log of this event, shared by all who ask for it."""
        if event not in self._limited:
            self._limited[event] = LimitedLog(log, event, monotonic, level=level)
        return self._limited[event]


class OutageLog:
    """Logs the beginning of an outage as a warning, reminders while it lasts, and its end with the seconds that it lasted.

    What fails and recovers in turn is logged once a minute, with the number of outages in between. Tries that share a log name
    themselves by `key`: the outage ends when none of those that failed is left.
    """

    __slots__ = (
        "_events",
        "_failing",
        "_interval",
        "_is_logged",
        "_log",
        "_monotonic",
        "_next_line",
        "_outages",
        "_reasons",
        "_reminds",
        "_since",
        "_skipped",
    )

    def __init__(
        self,
        log: Any,
        failed: str,
        recovered: str,
        monotonic: Callable[[], float] = time.monotonic,
        *,
        reminds: bool = True,
        outages: Outages | None = None,
    ) -> None:
        """`log`: a structlog logger. `failed` and `recovered`: the two log events. `reminds`: log that it still fails.
        `outages`: what may explain a failure, which is then not logged."""
        self._log = log
        self._events = (failed, recovered)
        self._monotonic = monotonic
        self._reminds = reminds
        self._outages = outages
        self._since = 0.0
        self._failing: set[object] = set()
        self._is_logged = False
        """Whether the beginning of this outage is."""
        self._next_line = -inf
        """When the next line about a failure is due."""
        self._interval = REPEAT_INTERVAL
        self._reasons: set[object] = set()
        self._skipped = 0
        """Outages that have not been logged since the last one that was."""

    @property
    def is_on(self) -> bool:
        """Whether something is failing now."""
        return bool(self._failing)

    def failed(self, key: object = None, **fields: object) -> bool:
        """A try has failed. Logs the fields at the beginning of an outage, for a new `reason` among them, and as a reminder.
        Returns whether it did."""
        now = self._monotonic()
        if not self._failing:
            self._since = now
        self._failing.add(key)
        if self._outages is not None and self._outages.explains(self._since, now):
            return False
        reason = fields.get("reason")
        is_due = now >= self._next_line
        if not self._is_logged:
            if not is_due:
                return False
            if self._skipped:
                fields["outages_before"] = self._skipped
            self._is_logged, self._interval, self._skipped = True, REPEAT_INTERVAL, 0
            self._reasons.clear()
            self._next_line = now + REPEAT_INTERVAL
        elif is_due and self._reminds:
            self._interval = min(2 * self._interval, MAX_REMINDER_INTERVAL)
            self._next_line = now + self._interval
        elif reason in self._reasons or len(self._reasons) >= MAX_REASONS:
            return False
        self._reasons.add(reason)
        if (seconds := round(now - self._since, 1)) > 0:
            fields["seconds"] = seconds
        self._log.warning(self._events[0], **fields)
        return True

    def over(self, key: object = None, **fields: object) -> bool:
        """A try has succeeded, or nobody wants it any more. Harmless when it had not failed. Returns whether it was logged."""
        if key not in self._failing:
            return False
        self._failing.discard(key)
        if self._failing:
            return False
        now = self._monotonic()
        if not self._is_logged:
            self._skipped += self._outages is None or not self._outages.explains(self._since, now)
            return False
        self._is_logged = False
        self._next_line = min(self._next_line, now + REPEAT_INTERVAL)
        self._log.info(self._events[1], seconds=round(now - self._since, 1), **fields)
        return True


class LimitedLog:
    """Logs an event once a minute for each key, with the number of times that it was not logged since."""

    __slots__ = ("_event", "_keys", "_level", "_log", "_monotonic")

    def __init__(
        self, log: Any, event: str, monotonic: Callable[[], float] = time.monotonic, *, level: str = "warning"
    ) -> None:
        self._log = log
        self._event = event
        self._monotonic = monotonic
        self._level = level
        self._keys: dict[object, tuple[float, int]] = {}
        """When each may be logged again, and how often it was not."""

    def __call__(self, key: object = None, **fields: object) -> None:
        """It has happened."""
        now = self._monotonic()
        if key not in self._keys and len(self._keys) >= MAX_KEYS:
            self._keys = {known: entry for known, entry in self._keys.items() if now < entry[0]}
            if len(self._keys) >= MAX_KEYS:
                key = None
        next_line, skipped = self._keys.get(key, (-inf, 0))
        if now < next_line:
            self._keys[key] = (next_line, skipped + 1)
            return
        self._keys[key] = (now + REPEAT_INTERVAL, 0)
        if skipped:
            fields["skipped"] = skipped
        getattr(self._log, self._level)(self._event, **fields)
