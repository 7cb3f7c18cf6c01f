"""Connections by tenant and user: here exactly, and on all nodes together as far as their shared store tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from itertools import islice
from typing import Any

import structlog

from service.aio.tasks import TaskSupervisor
from service.core.backoff import jittered
from service.core.clock import Timer
from service.core.identity import Identity
from service.core.limits import Limits
from service.core.quota import CLAIM_TTL, QuotaClaim, QuotaScope, QuotaStore
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics

RENEWAL = CLAIM_TTL / 3
"""Seconds between two renewals of all claims."""
RETRY = 1.0
"""Seconds between two tries while the store is away."""
GATHERING = 0.1
"""Seconds that places given back wait for others, so that a crowd that leaves is told of in a few calls."""
SLICE = 1_000
"""Claims in one call of the store."""

_log = structlog.get_logger("caps")


def holders(identity: Identity) -> tuple[QuotaScope, ...]:
    """Whom a connection counts for."""
    tenant = QuotaScope(identity.tenant)
    return (tenant,) if identity.is_anonymous else (tenant, QuotaScope(identity.tenant, identity.user))


def cap_reached(name: str, cap: int, metrics: Metrics) -> ServiceError:
    """Counts a refusal for the setting `limits.…` with this name, and makes it."""
    metrics.limits.limit_hits.labels(limit=name).inc()
    return ServiceError(
        ErrorCode.TOO_MANY_CONNECTIONS, f"limits.{name} ({cap}) is reached", scope=name, retry_after=jittered(5.0)
    )


class ConnectionQuota:
    """The caps on connections that hold over all nodes.

    While the store is away those of this node alone are kept to, with the same numbers: nobody is refused for want of an
    answer, and no connection waits for one twice.
    """

    def __init__(self, store: QuotaStore, limits: Limits, runtime: Runtime) -> None:
        self._store = store
        self.is_shared = store.is_shared
        """Whether other nodes may have connections of the same holders."""
        self._limits = limits
        self._runtime = runtime
        self.held: Counter[QuotaScope] = Counter()
        """Of this node."""
        self._changed: set[QuotaScope] = set()
        """Holders with fewer connections here than the store may know of."""
        self._away = False
        self._outage = runtime.outages.log(
            _log, "caps of this node alone", "caps of all nodes again", runtime.clock.monotonic
        )
        self._telling: Timer | None = None
        self._renewing: Timer | None = None
        self._closed = False

    def start(self) -> None:
        """Begins to renew what this node claims."""
        self._renew_after(RENEWAL)

    def close(self) -> None:
        """Lets the timers go; what this node claims expires in the store."""
        self._closed = True
        for timer in (self._telling, self._renewing):
            if timer is not None:
                timer.cancel()

    def rebuild(self) -> None:
        """Claims everything anew, soon: the store may have lost it."""
        if self._renewing is not None:
            self._renewing.cancel()
            self._renew_after(GATHERING)

    def take(self, identity: Identity) -> None:
        """Counts a connection here. Raises ServiceError(TOO_MANY_CONNECTIONS) if this node alone reaches a cap."""
        concerned, held = holders(identity), self.held
        for holder in concerned:
            most = self._most(holder)
            if most is not None and held.get(holder, 0) >= most:
                raise self._full(holder)
        for holder in concerned:
            held[holder] = held.get(holder, 0) + 1

    async def confirm(self, identity: Identity) -> None:
        """Counts a connection that was taken on all nodes, where `is_shared`. Raises ServiceError(TOO_MANY_CONNECTIONS); it must
        be given back then as ever."""
        if self._away:
            self._runtime.metrics.limits.caps_unshared.inc()
            return
        claims = [QuotaClaim(holder, self.held[holder], self._most(holder)) for holder in holders(identity)]
        try:
            totals = await self._store.claim(claims)
        except ServiceError as error:
            self._lose(error)
            self._runtime.metrics.limits.caps_unshared.inc()
            return
        for claim, total in zip(claims, totals, strict=True):
            if claim.max_connections is not None and total > claim.max_connections:
                raise self._full(claim.scope)

    def give_back(self, identity: Identity) -> None:
        """Counts a connection less, here at once and on all nodes soon."""
        for holder in holders(identity):
            self.held[holder] -= 1
            if self.held[holder] <= 0:
                del self.held[holder]
            self._changed.add(holder)
        if self._telling is None and not self._closed:
            self._telling = self._runtime.clock.call_later(GATHERING, self._spawn("caps told", self._tell))

    def _most(self, holder: QuotaScope) -> int | None:
        if holder.user is None:
            return self._limits.connections_per_tenant
        return self._limits.connections_per_user if self._limits.on_user_cap == "refuse" else None

    def _full(self, holder: QuotaScope) -> ServiceError:
        scope = "connections_per_tenant" if holder.user is None else "connections_per_user"
        return cap_reached(scope, getattr(self._limits, scope), self._runtime.metrics)

    async def _tell(self) -> None:
        changed, self._changed = self._changed, set()
        self._telling = None
        if self._away:  # what is still held is told on return, what is not expires
            return
        try:
            await self._claim(changed)
        except ServiceError as error:
            self._lose(error)

    async def _renew(self) -> None:
        self._renewing = None
        try:
            await self._claim(list(self.held))
        except ServiceError as error:
            self._lose(error)
        else:
            self._find()
        finally:
            self._renew_after(RETRY if self._away else RENEWAL)

    async def _claim(self, concerned: Iterable[QuotaScope]) -> None:
        left = iter(concerned)
        while some := list(islice(left, SLICE)):
            await self._store.claim([QuotaClaim(holder, self.held.get(holder, 0)) for holder in some])

    def _renew_after(self, delay: float) -> None:
        if not self._closed:
            self._renewing = self._runtime.clock.call_later(delay, self._spawn("caps renewal", self._renew))

    def _lose(self, error: ServiceError) -> None:
        self._outage.failed(code=error.code.code, reason=error.message)
        if self._away:
            return
        self._away = True
        if self._renewing is not None:
            self._renewing.cancel()
            self._renew_after(RETRY)

    def _find(self) -> None:
        self._away = False
        self._outage.recovered()

    def _spawn(self, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        return partial(_spawn, self._runtime.tasks, name, work)


def _spawn(tasks: TaskSupervisor, name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    tasks.spawn(name, work())
