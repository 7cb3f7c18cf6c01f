"""The QuotaStore that all nodes share at a Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count

from service.adapters.redis.lua import scripts
from service.adapters.redis.stores.client import Call, RedisClient
from service.core.quota import CLAIM_TTL, QuotaClaim, QuotaScope, SessionOrderUpdate

_CLAIM = scripts.load("quota_claim")
_ORDER = scripts.load("session_order")


class RedisQuota:
    """One hash a holder, node → what it holds, and one sorted set of a user's connections. Time is that of Redis."""

    is_shared = True

    def __init__(self, client: RedisClient, lease: float = CLAIM_TTL) -> None:
        self._client = client
        self._lease = int(lease * 1000)
        self._node = secrets.token_urlsafe(9)
        self._serial = count()

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        """As the port says."""
        # Numbered before anything is awaited: calls overtake each other on the way.
        return await self._client.run_all(_CLAIM, [self._call(claim) for claim in claims])

    async def update_session_order(self, steps: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        """As the port says."""
        found = await self._client.run_all(_ORDER, [self._step(step) for step in steps])
        return [[connection.decode() for connection in oldest] for oldest in found]

    def _call(self, claim: QuotaClaim) -> Call:
        most = -1 if claim.max_connections is None else claim.max_connections
        return Call(
            (self._key("caps", claim.scope),), (self._node, claim.connections, next(self._serial), most, self._lease)
        )

    def _step(self, step: SessionOrderUpdate) -> Call:
        words = [
            f"{sign}{connection}"
            for sign, connections in (("+", step.added), ("=", step.renewed), ("-", step.removed))
            for connection in connections
        ]
        keys = self._key("caps-line", step.scope), self._key("caps-line-expiries", step.scope)
        return Call(keys, (step.max_connections, self._lease, *words))

    def _key(self, kind: str, holder: QuotaScope) -> str:
        # No tenant holds a colon, so no user can pass for another tenant's, nor for all of one.
        tenant, user = holder
        return self._client.keys.tagged(kind, tenant if user is None else f"{tenant}:{user}")
