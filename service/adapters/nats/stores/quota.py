"""The QuotaStore that all nodes share at NATS."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import msgspec

from service.adapters.nats.stores.documents import Documents, DocumentUpdate, gather_limited
from service.adapters.nats.subjects import digest
from service.core.clock import Clock, milliseconds
from service.core.quota import CLAIM_TTL, Held, HoldChange, QuotaClaim, QuotaScope, SessionHold, SessionOrderUpdate


class NodeClaim(NamedTuple):
    """The claim of one node, or a session of long polls."""

    connections: int
    """1 for a session."""
    serial: int
    """The number of the node that holds the session; for a node, that of its claim."""
    expiry: int


NodeClaims = dict[str, NodeClaim]
"""The document of a scope: the claims by node."""
SessionOrder = dict[str, int]
"""The document of a user: connections, the oldest first, and when each expires."""


class NatsQuota:
    """Keeps one document for each scope, and a second one for each user. Uses the nodes' clocks."""

    is_shared = True

    def __init__(self, documents: Documents, clock: Clock) -> None:
        self._documents = documents
        self._clock = clock
        self._node = secrets.token_urlsafe(9)
        self._serial = count(1)

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        """Replaces this node's claim in each document."""
        # The serials are assigned before the first await, because calls may overtake each other.
        return await gather_limited(self._claim, [(claim, next(self._serial)) for claim in claims])

    async def hold_sessions(self, holds: Sequence[SessionHold]) -> Sequence[Held]:
        """Changes the row of each session in the document of its user."""
        return await gather_limited(self._hold, holds)

    async def update_session_order(self, updates: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        """Changes each user's document."""
        return await gather_limited(self._update_order, updates)

    async def _claim(self, numbered: tuple[QuotaClaim, int]) -> int:
        claim, serial = numbered

        def enter(data: bytes | None) -> tuple[DocumentUpdate, int]:
            now = milliseconds(self._clock)
            stored = msgspec.msgpack.decode(data, type=NodeClaims) if data else {}
            alive = {node: one for node, one in stored.items() if node == self._node or now < one.expiry}
            total = claim.connections + sum(one.connections for node, one in alive.items() if node != self._node)
            own = alive.get(self._node)
            # An older claim of this node may arrive later. So a claim of 0 stays until it expires: it keeps the serial.
            is_outdated = own is not None and serial <= own.serial
            if is_outdated or (claim.max_connections is not None and total > claim.max_connections):
                return DocumentUpdate(None), total
            alive[self._node] = NodeClaim(claim.connections, serial, now + int(CLAIM_TTL * 1000))
            return DocumentUpdate(msgspec.msgpack.encode(alive), CLAIM_TTL), total

        return await self._documents.change(self._subject("caps", claim.scope), enter)

    async def _hold(self, hold: SessionHold) -> Held:
        row = f"session:{hold.session}"

        def enter(data: bytes | None) -> tuple[DocumentUpdate, Held]:
            now = milliseconds(self._clock)
            stored = msgspec.msgpack.decode(data, type=NodeClaims) if data else {}
            alive = {name: one for name, one in stored.items() if now < one.expiry}
            before = alive.pop(row, None)
            holder = 0 if before is None else before.serial
            total = 1 + sum(one.connections for one in alive.values())
            is_own = holder in (0, hold.node)
            if hold.change is HoldChange.TAKE:
                is_changed = bool(holder) or hold.max_connections is None or total <= hold.max_connections
            else:
                is_changed = is_own
            if hold.change is not HoldChange.RELEASE:
                alive[row] = NodeClaim(1, hold.node, now + int(CLAIM_TTL * 1000))
            update = DocumentUpdate(msgspec.msgpack.encode(alive), CLAIM_TTL) if is_changed else DocumentUpdate(None)
            return update, Held(total, holder)

        return await self._documents.change(self._subject("caps", hold.scope), enter)

    async def _update_order(self, update: SessionOrderUpdate) -> Sequence[str]:
        def reorder(data: bytes | None) -> tuple[DocumentUpdate, list[str]]:
            now = milliseconds(self._clock)
            stored = msgspec.msgpack.decode(data, type=SessionOrder) if data else {}
            order = {connection: expiry for connection, expiry in stored.items() if now < expiry}
            # A renewal must not restore a removed connection. After a loss of the document, it must restore all
            # connections.
            renewed = [one for one in update.renewed if one in order] if order else update.renewed
            order |= dict.fromkeys((*update.added, *renewed), now + int(CLAIM_TTL * 1000))
            for connection in update.removed:
                order.pop(connection, None)
            oldest = list(order)[: max(0, len(order) - update.max_connections)]
            for connection in oldest:
                del order[connection]
            return DocumentUpdate(msgspec.msgpack.encode(order), CLAIM_TTL), oldest

        return await self._documents.change(self._subject("line", update.scope), reorder)

    def _subject(self, kind: str, scope: QuotaScope) -> str:
        # A tenant's subject ends with one token, a user's with two. A user's name may exceed a subject's length, so it
        # is hashed.
        user = () if scope.user is None else (digest(scope.user),)
        return self._documents.subjects.document(kind, scope.tenant, *user)
