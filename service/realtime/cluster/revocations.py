"""Revoked tokens: the same table on every node, asked whenever a token is used, and enforced on who is connected already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from service.core.authenticator import Authenticator
from service.core.broker import Broker, EventSink
from service.core.channel import ChannelKey
from service.core.clock import Clock, Timer
from service.core.identity import Identity
from service.core.revocation import Revocation, RevocationTable, Target
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.realtime.cluster.revocation_log import PUT_BACK_AT_ONCE, Keeping, Parts, RevocationList, RevokingTenants
from service.realtime.connections.connection import Connection
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import MAX_RETRY_INTERVAL, ChannelFollower

REASON = "the token has been revoked"
LOOK = 0.05
"""Seconds from a revocation to the look at who is connected: one look serves all that come together."""
EFFECTIVE_WITHIN = 2.0
"""Seconds from a revocation to its effect on every node that reaches the broker."""
assert MAX_RETRY_INTERVAL + LOOK < EFFECTIVE_WITHIN  # noqa: S101  # a bound between constants
MAX_AHEAD = 300.0
"""Seconds by which the backend may set a revocation's `before` ahead of now. Later tokens would be refused too."""
READ_AT_ONCE = 50
"""Tenants whose revocations a node that starts reads at the same time."""


class Revocations:
    """What has been revoked, on all nodes. A node that starts reads it before it lets anybody in.

    The broker's state is the common copy, a channel for each tenant. If the broker has lost it, the nodes put back what they
    hold. Bounds: see RevocationTable.

    A revocation lasts `ttl` from when it was made, and longer by as much as its `before` is ahead. A node holds it for so
    long from when it heard of it, as its monotonic clock counts; how long ago it was made nobody can tell who does not
    trust a wall clock, so one that was read from the broker lasts up to three times as long. Wall clocks that are wrong or
    jump, the node's own or another's, make no node forget a revocation too early, nor overlook one that it is told of. One
    that is behind makes it hold on to some for longer (StoredRevocation.is_expired). What the broker keeps goes by the
    broker's clock: if that is wrong by less than `ttl`, a node that starts finds all that are in force. `clock` is the
    store's (store_clock.py): a moment that other nodes act on is never by the clock of the node that was asked.
    """

    def __init__(
        self,
        registry: ConnectionRegistry,
        broker: Broker,
        runtime: Runtime,
        *,
        token_clock: Clock | None = None,
        tap: Callable[[ChannelKey, EventSink], None],
        ttl: float,
        most: int,
        total: int,
    ) -> None:
        """`token_clock`: by which tokens expire on this node, if not by the runtime's clock.
        `tap`: has a channel delivered (see Relay.tap). `ttl`: seconds that a revocation lasts; no token may live longer.
        `most`: how many are kept of a tenant; `total`: of all together on this node."""
        self._registry = registry
        self._runtime = runtime
        self._token_clock = token_clock or runtime.clock
        self._tap = tap
        self._ttl = ttl
        self._table = RevocationTable(most, total)
        self._parts = Parts(broker, runtime)
        self._keeping = Keeping(most, ttl + MAX_AHEAD)
        self._tenants = RevokingTenants(self._parts, self._keeping, self._table, self._list_of)
        self._lists: dict[str, RevocationList] = {}
        self._unread: list[RevocationList] | None = []
        """The tenants that a starting node has been told of and has not read; None once it has started."""
        self._gate = asyncio.Semaphore(PUT_BACK_AT_ONCE)
        self._timer: Timer | None = None
        tap(self._tenants.following.channel, self._tenants.following)
        runtime.metrics.cluster.revocations.set_function(lambda: len(self._table))

    @property
    def followings(self) -> Sequence[ChannelFollower]:
        """Of the channels that this node must not fall behind in."""
        return (self._tenants.following, *(one.following for one in self._lists.values()))

    async def start(self) -> None:
        """Reads the table. Raises ServiceError."""
        await self._tenants.following.start()
        while self._unread:  # more of them may be told of while some are read
            some, self._unread = self._unread[:READ_AT_ONCE], self._unread[READ_AT_ONCE:]
            await _all_of([one.following.start() for one in some])
        self._unread = None

    def close(self) -> None:
        """Lets the timer go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _list_of(self, tenant: str) -> RevocationList:
        """The tenant's, which is followed from now on."""
        found = self._lists.get(tenant)
        if found is not None:
            return found
        made = self._lists[tenant] = RevocationList(
            tenant, self._parts, self._keeping, self._table, self._add, self._tenants.tell, self._gate
        )
        self._tap(made.following.channel, made.following)
        if self._unread is None:
            self._runtime.tasks.spawn("revocations followed", made.begin())
        else:
            self._unread.append(made)
        return made

    # --- revoking -----------------------------------------------------------------------------------------------------

    async def revoke_user(self, tenant: str, user: str, before: float, reason: str) -> Revocation:
        """Revokes every token of the user that was issued before a moment, at most MAX_AHEAD from now, or says not when. An
        earlier revocation that goes further stays in force, and is what is returned. ServiceError: it may still be done; ask
        again."""
        now = self._runtime.clock.wall()
        return await self._revoke(Target.USER, tenant, user, now, self._ttl + max(0.0, before - now), before, reason)

    async def revoke_token(self, tenant: str, token_id: str, reason: str) -> Revocation:
        """Revokes one token by its id. ServiceError: it may still be done; ask again."""
        return await self._revoke(Target.TOKEN, tenant, token_id, self._runtime.clock.wall(), self._ttl, None, reason)

    async def _revoke(
        self, target: Target, tenant: str, name: str, now: float, life: float, before: float | None, reason: str
    ) -> Revocation:
        revocation = Revocation(target, tenant, name, now + life, life, before, reason)
        known = self._table.get(revocation.subject)
        if known is not None:
            revocation = revocation.merged(known)
        await self._list_of(tenant).publish(revocation)
        self._add(revocation)
        return revocation

    # --- enforcing ----------------------------------------------------------------------------------------------------

    def check(self, identity: Identity) -> None:
        """Raises ServiceError(INVALID_TOKEN) if the token behind the identity has been revoked."""
        if self._table.find(identity) is not None:
            raise ServiceError(ErrorCode.INVALID_TOKEN, REASON)

    def look_at(self, connection: Connection) -> None:
        """Ends the connection with 4401 if its token has been revoked."""
        found = self._table.find(connection.session.identity)
        if found is not None:
            connection.close(CloseCode.UNAUTHORIZED, found.reason or REASON)

    def tend(self) -> None:
        """Called now and then: drops what no living token can meet any more, and goes on with what could not be put back."""
        # While this node's own clock has not come to it, the node still takes tokens that have expired.
        wall = min(self._runtime.clock.wall(), self._token_clock.wall())
        self._table.evict_expired(self._runtime.clock.monotonic(), wall)
        self._tenants.tend()
        for one in self._lists.values():
            one.tend()

    def _add(self, revocation: Revocation) -> None:
        if not self._table.add(revocation, self._runtime.clock.monotonic()):
            self._runtime.metrics.limits.limit_hits.labels(limit="revocations").inc()
        if self._timer is None:
            self._timer = self._runtime.clock.call_later(LOOK, self._look)

    def _look(self) -> None:
        self._timer = None
        for connection in self._registry:
            self.look_at(connection)


async def _all_of(starts: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Raises the first error once all have come to an end, so that none is left running."""
    for result in await asyncio.gather(*starts, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


class RevocationGuard:
    """An Authenticator in front of another one: refuses what has been revoked since."""

    def __init__(self, authenticator: Authenticator, revocations: Revocations) -> None:
        self._authenticator = authenticator
        self._revocations = revocations

    async def authenticate(self, token: str) -> Identity:
        """As the port says."""
        identity = await self._authenticator.authenticate(token)
        self._revocations.check(identity)
        return identity
