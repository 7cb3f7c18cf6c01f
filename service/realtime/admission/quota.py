"""Caps on the connections of a tenant and of a user: exact for this node, and counted over all nodes in a shared store."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import structlog

from service.aio.timers import DelayedTask, PeriodicTask
from service.core.backoff import jittered
from service.core.identity import Identity
from service.core.limits import Limits
from service.core.quota import CLAIM_TTL, HoldChange, QuotaClaim, QuotaScope, QuotaStore, SessionHold, node_number
from service.errors import ErrorCode, ServiceError
from service.realtime.admission.message_rates import ConnectionRates, MessageRates
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics

RENEWAL_INTERVAL = CLAIM_TTL / 3
"""Seconds between two renewals of all claims: two may fail before a claim expires."""
RETRY_INTERVAL = 1.0
"""Seconds between two renewals while the store is away."""
RELEASE_DELAY = 0.1
"""Seconds that a release waits for others, so that many releases share a few calls of the store."""
MOVE_DELAY = 0.5
"""Seconds after which a session that was taken from another node counts here for its tenant. By then, that node has heard of
the move and counts the session no more. Counted twice meanwhile, it could keep another client out."""
CLOSE_TIMEOUT = 1.0
"""Seconds in which the last releases may reach the store when the node ends."""
MAX_CALL_CLAIMS = 1_000
"""Claims in one call of the store."""

_log = structlog.get_logger("quota")


def scopes_of(identity: Identity) -> tuple[QuotaScope, ...]:
    """Returns the scopes of a connection: its tenant, and its user unless it is anonymous."""
    tenant = QuotaScope(identity.tenant)
    return (tenant,) if identity.is_anonymous else (tenant, QuotaScope(identity.tenant, identity.user))


def _session_scope(identity: Identity, session: str) -> QuotaScope:
    """Returns the scope that counts a session: its user. An anonymous session has one of its own, without a cap."""
    return QuotaScope(identity.tenant, f"anonymous-{session}" if identity.is_anonymous else identity.user)


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

    def __init__(
        self, store: QuotaStore, limits: Limits, rates: MessageRates, runtime: Runtime, node_id: str = ""
    ) -> None:
        """`rates` counts the connections of this node. `node_id` tells the nodes apart that hold sessions."""
        self._store = store
        self._node = node_number(node_id)
        self.is_shared = store.is_shared
        """True if other nodes may have connections in the same scopes."""
        self._limits = limits
        self._rates = rates
        self._metrics = runtime.metrics
        self._released: set[QuotaScope] = set()
        """Scopes in which the number of this node's connections has changed since its last claim."""
        self._moving: Counter[str] = Counter()
        """Held sessions that do not count here yet, by tenant: they may still count at another node."""
        self._moves: deque[tuple[float, str]] = deque()
        """When they count here, the next one first, with their tenant. In monotonic seconds."""
        self._held: dict[QuotaScope, dict[str, Callable[[], None]]] = {}
        """Sessions of long polls that this node holds, by user. What is called when another node has taken the session."""
        self._given_up: list[SessionHold] = []
        """Sessions that have ended, which the store may still count."""
        self._is_store_away = False
        self._outage = runtime.outages.log(
            _log, "quota_store_unavailable", "quota_store_available", runtime.clock.monotonic
        )
        self._clock = clock = runtime.clock
        tasks = runtime.tasks
        self._move_ends = DelayedTask(clock, tasks, "quota move", self._end_moves)
        self._releases = DelayedTask(clock, tasks, "quota release", self._send_releases)
        self._renewals = PeriodicTask(clock, tasks, "quota renewal", self._renew, interval=RENEWAL_INTERVAL)

    def start(self) -> None:
        """Starts to renew this node's claims, unless it is alone."""
        if self.is_shared:
            self._renewals.start()

    def close(self) -> None:
        """Cancels the timers. Claims in the store expire."""
        self._releases.close()
        self._move_ends.close()
        self._renewals.close()

    async def flush(self) -> None:
        """Sends the releases that wait, so that no place stays taken until the claims of this node expire."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._send_releases()
        except TimeoutError:
            _log.warning("quota_release_timed_out", seconds=CLOSE_TIMEOUT)

    def renew_soon(self) -> None:
        """Schedules a renewal of all claims, because the store may have lost them."""
        self._renewals.run_within(RELEASE_DELAY)

    @property
    def scopes(self) -> int:
        """Tenants and users that have connections on this node."""
        return sum(1 + len(tenant.users) for tenant in self._rates.tenants.used.values())

    def _scopes(self) -> Iterator[QuotaScope]:
        for name, tenant in self._rates.tenants.used.items():
            yield QuotaScope(name)
            yield from (QuotaScope(name, user) for user in tenant.users)

    def count(self, scope: QuotaScope) -> int:
        """Returns the number of this node's connections in the scope."""
        tenant = self._rates.tenants.used.get(scope.tenant)
        if tenant is None or scope.user is None:
            return 0 if tenant is None else tenant.connections
        user = tenant.users.get(scope.user)
        return 0 if user is None else user.connections

    def reserve(self, rates: ConnectionRates, identity: Identity) -> None:
        """Counts a connection on this node, and sets the rates that it shares with its tenant and user.

        Raises ServiceError(TOO_MANY_CONNECTIONS) if this node alone reaches a cap; then the connection is not counted.
        """
        limits, tenants = self._limits, self._rates.tenants
        tenant = tenants.acquire(identity.tenant)
        if tenant.connections > limits.connections_per_tenant:
            tenants.release(identity.tenant)
            raise self._cap_reached("connections_per_tenant")
        if not identity.is_anonymous:
            users = self._rates.users
            user = users.acquire(tenant, identity)
            if user.connections > limits.connections_per_user and limits.on_user_cap == "refuse":
                users.release(tenant, identity)
                tenants.release(identity.tenant)
                raise self._cap_reached("connections_per_user")
            rates.user = user
        rates.tenant = tenant

    async def confirm(self, identity: Identity) -> None:
        """Counts a reserved connection over all nodes, if the quota `is_shared`.

        Raises ServiceError(TOO_MANY_CONNECTIONS). Even then, the caller must release the connection.
        """
        if self._is_store_away:
            self._metrics.limits.caps_unshared.inc()
            return
        await self._confirm([self._claim_of(scope, self._cap(scope)) for scope in scopes_of(identity)])

    async def hold(self, identity: Identity, session: str, on_moved: Callable[[], None]) -> int:
        """Counts a reserved session of long polls over all nodes, and takes it from the node that has held it.

        Returns the number of that node; 0 if there is none. Then the session is new, and raises as `confirm` does. `on_moved` is
        called when another node has taken the session. The caller must `drop` the session, also after an error.
        """
        scope = _session_scope(identity, session)
        self._held.setdefault(scope, {})[session] = on_moved
        if not self.is_shared:
            return 0
        if self._is_store_away:
            self._metrics.limits.caps_unshared.inc()
            return 0
        cap = None if identity.is_anonymous else self._cap(scope)
        self._moving[identity.tenant] += 1
        is_moving = False
        try:
            [held] = await self._store.hold_sessions([SessionHold(scope, session, self._node, max_connections=cap)])
        except ServiceError as error:
            self._record_failure(error)
            self._metrics.limits.caps_unshared.inc()
            return 0
        else:
            is_moving = held.holder not in (0, self._node)
        finally:
            if not is_moving:
                self._end_move(identity.tenant)
        if is_moving:
            self._moves.append((self._clock.monotonic() + MOVE_DELAY, identity.tenant))
            self._move_ends.schedule(MOVE_DELAY)
            return held.holder
        if not held.holder and cap is not None and held.total > cap:
            raise self._cap_reached("connections_per_user")
        tenant = QuotaScope(identity.tenant)
        await self._confirm([self._claim_of(tenant, None if held.holder else self._cap(tenant))])
        return 0

    def _end_move(self, tenant: str) -> None:
        self._moving[tenant] -= 1
        if not self._moving[tenant]:
            del self._moving[tenant]

    async def _end_moves(self) -> None:
        """Counts the sessions here that were taken long enough ago."""
        now = self._clock.monotonic()
        while self._moves and self._moves[0][0] <= now:
            _, tenant = self._moves.popleft()
            self._end_move(tenant)
            self._released.add(QuotaScope(tenant))
        if self._moves:
            self._move_ends.schedule(self._moves[0][0] - now)
        await self._send_releases()

    def drop(self, identity: Identity, session: str, *, is_moved: bool) -> None:
        """Ends a session that `hold` has counted. `is_moved`: it goes on at another node. Call `release` afterwards."""
        scope = _session_scope(identity, session)
        sessions = self._held.get(scope, {})
        if sessions.pop(session, None) is None:
            return
        if not sessions:
            del self._held[scope]
        if self.is_shared and not is_moved:
            self._given_up.append(SessionHold(scope, session, self._node, HoldChange.RELEASE))

    async def _confirm(self, claims: Sequence[QuotaClaim]) -> None:
        try:
            totals = await self._store.claim(claims)
        except ServiceError as error:
            self._record_failure(error)
            self._metrics.limits.caps_unshared.inc()
            return
        for claim, total in zip(claims, totals, strict=True):
            if claim.max_connections is not None and total > claim.max_connections:
                is_tenant = claim.scope.user is None
                raise self._cap_reached("connections_per_tenant" if is_tenant else "connections_per_user")

    def _claim_of(self, scope: QuotaScope, cap: int | None = None) -> QuotaClaim:
        apart = self._moving[scope.tenant] if scope.user is None else len(self._held.get(scope, ()))
        return QuotaClaim(scope, max(0, self.count(scope) - apart), cap)

    def release(self, rates: ConnectionRates, identity: Identity) -> None:
        """Subtracts a connection: on this node at once, over all nodes after RELEASE_DELAY."""
        if rates.user is not None:
            self._rates.users.release(rates.tenant, identity)
        self._rates.tenants.release(identity.tenant)
        if self.is_shared:
            self._released.update(scopes_of(identity))
            self._releases.schedule(RELEASE_DELAY)

    def _cap(self, scope: QuotaScope) -> int | None:
        if scope.user is None:
            return self._limits.connections_per_tenant
        return self._limits.connections_per_user if self._limits.on_user_cap == "refuse" else None

    def _cap_reached(self, setting: Literal["connections_per_tenant", "connections_per_user"]) -> ServiceError:
        return cap_reached(setting, getattr(self._limits, setting), self._metrics)

    async def _send_releases(self) -> None:
        released, self._released = self._released, set()
        given_up, self._given_up = self._given_up, []
        if self._is_store_away:  # the next renewal sends all counts, and scopes without connections expire
            return
        try:
            await self._claim(list(released))
            await self._change_holds(given_up)
        except ServiceError as error:
            self._record_failure(error)

    async def _renew(self) -> float:
        try:
            await self._claim(list(self._scopes()))
            await self._renew_holds()
        except ServiceError as error:
            self._record_failure(error)
            return RETRY_INTERVAL
        self._is_store_away = False
        self._outage.recovered()
        return RENEWAL_INTERVAL

    async def _claim(self, scopes: Sequence[QuotaScope]) -> None:
        for start in range(0, len(scopes), MAX_CALL_CLAIMS):
            part = scopes[start : start + MAX_CALL_CLAIMS]
            await self._store.claim([self._claim_of(scope) for scope in part])

    async def _renew_holds(self) -> None:
        holds = [
            SessionHold(scope, session, self._node, HoldChange.RENEW)
            for scope, sessions in self._held.items()
            for session in sessions
        ]
        for hold, holder in zip(holds, await self._change_holds(holds), strict=True):
            on_moved = self._held.get(hold.scope, {}).get(hold.session)
            if holder not in (0, self._node) and on_moved is not None:
                on_moved()

    async def _change_holds(self, holds: Sequence[SessionHold]) -> list[int]:
        """Returns the numbers of the nodes that have held the sessions."""
        holders: list[int] = []
        for start in range(0, len(holds), MAX_CALL_CLAIMS):
            part = holds[start : start + MAX_CALL_CLAIMS]
            holders += [held.holder for held in await self._store.hold_sessions(part)]
        return holders

    def _record_failure(self, error: ServiceError) -> None:
        self._outage.failed(code=error.code.code, reason=error.message)
        if not self._is_store_away:
            self._is_store_away = True
            self._renewals.run_within(RETRY_INTERVAL)
