"""Asks the backend again about sessions for which it has vouched, before they expire (hook `refresh`).

Only such a session has a timer. Sessions that have begun together are asked about at different times: `deadlines.expiry_notice`
before their end, and up to a quarter of their life earlier. A short session is asked about after half of its life.
"""

from __future__ import annotations

from service.core.authenticator import Authenticator
from service.core.backoff import jittered
from service.core.clock import Timer
from service.core.identity import Identity
from service.core.limits import Deadlines
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.realtime.connections.connection import Connection
from service.realtime.connections.transport import IdentityHolder
from service.realtime.runtime import Runtime

SPREAD = 0.25
"""The part of a session's life over which the questions about many sessions are spread."""
MAX_LEAD = 0.5
"""The part of a session's life that must have passed before the backend is asked again."""
RETRY_INTERVAL = 4.0
"""Seconds from a question without an answer to the next one, up to twice as many."""
MAX_CHECK_INTERVAL = 300.0
"""Seconds between two looks at the clock by which a session expires. That clock may jump, and timers do not see it."""
MIN_REFRESH_INTERVAL = 5.0
"""Seconds between two questions about one session for which its client is the cause."""


class Renewals:
    """Renews sessions in time. A session that is not renewed expires (ConnectionMonitor)."""

    def __init__(self, authenticator: Authenticator, deadlines: Deadlines, runtime: Runtime) -> None:
        self._authenticator = authenticator
        self._deadlines = deadlines
        self._clock = runtime.clock
        self._tasks = runtime.tasks
        self._limited = runtime.metrics.limits.limit_hits.labels(limit="hook_refreshes")
        self._watched: dict[Connection, _Watched] = {}
        runtime.metrics.hooks.hook_sessions.set_function(lambda: len(self._watched))

    def watch(self, connection: Connection) -> None:
        """Renews a session in time from now on, if the backend has vouched for it. Call it again after each new identity."""
        watched = self._watched.get(connection)
        if connection.session.identity.question is None:
            if watched is not None:
                self.discard(connection)
            return
        if watched is None:
            watched = self._watched[connection] = _Watched(self._clock.monotonic())
        self._schedule(connection, watched)

    def discard(self, connection: Connection) -> None:
        """Stops to watch a session. Does nothing for one that is not watched."""
        watched = self._watched.pop(connection, None)
        if watched is not None:
            watched.cancel()

    def close(self) -> None:
        """Cancels the timers."""
        for connection in tuple(self._watched):
            self.discard(connection)

    def check_rate(self, connection: Connection) -> None:
        """Raises ServiceError(RATE_LIMITED) if a client makes the backend be asked about its session too often."""
        watched = self._watched.get(connection)
        if watched is None:
            return
        now = self._clock.monotonic()
        wait = watched.next_refresh_at - now
        if wait > 0:
            self._limited.inc()
            raise ServiceError(
                ErrorCode.RATE_LIMITED,
                f"the backend is asked about a session at most every {MIN_REFRESH_INTERVAL:g} s",
                scope="connection",
                retry_after=round(wait, 3),
            )
        watched.next_refresh_at = now + MIN_REFRESH_INTERVAL

    def retry(self, connection: Connection) -> None:
        """Asks again soon, after a question without an answer, or rights that could not be applied."""
        watched = self._watched.get(connection)
        if watched is not None and connection.closing is None:
            watched.start(self._clock.call_later(jittered(RETRY_INTERVAL), lambda: self._ask(connection)))

    def _schedule(self, connection: Connection, watched: _Watched) -> None:
        left = self.due_in(connection)
        if left > MAX_CHECK_INTERVAL:
            timer = self._clock.call_later(MAX_CHECK_INTERVAL, lambda: self._schedule(connection, watched))
        else:
            timer = self._clock.call_later(max(0.0, left), lambda: self._ask(connection))
        watched.start(timer)

    def due_in(self, connection: Connection) -> float:
        """Returns the seconds until the backend is to be asked about a session for which it has vouched."""
        identity = connection.session.identity
        expires_at, issued_at = identity.expires_at or 0.0, identity.issued_at or 0.0
        life = expires_at - issued_at
        # From the connection's random id, as `rollout.max_age`: it takes no memory, and is the same at each look.
        spread = SPREAD * life * (hash(connection.id) & 0xFFFF) / 0x10000
        lead = min(self._deadlines.expiry_notice + spread, MAX_LEAD * life)
        return expires_at - lead - self._clock.wall()

    def _ask(self, connection: Connection) -> None:
        if connection in self._watched and connection.closing is None:
            self._tasks.spawn("session renewal", self._renew(connection, connection.session.identity))

    async def _renew(self, connection: Connection, old: Identity) -> None:
        try:
            new = await self._authenticator.authenticate_again(old)
        except ServiceError as error:
            if connection.session.identity is old:
                self._refused(connection, error)
            return
        handler = connection.transport.handler
        if isinstance(handler, IdentityHolder):
            handler.replace_identity(old, new)

    def _refused(self, connection: Connection, error: ServiceError) -> None:
        if error.retryable:
            self.retry(connection)
        elif error.code is ErrorCode.TOKEN_EXPIRED or error.code is ErrorCode.INVALID_TOKEN:
            # The client may have a new token. Otherwise the session ends at its expiry.
            ttl = (connection.session.identity.expires_at or 0.0) - self._clock.wall()
            connection.notify_expiring(max(0, round(ttl)))
        else:
            reason = error.details.get("reason")
            connection.close(CloseCode.UNAUTHORIZED, str(reason or error.message))


class _Watched:
    """The timer of one session, and when its client may cause the next question."""

    __slots__ = ("next_refresh_at", "timer")

    def __init__(self, now: float) -> None:
        self.timer: Timer | None = None
        self.next_refresh_at = now

    def start(self, timer: Timer) -> None:
        self.cancel()
        self.timer = timer

    def cancel(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
