"""The CapStore that all nodes share at a Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count

from service.adapters.redis import scripts
from service.adapters.redis.client import Call, RedisClient
from service.core.caps import LEASE, Claim

_CAPS = scripts.load("caps")


class RedisCaps:
    """One hash a holder: node → what it holds. Time is that of Redis."""

    def __init__(self, client: RedisClient, lease: float = LEASE) -> None:
        self._client = client
        self._lease = int(lease * 1000)
        self._node = secrets.token_urlsafe(9)
        self._serial = count()

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int]:
        """As the port says."""
        # Numbered before anything is awaited: calls overtake each other on the way.
        return await self._client.run_all(_CAPS, [self._call(claim) for claim in claims])

    def _call(self, claim: Claim) -> Call:
        tenant, user = claim.holder
        # No tenant holds a colon, so no user can pass for another tenant's, nor for all of one.
        key = self._client.keys.tagged("caps", tenant if user is None else f"{tenant}:{user}")
        most = -1 if claim.most is None else claim.most
        return Call((key,), (self._node, claim.held, next(self._serial), most, self._lease))
