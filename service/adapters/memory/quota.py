"""The QuotaStore of a service that runs as one node."""

from __future__ import annotations

from collections.abc import Sequence

from service.core.quota import Held, QuotaClaim, SessionHold, SessionOrderUpdate


class MemoryQuota:
    """Stores nothing. Without other nodes, a claim is the total, and the node itself closes a user's oldest
    connections."""

    __slots__ = ()
    is_shared = False

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        """Returns the claims as totals."""
        return [claim.connections for claim in claims]

    async def hold_sessions(self, holds: Sequence[SessionHold]) -> Sequence[Held]:
        """Holds every session: no other node can have it."""
        return [Held(1, hold.node) for hold in holds]

    async def update_session_order(self, updates: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        """Removes no connection."""
        return [()] * len(updates)
