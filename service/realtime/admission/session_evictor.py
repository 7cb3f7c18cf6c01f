"""Where a user's newest connections replace the oldest: who is the oldest, over all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice

import structlog

from service.core.clock import Timer
from service.core.identity import Identity
from service.core.limits import Limits
from service.core.quota import QuotaScope, QuotaStore, SessionOrderUpdate
from service.errors import ServiceError
from service.realtime.admission.quota import GATHERING, RENEWAL, SLICE
from service.realtime.runtime import Runtime

_log = structlog.get_logger("lines")


class SessionEvictor:
    """Tells the store of this node's connections, and has the ones ended that it finds too many.

    Does nothing unless `limits.on_user_cap` is `replace`. While the store is away each node replaces among its own.
    """

    def __init__(
        self,
        store: QuotaStore,
        limits: Limits,
        runtime: Runtime,
        end: Callable[[Sequence[str]], Awaitable[object]],
    ) -> None:
        self._store = store
        self._most = limits.connections_per_user
        self._replaces = limits.on_user_cap == "replace"
        self._runtime = runtime
        self._end = end
        self._here: dict[QuotaScope, dict[str, bool]] = {}
        """Connections, and whether the store knows of them; the newest last."""
        self._gone: dict[QuotaScope, list[str]] = {}
        self._telling: Timer | None = None
        self._renewing: Timer | None = None
        self._lock = asyncio.Lock()
        self._outage = runtime.outages.log(_log, "lines not told", "lines told again", runtime.clock.monotonic)
        """Held across every call, as what is said of one connection must arrive in order."""
        self._closed = False

    def start(self) -> None:
        """Begins to renew the places."""
        if self._replaces:
            self._renew_later()

    def close(self) -> None:
        """Lets the timers go; places expire in the store."""
        self._closed = True
        for timer in (self._telling, self._renewing):
            if timer is not None:
                timer.cancel()

    def come(self, identity: Identity, connection: str) -> None:
        """Puts a connection at the end of its user's line."""
        if self._replaces and not identity.is_anonymous:
            self._here.setdefault(QuotaScope(identity.tenant, identity.user), {})[connection] = False
            self._tell_soon()

    def go(self, identity: Identity, connection: str) -> None:
        """Takes it out; harmless if it is not there."""
        holder = QuotaScope(identity.tenant, identity.user)
        here = self._here.get(holder, {})
        if here.pop(connection, None) is None:
            return
        if not here:
            del self._here[holder]
        self._gone.setdefault(holder, []).append(connection)
        self._tell_soon()

    def _tell_soon(self) -> None:
        if self._telling is None and not self._closed:
            self._telling = self._runtime.clock.call_later(GATHERING, self._begin_to_tell)

    def _begin_to_tell(self) -> None:
        self._telling = None
        self._runtime.tasks.spawn("lines told", self._tell())

    async def _tell(self) -> None:
        async with self._lock:
            gone, self._gone = self._gone, {}
            new = {holder for holder, here in self._here.items() if not all(here.values())}
            await self._say([self._step(holder, gone.get(holder, ()), renewing=False) for holder in {*gone, *new}])

    def _renew_later(self) -> None:
        if not self._closed:
            self._renewing = self._runtime.clock.call_later(RENEWAL, self._begin_to_renew)

    def _begin_to_renew(self) -> None:
        self._runtime.tasks.spawn("lines renewal", self._renew())

    async def _renew(self) -> None:
        try:
            async with self._lock:
                await self._say([self._step(holder, (), renewing=True) for holder in self._here])
        finally:
            self._renew_later()

    def _step(self, holder: QuotaScope, gone: Sequence[str], *, renewing: bool) -> SessionOrderUpdate:
        here = self._here.get(holder, {})
        came = [connection for connection, known in here.items() if not known]
        stay = [connection for connection, known in here.items() if known] if renewing else []
        return SessionOrderUpdate(holder, self._most, came, stay, gone)

    async def _say(self, steps: Sequence[SessionOrderUpdate]) -> None:
        left = iter(steps)
        try:
            while some := list(islice(left, SLICE)):
                oldest = [one for line in await self._store.update_session_order(some) for one in line]
                for step in some:
                    here = self._here.get(step.scope, {})
                    here.update((connection, True) for connection in step.added if connection in here)
                if oldest:
                    await self._end(oldest)
            self._outage.recovered()
        except ServiceError as error:  # what came is said again with the next renewal, what went expires
            self._outage.failed(code=error.code.code)
