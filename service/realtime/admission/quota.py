"""Caps on the connections of a tenant and of a user: exact for this node, and counted over all nodes in a shared store."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import structlog

from service.aio.timers import DelayedTask, PeriodicTask
from service.core.backoff import jittered
from service.core.identity import Identity
from service.core.limits import Limits
from service.core.quota import CLAIM_TTL, QuotaClaim, QuotaScope, QuotaStore
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics

RENEWAL_INTERVAL = CLAIM_TTL / 3
"""Seconds between two renewals of all claims: two may fail before a claim expires."""
RETRY_INTERVAL = 1.0
"""Seconds between two renewals while the store is away."""
RELEASE_DELAY = 0.1
"""Seconds that a release waits for others, so that many releases share a few calls of the store."""
MAX_CALL_CLAIMS = 1_000
"""Claims in one call of the store."""

_log = structlog.get_logger("quota")


_tenant_scope = lru_cache(maxsize=1024)(QuotaScope)
"""The scope of a tenant. Its connections share one object."""


def scopes_of(identity: Identity) -> tuple[QuotaScope, ...]:
    """Returns the scopes of a connection: its tenant, and its user unless it is anonymous."""
    tenant = _tenant_scope(identity.tenant)
    return (tenant,) if identity.is_anonymous else (tenant, QuotaScope(identity.tenant, identity.user))


def cap_reached(setting: str, cap: int, metrics: Metrics) -> ServiceError:
    """Counts a refusal for the setting `limits.<setting>`, and returns the error."""
    metrics.limits.limit_hits.labels(limit=setting).inc()
    return ServiceError(
        ErrorCode.TOO_MANY_CONNECTIONS, f"limits.{setting} ({cap}) is reached", scope=setting, retry_after=jittered(5.0)
    )


class ConnectionQuota:
    """Reserves a connection's place under the caps of its tenant and user.

    While the store is away, each node applies the same caps to its own connections. No connection is refused because the store
    does not answer. After the first failed call, new connections do not wait for the store.
    """

    def __init__(self, store: QuotaStore, limits: Limits, runtime: Runtime) -> None:
        self._store = store
        self.is_shared = store.is_shared
        """True if other nodes may have connections in the same scopes."""
        self._limits = limits
        self._metrics = runtime.metrics
        self._local: dict[QuotaScope, int] = {}
        """Connections of this node."""
        self._released: set[QuotaScope] = set()
        """Scopes in which this node has fewer connections than the store knows."""
        self._is_store_away = False
        self._outage = runtime.outages.log(
            _log, "quota_store_unavailable", "quota_store_available", runtime.clock.monotonic
        )
        clock, tasks = runtime.clock, runtime.tasks
        self._releases = DelayedTask(clock, tasks, "quota release", self._send_releases)
        self._renewals = PeriodicTask(clock, tasks, "quota renewal", self._renew, interval=RENEWAL_INTERVAL)

    def start(self) -> None:
        """Starts to renew this node's claims, unless it is alone."""
        if self.is_shared:
            self._renewals.start()

    def close(self) -> None:
        """Cancels the timers. Claims in the store expire."""
        self._releases.close()
        self._renewals.close()

    def renew_soon(self) -> None:
        """Schedules a renewal of all claims, because the store may have lost them."""
        self._renewals.run_within(RELEASE_DELAY)

    @property
    def scopes(self) -> int:
        """Tenants and users that have connections on this node."""
        return len(self._local)

    def count(self, scope: QuotaScope) -> int:
        """Returns the number of this node's connections in the scope."""
        return self._local.get(scope, 0)

    def reserve(self, identity: Identity) -> QuotaScope:
        """Counts a connection on this node. Raises ServiceError(TOO_MANY_CONNECTIONS) if this node alone reaches a cap.

        Returns the scope of the user, or that of the tenant for an anonymous connection.
        """
        local, limits = self._local, self._limits
        tenant = _tenant_scope(identity.tenant)
        of_tenant = local.get(tenant, 0)
        if of_tenant >= limits.connections_per_tenant:
            raise self._cap_reached(tenant)
        local[tenant] = of_tenant + 1
        if identity.is_anonymous:
            return tenant
        user = QuotaScope(identity.tenant, identity.user)
        of_user = local.get(user, 0)
        if of_user >= limits.connections_per_user and limits.on_user_cap == "refuse":
            local[tenant] = of_tenant
            raise self._cap_reached(user)
        local[user] = of_user + 1
        return user

    async def confirm(self, identity: Identity) -> None:
        """Counts a reserved connection over all nodes, if the quota `is_shared`.

        Raises ServiceError(TOO_MANY_CONNECTIONS). Even then, the caller must release the connection.
        """
        if self._is_store_away:
            self._metrics.limits.caps_unshared.inc()
            return
        claims = [QuotaClaim(scope, self.count(scope), self._cap(scope)) for scope in scopes_of(identity)]
        try:
            totals = await self._store.claim(claims)
        except ServiceError as error:
            self._record_failure(error)
            self._metrics.limits.caps_unshared.inc()
            return
        for claim, total in zip(claims, totals, strict=True):
            if claim.max_connections is not None and total > claim.max_connections:
                raise self._cap_reached(claim.scope)

    def release(self, identity: Identity) -> None:
        """Subtracts a connection: on this node at once, over all nodes after RELEASE_DELAY."""
        local = self._local
        for scope in scopes_of(identity):
            left = local[scope] - 1
            if left:
                local[scope] = left
            else:
                local.pop(scope)
            if self.is_shared:
                self._released.add(scope)
        if self.is_shared:
            self._releases.schedule(RELEASE_DELAY)

    def _cap(self, scope: QuotaScope) -> int | None:
        if scope.user is None:
            return self._limits.connections_per_tenant
        return self._limits.connections_per_user if self._limits.on_user_cap == "refuse" else None

    def _cap_reached(self, scope: QuotaScope) -> ServiceError:
        setting = "connections_per_tenant" if scope.user is None else "connections_per_user"
        return cap_reached(setting, getattr(self._limits, setting), self._metrics)

    async def _send_releases(self) -> None:
        released, self._released = self._released, set()
        if self._is_store_away:  # the next renewal sends all counts, and scopes without connections expire
            return
        try:
            await self._claim(list(released))
        except ServiceError as error:
            self._record_failure(error)

    async def _renew(self) -> float:
        try:
            await self._claim(list(self._local))
        except ServiceError as error:
            self._record_failure(error)
            return RETRY_INTERVAL
        self._is_store_away = False
        self._outage.recovered()
        return RENEWAL_INTERVAL

    async def _claim(self, scopes: Sequence[QuotaScope]) -> None:
        for start in range(0, len(scopes), MAX_CALL_CLAIMS):
            part = scopes[start : start + MAX_CALL_CLAIMS]
            await self._store.claim([QuotaClaim(scope, self.count(scope)) for scope in part])

    def _record_failure(self, error: ServiceError) -> None:
        self._outage.failed(code=error.code.code, reason=error.message)
        if not self._is_store_away:
            self._is_store_away = True
            self._renewals.run_within(RETRY_INTERVAL)
