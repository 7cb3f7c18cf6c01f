"""Revoked tokens. Every node has the same table, checks each token against it, and closes connections with revoked tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from service.core.authenticator import Authenticator
from service.core.broker import Broker, EventSink
from service.core.channel import ChannelKey
from service.core.clock import Clock, Timer
from service.core.hooks import ClientContext
from service.core.identity import Identity
from service.core.revocation import Revocation, RevocationTable, Target
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.realtime.cluster.revocation_log import (
    MAX_CONCURRENT_RESTORES,
    LogContext,
    RevocationRetention,
    RevokingTenants,
    TenantRevocations,
)
from service.realtime.connections.connection import Connection
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import MAX_RETRY_INTERVAL, ChannelFollower
from service.realtime.streams.subscription_grants import SubscriptionGrants

REASON = "the token has been revoked"
ENFORCE_DELAY = 0.05
"""Seconds from a revocation to the check of all connections, so that one check serves several revocations."""
EFFECTIVE_WITHIN = 2.0
"""Seconds from a revocation to its effect on every node that reaches the broker."""
assert MAX_RETRY_INTERVAL + ENFORCE_DELAY < EFFECTIVE_WITHIN  # noqa: S101  # a bound between constants
MAX_AHEAD = 300.0
"""Seconds by which a revocation's `before` may be ahead of now. Until then, new tokens are refused, too."""
MAX_CONCURRENT_READS = 50
"""Tenants whose revocations a starting node reads at the same time."""


class Revocations:
    """The revocations of all nodes. A node reads them at its start, before it accepts connections.

    The broker holds the shared copy, as the state of one channel for each tenant. If the broker loses it, the nodes restore it.

    A revocation lasts `ttl` seconds from its creation, and longer if its `before` is ahead of that.
    - A node measures this time with its monotonic clock, from the receipt of the revocation. So a wrong or jumping wall clock on
      any node never ends a revocation too early.
    - The age of a revocation that was read from the broker is unknown, because wall clocks may be wrong. It lasts up to three
      times as long (StoredRevocation.is_expired).
    - The broker keeps revocations by its own clock. If that clock is wrong by less than `ttl`, a starting node still finds all
      revocations in force.
    """

    def __init__(
        self,
        registry: ConnectionRegistry,
        grants: SubscriptionGrants,
        table: RevocationTable,
        broker: Broker,
        runtime: Runtime,
        *,
        token_clock: Clock | None = None,
        subscribe_internally: Callable[[ChannelKey, EventSink], None],
        ttl: float,
        max_per_tenant: int,
    ) -> None:
        """Keeps the table up to date.

        Args:
            registry: The connections that are closed when their token is revoked.
            grants: The subscriptions that end when their own token is revoked.
            table: The revocations that this node knows; empty.
            broker: Holds the shared copy.
            runtime: Uses the store clock, because all nodes must agree on the times of a revocation.
            token_clock: The clock by which tokens expire on this node, if it is not the runtime's.
            subscribe_internally: Delivers an internal channel to a sink.
            ttl: Seconds that a revocation lasts. No token may last longer.
            max_per_tenant: Maximum number of revocations of one tenant.
        """
        self._registry = registry
        self._grants = grants
        self._runtime = runtime
        self._token_clock = token_clock or runtime.clock
        self._subscribe_internally = subscribe_internally
        self._ttl = ttl
        self._table = table
        self._context = LogContext(
            broker,
            runtime,
            self._table,
            RevocationRetention(max_per_tenant, ttl + MAX_AHEAD),
            asyncio.Semaphore(MAX_CONCURRENT_RESTORES),
        )
        self._tenants = RevokingTenants(self._context, self._of_tenant)
        self._by_tenant: dict[str, TenantRevocations] = {}
        self._unread: list[TenantRevocations] | None = []
        """Tenants whose revocations the starting node has not read yet; None once it has started."""
        self._enforce_timer: Timer | None = None
        subscribe_internally(self._tenants.follower.channel, self._tenants.follower)
        runtime.metrics.cluster.revocations.set_function(lambda: len(self._table))

    @property
    def followers(self) -> Sequence[ChannelFollower]:
        """The followers of all channels with revocations. The heartbeat checks them for gaps."""
        return (self._tenants.follower, *(tenant.follower for tenant in self._by_tenant.values()))

    async def start(self) -> None:
        """Reads all revocations. Raises ServiceError."""
        await self._tenants.follower.start()
        while self._unread:  # a read may find more tenants
            part, self._unread = self._unread[:MAX_CONCURRENT_READS], self._unread[MAX_CONCURRENT_READS:]
            await _gather([tenant.follower.start() for tenant in part])
        self._unread = None

    def close(self) -> None:
        """Cancels the timer."""
        if self._enforce_timer is not None:
            self._enforce_timer.cancel()
            self._enforce_timer = None

    def _of_tenant(self, tenant: str) -> TenantRevocations:
        """Returns the tenant's channel. The first call starts to follow it."""
        known = self._by_tenant.get(tenant)
        if known is not None:
            return known
        created = self._by_tenant[tenant] = TenantRevocations(tenant, self._context, self._add, self._tenants.announce)
        self._subscribe_internally(created.follower.channel, created.follower)
        if self._unread is None:
            self._runtime.tasks.spawn("revocation reading", created.follow())
        else:
            self._unread.append(created)
        return created

    # --- revoking -----------------------------------------------------------------------------------------------------

    async def revoke_user(self, tenant: str, user: str, before: float, reason: str) -> Revocation:
        """Revokes a user's tokens that were issued before a time, or that have no issue time.

        Args:
            tenant: The user's tenant.
            user: The user.
            before: Seconds since the Unix epoch, at most MAX_AHEAD from now.
            reason: Sent to the clients that are disconnected.

        Returns the revocation in force, which may be an earlier, wider one. Raises ServiceError; even then, the revocation may be
        in force. A repeat is safe.
        """
        now = self._runtime.clock.wall()
        return await self._revoke(Target.USER, tenant, user, now, self._ttl + max(0.0, before - now), before, reason)

    async def revoke_token(self, tenant: str, token_id: str, reason: str) -> Revocation:
        """Revokes one token by its id. Raises ServiceError, as `revoke_user` does."""
        return await self._revoke(Target.TOKEN, tenant, token_id, self._runtime.clock.wall(), self._ttl, None, reason)

    async def _revoke(
        self, target: Target, tenant: str, name: str, now: float, life: float, before: float | None, reason: str
    ) -> Revocation:
        revocation = Revocation(target, tenant, name, now + life, life, before, reason)
        known = self._table.get(revocation.subject)
        if known is not None:
            revocation = revocation.merged(known)
        await self._of_tenant(tenant).publish(revocation)
        self._add(revocation)
        return revocation

    # --- enforcing ----------------------------------------------------------------------------------------------------

    def held(self, tenant: str) -> Iterator[Revocation]:
        """Iterates over the tenant's revocations that this node holds, the oldest first."""
        return self._table.of_tenant(tenant)

    def check(self, identity: Identity) -> None:
        """Raises ServiceError(INVALID_TOKEN) if the identity's token is revoked."""
        if self._table.find(identity) is not None:
            raise ServiceError(ErrorCode.INVALID_TOKEN, REASON)

    def is_revoked(self, identity: Identity) -> bool:
        """True if the identity's token, or the grant that it stands for, is revoked."""
        return self._table.find(identity) is not None

    def enforce(self, connection: Connection) -> None:
        """Closes the connection with 4401 if its token is revoked."""
        found = self._table.find(connection.session.identity)
        if found is not None:
            connection.close(CloseCode.UNAUTHORIZED, found.reason or REASON)

    def maintain(self) -> None:
        """Evicts expired revocations, and restores those that the broker has lost. Call it at every heartbeat."""
        # A node with a slow clock still accepts expired tokens, so the earlier time of the two clocks decides.
        wall = min(self._runtime.clock.wall(), self._token_clock.wall())
        self._table.evict_expired(self._runtime.clock.monotonic(), wall)
        self._tenants.maintain()
        for tenant in self._by_tenant.values():
            tenant.maintain()

    def _add(self, revocation: Revocation) -> None:
        if not self._table.add(revocation, self._runtime.clock.monotonic()):
            self._runtime.metrics.limits.limit_hits.labels(limit="revocations").inc()
        if self._enforce_timer is None:
            self._enforce_timer = self._runtime.clock.call_later(ENFORCE_DELAY, self._enforce_all)

    def _enforce_all(self) -> None:
        self._enforce_timer = None
        for connection in self._registry:
            self.enforce(connection)
        self._grants.end_revoked()


