"""The QuotaStore that all nodes share at Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count

from service.adapters.redis.lua import scripts
from service.adapters.redis.stores.client import Call, RedisClient
from service.core.quota import CLAIM_TTL, Held, QuotaClaim, QuotaScope, SessionHold, SessionOrderUpdate

_CLAIM = scripts.load("quota_claim")
_HOLD = scripts.load("quota_hold")
_ORDER = scripts.load("session_order")


class RedisQuota:
    """Keeps one hash for each scope, from node to claim, and one sorted set of each user's connections. Uses the time
    of Redis."""

    is_shared = True

    def __init__(self, client: RedisClient, claim_ttl: float = CLAIM_TTL) -> None:
        self._client = client
        self._ttl = int(claim_ttl * 1000)
        self._node = secrets.token_urlsafe(9)
        self._serial = count()

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        """Runs lua/quota_claim.lua for each claim."""
        # The serials are assigned before the first await, because calls may overtake each other.
        return await self._client.run_all(_CLAIM, [self._claim_call(claim) for claim in claims])

    async def hold_sessions(self, holds: Sequence[SessionHold]) -> Sequence[Held]:
        """Runs lua/quota_hold.lua for each session."""
        return [Held(*reply) for reply in await self._client.run_all(_HOLD, [self._hold_call(hold) for hold in holds])]

    async def update_session_order(self, updates: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        """Runs lua/session_order.lua for each user."""
        replies = await self._client.run_all(_ORDER, [self._order_call(update) for update in updates])
        return [[connection.decode() for connection in oldest] for oldest in replies]

    def _claim_call(self, claim: QuotaClaim) -> Call:
        limit = -1 if claim.max_connections is None else claim.max_connections
        arguments = (self._node, claim.connections, next(self._serial), limit, self._ttl)
        return Call((self._key("caps", claim.scope),), arguments)

    def _hold_call(self, hold: SessionHold) -> Call:
        limit = -1 if hold.max_connections is None else hold.max_connections
        arguments = (f"session:{hold.session}", hold.node, limit, self._ttl, hold.change.value)
        return Call((self._key("caps", hold.scope),), arguments)

    def _order_call(self, update: SessionOrderUpdate) -> Call:
        changes = [
            f"{sign}{connection}"
            for sign, connections in (("+", update.added), ("=", update.renewed), ("-", update.removed))
            for connection in connections
        ]
        keys = self._key("caps-line", update.scope), self._key("caps-line-expiries", update.scope)
        return Call(keys, (update.max_connections, self._ttl, *changes))

    def _key(self, kind: str, scope: QuotaScope) -> str:
        # No tenant holds a colon, so a user's key is never that of another tenant's user or of a tenant.
        tenant, user = scope
        return self._client.keys.tagged(kind, tenant if user is None else f"{tenant}:{user}")
