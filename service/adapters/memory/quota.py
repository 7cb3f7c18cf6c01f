"""The QuotaStore of a service that runs as one node."""

from __future__ import annotations

from collections.abc import Sequence

from service.core.quota import QuotaClaim, SessionOrderUpdate


class MemoryQuota:
    """Keeps nothing: there is no other node, so what this one claims is all there is, and it knows its own connections."""

    __slots__ = ()
    is_shared = False

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        """As the port says."""
        return [claim.connections for claim in claims]

    async def update_session_order(self, steps: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        """As the port says: this node has ended its oldest itself."""
        return [()] * len(steps)