async def _gather(starts: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Waits until all have ended, then raises the first error. So none is left running."""
    for result in await asyncio.gather(*starts, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


class RevocationGuard:
    """An Authenticator that wraps another one and refuses revoked tokens."""

    def __init__(self, authenticator: Authenticator, revocations: Revocations) -> None:
        self._authenticator = authenticator
        self._revocations = revocations

    def authenticate_now(self, token: str) -> Identity | None:
        """Does the same as `authenticate`, if that needs no wait; else returns None."""
        identity = self._authenticator.authenticate_now(token)
        if identity is not None:
            self._revocations.check(identity)
        return identity

    async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
        """Returns the identity of a token that is valid and not revoked. Raises ServiceError."""
        identity = await self._authenticator.authenticate(token, context)
        if self._is_outdated(identity):
            identity = await self._authenticator.authenticate(token, context)
        self._revocations.check(identity)
        return identity

    async def authenticate_without_token(self, context: ClientContext | None) -> Identity | None:
        """Returns the identity for which the backend vouches; None if it is not to be asked. Raises ServiceError."""
        identity = await self._authenticator.authenticate_without_token(context)
        if identity is None:
            return None
        if self._is_outdated(identity):
            identity = await self._authenticator.authenticate_without_token(context)
        if identity is not None:
            self._revocations.check(identity)
        return identity

    async def authenticate_again(self, identity: Identity, token: str | None = None) -> Identity:
        """Asks the backend about a session for which it has vouched. Raises ServiceError."""
        again = await self._authenticator.authenticate_again(identity, token)
        self._revocations.check(again)
        return again

    def _is_outdated(self, identity: Identity) -> bool:
        """True if a remembered answer of the backend is older than a revocation. Forgets it, so that the backend is asked."""
        if identity.question is None or not self._revocations.is_revoked(identity):
            return False
        self._authenticator.forget(identity)
        return True

    async def authenticate_subscription(self, token: str) -> Identity:
        """The same for the token of a subscription."""
        identity = await self._authenticator.authenticate_subscription(token)
        self._revocations.check(identity)
        return identity

    def forget(self, identity: Identity) -> None:
        """Forgets the backend's answer that has led to an identity."""
        self._authenticator.forget(identity)
