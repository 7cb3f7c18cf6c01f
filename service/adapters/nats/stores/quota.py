"""The QuotaStore that all nodes share at a NATS."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import msgspec

from service.adapters.nats.config import digest
from service.adapters.nats.stores.documents import Documents, Draft, each
from service.core.clock import Clock, milliseconds
from service.core.quota import CLAIM_TTL, QuotaClaim, QuotaScope, SessionOrderUpdate


class Holding(NamedTuple):
    """What one node holds."""

    held: int
    serial: int
    expiry: int


Holdings = dict[str, Holding]
"""By node."""
Line = dict[str, int]
"""Connections in the order in which they came, and when each one's place expires."""


class NatsQuota:
    """Two documents a holder. Time is the nodes' own."""

    is_shared = True

    def __init__(self, documents: Documents, clock: Clock) -> None:
        self._documents = documents
        self._clock = clock
        self._node = secrets.token_urlsafe(9)
        self._serial = count(1)

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        """As the port says."""
        # Numbered before anything is awaited: calls overtake each other on the way.
        return await each(self._claim, [(claim, next(self._serial)) for claim in claims])

    async def update_session_order(self, steps: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        """As the port says."""
        return await each(self._line_up, steps)

    async def _claim(self, numbered: tuple[QuotaClaim, int]) -> int:
        claim, serial = numbered

        def enter(data: bytes | None) -> tuple[Draft, int]:
            now = milliseconds(self._clock)
            held = msgspec.msgpack.decode(data, type=Holdings) if data else {}
            alive = {node: one for node, one in held.items() if node == self._node or now < one.expiry}
            total = claim.connections + sum(one.held for node, one in alive.items() if node != self._node)
            mine = alive.get(self._node)
            # What this node said earlier may arrive later. An entry of 0 stays until it expires, so as to know that.
            if (mine is not None and serial <= mine.serial) or (
                claim.max_connections is not None and total > claim.max_connections
            ):
                return Draft(None), total
            alive[self._node] = Holding(claim.connections, serial, now + int(CLAIM_TTL * 1000))
            return Draft(msgspec.msgpack.encode(alive), CLAIM_TTL), total

        return await self._documents.change(self._subject("caps", claim.scope), enter)

    async def _line_up(self, step: SessionOrderUpdate) -> Sequence[str]:
        def move(data: bytes | None) -> tuple[Draft, list[str]]:
            now = milliseconds(self._clock)
            found = msgspec.msgpack.decode(data, type=Line) if data else {}
            line = {connection: expiry for connection, expiry in found.items() if now < expiry}
            # One that has fallen out is not to come back by being there still; after a loss of the line all are.
            may_stay = step.renewed if not line else [one for one in step.renewed if one in line]
            line |= dict.fromkeys((*step.added, *may_stay), now + int(CLAIM_TTL * 1000))
            for connection in step.removed:
                line.pop(connection, None)
            oldest = list(line)[: max(0, len(line) - step.max_connections)]
            for connection in oldest:
                del line[connection]
            return Draft(msgspec.msgpack.encode(line), CLAIM_TTL), oldest

        return await self._documents.change(self._subject("line", step.scope), move)

    def _subject(self, kind: str, holder: QuotaScope) -> str:
        # A tenant has one token, its users two. A user's name may be longer than a subject.
        user = () if holder.user is None else (digest(holder.user),)
        return self._documents.subjects.apart(kind, holder.tenant, *user)
