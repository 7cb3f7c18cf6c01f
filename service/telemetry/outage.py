"""Logs for operations that fail again and again: a few records for each outage, however often they are retried.

outage = outages.log(log, "health_check_failed", "health_check_recovered", clock.monotonic)
outage.failed(reason="timeout")   # logged at the start of an outage, and as a reminder
outage.recovered()                # logged with the seconds that it lasted
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import inf
from typing import Any

REPEAT_INTERVAL = 60.0
"""Seconds between two records of the same event, at least."""
MAX_REMINDER_INTERVAL = 3_600.0
"""Seconds between two reminders, at most. The first comes after REPEAT_INTERVAL, and each interval is twice the one
before."""
MAX_REASONS = 4
"""Different reasons that are logged for one outage."""
MAX_KEYS = 64
"""Keys that a LimitedLog distinguishes within REPEAT_INTERVAL. Further keys share one."""
EXPLAIN_TIMEOUT = 5.0
"""Seconds that a failure waits for an explanation. `BrokerHealth` asserts that it detects an outage sooner."""


class Outages:
    """The outage logs of one node.

    While the broker is unavailable, nearly every loop fails. `BrokerHealth` logs that once. Other logs record only failures
    that it does not explain.
    """

    def __init__(self) -> None:
        self._explained_until = -inf
        self._logs: dict[str, OutageLog] = {}
        self._limited: dict[str, LimitedLog] = {}

    def broker_lost(self) -> None:
        """Marks every failure from now on as explained."""
        self._explained_until = inf

    def broker_recovered(self, now: float) -> None:
        """Failures after `now` (monotonic) are no longer explained."""
        self._explained_until = now

    def explains(self, since: float, now: float) -> bool:
        """Whether a failure that began at `since` has an explanation, or may still get one."""
        return now - max(since, self._explained_until) < EXPLAIN_TIMEOUT

    def log(self, log: Any, failed: str, recovered: str, monotonic: Callable[[], float]) -> OutageLog:
        """Returns the log of the event `failed`. All callers share it; `key` distinguishes them."""
        if failed not in self._logs:
            self._logs[failed] = OutageLog(log, failed, recovered, monotonic, outages=self)
        return self._logs[failed]

    def limited(self, log: Any, event: str, monotonic: Callable[[], float], *, level: str = "warning") -> LimitedLog:
        """Returns the log of the event. All callers share it."""
        if event not in self._limited:
            self._limited[event] = LimitedLog(log, event, monotonic, level=level)
        return self._limited[event]


class OutageLog:
    """Logs the start of an outage as a warning, reminders while it lasts, and its end with the seconds that it lasted.

    Outages in quick succession are logged once a minute, with the number of outages in between. Operations that share a log
    pass a `key`: the outage ends when none of the failed keys is left.
    """

    __slots__ = (
        "_events",
        "_failing",
        "_interval",
        "_is_logged",
        "_log",
        "_monotonic",
        "_next_record",
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
        """Creates a log.

        Args:
            log: A structlog logger.
            failed: The event at the start of an outage.
            recovered: The event at its end.
            monotonic: The clock.
            reminds: Whether to log reminders.
            outages: Explains failures; explained failures are not logged.
        """
        self._log = log
        self._events = (failed, recovered)
        self._monotonic = monotonic
        self._reminds = reminds
        self._outages = outages
        self._since = 0.0
        self._failing: set[object] = set()
        self._is_logged = False
        """Whether the start of this outage is logged."""
        self._next_record = -inf
        """When the next failure may be logged."""
        self._interval = REPEAT_INTERVAL
        self._reasons: set[object] = set()
        self._skipped = 0
        """Outages since the last logged one that were not logged."""

    @property
    def is_on(self) -> bool:
        """Whether an operation is failing now."""
        return bool(self._failing)

    def failed(self, key: object = None, **fields: object) -> bool:
        """Records a failure. Logs it at the start of an outage, for a new `reason`, and as a reminder.

        Returns whether it was logged.
        """
        now = self._monotonic()
        if not self._failing:
            self._since = now
        self._failing.add(key)
        if self._outages is not None and self._outages.explains(self._since, now):
            return False
        reason = fields.get("reason")
        is_due = now >= self._next_record
        if not self._is_logged:
            if not is_due:
                return False
            if self._skipped:
                fields["outages_before"] = self._skipped
            self._is_logged, self._interval, self._skipped = True, REPEAT_INTERVAL, 0
            self._reasons.clear()
            self._next_record = now + REPEAT_INTERVAL
        elif is_due and self._reminds:
            self._interval = min(2 * self._interval, MAX_REMINDER_INTERVAL)
            self._next_record = now + self._interval
        elif reason in self._reasons or len(self._reasons) >= MAX_REASONS:
            return False
        self._reasons.add(reason)
        if (seconds := round(now - self._since, 1)) > 0:
            fields["seconds"] = seconds
        self._log.warning(self._events[0], **fields)
        return True

    def recovered(self, key: object = None, **fields: object) -> bool:
        """Records a success, or that the operation is no longer wanted. Does nothing if it had not failed.

        Returns whether it was logged.
        """
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
        self._next_record = min(self._next_record, now + REPEAT_INTERVAL)
        self._log.info(self._events[1], seconds=round(now - self._since, 1), **fields)
        return True


class LimitedLog:
    """Logs an event once a minute for each key, with the number of times that it was skipped since."""

    __slots__ = ("_event", "_keys", "_level", "_log", "_monotonic")

    def __init__(
        self, log: Any, event: str, monotonic: Callable[[], float] = time.monotonic, *, level: str = "warning"
    ) -> None:
        self._log = log
        self._event = event
        self._monotonic = monotonic
        self._level = level
        self._keys: dict[object, tuple[float, int]] = {}
        """For each key: when it may be logged again, and how often it was skipped."""

    def __call__(self, key: object = None, **fields: object) -> None:
        """Logs the event, or counts it as skipped."""
        now = self._monotonic()
        if key not in self._keys and len(self._keys) >= MAX_KEYS:
            self._keys = {known: entry for known, entry in self._keys.items() if now < entry[0]}
            if len(self._keys) >= MAX_KEYS:
                key = None
        next_record, skipped = self._keys.get(key, (-inf, 0))
        if now < next_record:
            self._keys[key] = (next_record, skipped + 1)
            return
        self._keys[key] = (now + REPEAT_INTERVAL, 0)
        if skipped:
            fields["skipped"] = skipped
        getattr(self._log, self._level)(self._event, **fields)
