"""Closes a user's oldest sessions above the cap over all nodes, if `limits.on_user_cap` is `replace`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import islice

import structlog

from service.aio.timers import DelayedTask, PeriodicTask
from service.core.identity import Identity
from service.core.limits import Limits
from service.core.quota import QuotaScope, QuotaStore, SessionOrderUpdate
from service.errors import ServiceError
from service.realtime.admission.quota import MAX_CALL_CLAIMS, RELEASE_DELAY, RENEWAL_INTERVAL
from service.realtime.runtime import Runtime

_log = structlog.get_logger("session_evictor")


REPORT_DELAY = 0.5
"""Seconds that a replaced session waits for others, so that one command ends many."""
MAX_REPLACED = 10_000
"""Replaced sessions that wait for a command. One more drops the oldest, which only happens while the broker is away."""


class ReplacedSessions:
    """Ends replaced sessions on every node, with their receipts: with a few commands a second, however many there are."""

    def __init__(self, close: Callable[[Mapping[str, QuotaScope]], Awaitable[object]], runtime: Runtime) -> None:
        """`close` closes sessions on all nodes. Raises ServiceError."""
        self._close = close
        self._metrics = runtime.metrics
        self._waiting: dict[str, QuotaScope] = {}
        self._outage = runtime.outages.log(
            _log, "replaced_session_close_failed", "replaced_session_close_recovered", runtime.clock.monotonic
        )
        self._reports = DelayedTask(runtime.clock, runtime.tasks, "replaced sessions", self._report)

    def add(self, scope: QuotaScope, sessions: Sequence[str]) -> None:
        """Closes sessions of a user soon."""
        self._waiting.update(dict.fromkeys(sessions, scope))
        while len(self._waiting) > MAX_REPLACED:
            del self._waiting[next(iter(self._waiting))]
            self._metrics.limits.limit_hits.labels(limit="replaced_sessions").inc()
        self._reports.schedule(REPORT_DELAY)

    def close(self) -> None:
        """Cancels the timer."""
        self._reports.close()

    async def _report(self) -> None:
        sessions = dict(islice(self._waiting.items(), MAX_CALL_CLAIMS))
        try:
            await self._close(sessions)
        except ServiceError as error:
            self._outage.failed(code=error.code.code)
        else:
            self._outage.recovered()
            for session in sessions:
                self._waiting.pop(session, None)
        if self._waiting:
            self._reports.schedule(REPORT_DELAY)


class SessionEvictor:
    """Reports this node's connections to the store, and closes the sessions that the store reports as over the cap.

    Does nothing unless `limits.on_user_cap` is `replace`. While the store is away, each node closes only its own sessions.
    """

    def __init__(
        self,
        store: QuotaStore,
        limits: Limits,
        runtime: Runtime,
        close_sessions: Callable[[QuotaScope, Sequence[str]], object],
    ) -> None:
        """`close_sessions` closes connections of a user by their ids, on any node."""
        self._store = store
        self._max_connections = limits.connections_per_user
        self._is_enabled = limits.on_user_cap == "replace"
        self._close_sessions = close_sessions
        self._sessions: dict[QuotaScope, dict[str, bool]] = {}
        """Connections of this node, the newest last. The value is True if the store knows the connection."""
        self._removed: dict[QuotaScope, list[str]] = {}
        self._lock = asyncio.Lock()
        """Held during each call of the store, so that reports on one connection arrive in order."""
        self._outage = runtime.outages.log(
            _log, "session_eviction_report_failed", "session_eviction_report_recovered", runtime.clock.monotonic
        )
        clock, tasks = runtime.clock, runtime.tasks
        self._reports = DelayedTask(clock, tasks, "session report", self._report_changes)
        self._renewals = PeriodicTask(clock, tasks, "session renewal", self._renew, interval=RENEWAL_INTERVAL)

    def start(self) -> None:
        """Starts to renew this node's connections in the store."""
        if self._is_enabled:
            self._renewals.start()

    def close(self) -> None:
        """Cancels the timers. Connections in the store expire."""
        self._reports.close()
        self._renewals.close()

    def add(self, identity: Identity, connection: str) -> None:
        """Records a connection as its user's newest."""
        if self._is_enabled and not identity.is_anonymous:
            self._sessions.setdefault(QuotaScope(identity.tenant, identity.user), {})[connection] = False
            self._reports.schedule(RELEASE_DELAY)

    def remove(self, identity: Identity, connection: str, *, is_moved: bool = False) -> None:
        """Records that a connection has ended, or that another node reports it. Does nothing if it is unknown."""
        if not self._is_enabled:
            return
        scope = QuotaScope(identity.tenant, identity.user)
        sessions = self._sessions.get(scope, {})
        if sessions.pop(connection, None) is None:
            return
        if not sessions:
            del self._sessions[scope]
        if is_moved:
            return
        self._removed.setdefault(scope, []).append(connection)
        self._reports.schedule(RELEASE_DELAY)

    async def _report_changes(self) -> None:
        async with self._lock:
            removed, self._removed = self._removed, {}
            changed = {scope for scope, sessions in self._sessions.items() if not all(sessions.values())}
            await self._report(
                [self._update(scope, removed.get(scope, ()), renew=False) for scope in {*removed, *changed}]
            )

    async def _renew(self) -> None:
        async with self._lock:
            await self._report([self._update(scope, (), renew=True) for scope in self._sessions])

    def _update(self, scope: QuotaScope, removed: Sequence[str], *, renew: bool) -> SessionOrderUpdate:
        sessions = self._sessions.get(scope, {})
        added = [connection for connection, is_known in sessions.items() if not is_known]
        renewed = [connection for connection, is_known in sessions.items() if is_known] if renew else []
        return SessionOrderUpdate(scope, self._max_connections, added, renewed, removed)

    async def _report(self, updates: Sequence[SessionOrderUpdate]) -> None:
        try:
            for start in range(0, len(updates), MAX_CALL_CLAIMS):
                part = updates[start : start + MAX_CALL_CLAIMS]
                evicted = await self._store.update_session_order(part)
                for update, oldest in zip(part, evicted, strict=True):
                    sessions = self._sessions.get(update.scope, {})
                    sessions.update((connection, True) for connection in update.added if connection in sessions)
                    if oldest:
                        self._close_sessions(update.scope, oldest)
            self._outage.recovered()
        except ServiceError as error:  # the next renewal reports additions again, and removals expire
            self._outage.failed(code=error.code.code)
