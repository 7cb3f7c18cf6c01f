"""The CapStore that all nodes share at a Redis."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count

from service.adapters.redis import scripts
from service.adapters.redis.client import Call, RedisClient
from service.core.caps import LEASE, Claim, Holder, Step

_CAPS = scripts.load("caps")
_LINE = scripts.load("caps_line")


class RedisCaps:
    """One hash a holder, node → what it holds, and one sorted set of a user's connections. Time is that of Redis."""

    is_shared = True

    def __init__(self, client: RedisClient, lease: float = LEASE) -> None:
        self._client = client
        self._lease = int(lease * 1000)
        self._node = secrets.token_urlsafe(9)
        self._serial = count()

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int]:
        """As the port says."""
        # Numbered before anything is awaited: calls overtake each other on the way.
        return await self._client.run_all(_CAPS, [self._call(claim) for claim in claims])

    async def line_up(self, steps: Sequence[Step]) -> Sequence[Sequence[str]]:
        """As the port says."""
        found = await self._client.run_all(_LINE, [self._step(step) for step in steps])
        return [[connection.decode() for connection in oldest] for oldest in found]

    def _call(self, claim: Claim) -> Call:
        most = -1 if claim.most is None else claim.most
        return Call((self._key("caps", claim.holder),), (self._node, claim.held, next(self._serial), most, self._lease))

    def _step(self, step: Step) -> Call:
        words = [
            f"{sign}{connection}"
            for sign, connections in (("+", step.came), ("=", step.stay), ("-", step.went))
            for connection in connections
        ]
        keys = self._key("caps-line", step.holder), self._key("caps-line-expiries", step.holder)
        return Call(keys, (step.most, self._lease, *words))

    def _key(self, kind: str, holder: Holder) -> str:
        # No tenant holds a colon, so no user can pass for another tenant's, nor for all of one.
        tenant, user = holder
        return self._client.keys.tagged(kind, tenant if user is None else f"{tenant}:{user}")
