"""The QuotaStore port: counts the connections of a tenant or user over all nodes, and orders them by age."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

CLAIM_TTL = 30.0
"""Seconds after which a claim expires unless its node repeats it. Until then, the connections of a killed node count."""


class QuotaScope(NamedTuple):
    """A tenant or a user, whose connections are counted together."""

    tenant: str
    user: str | None = None
    """None: all users of the tenant."""


class QuotaClaim(NamedTuple):
    """How many connections one node has in a scope."""

    scope: QuotaScope
    connections: int
    """All connections of the node in the scope, not only new ones. So a claim can be repeated, and only the last one counts."""
    max_connections: int | None = None
    """The limit for all nodes together; None stores the claim without a limit."""


def node_number(node: str) -> int:
    """Returns a number above 0 that stands for a node's id in holds."""
    return int.from_bytes(hashlib.sha256(node.encode()).digest()[:6]) or 1


class HoldChange(Enum):
    """What a node does with a session."""

    TAKE = "take"
    """Holds it from now on, instead of any other node."""
    RENEW = "renew"
    """Holds it on, unless another node has taken it."""
    RELEASE = "release"
    """Ends it, unless another node has taken it."""


class SessionHold(NamedTuple):
    """A session of long polls. It counts as one connection of its user, whichever node holds it, and beside the nodes' claims."""

    scope: QuotaScope
    """The user."""
    session: str
    node: int
    """The `node_number` of the calling node."""
    change: HoldChange = HoldChange.TAKE
    max_connections: int | None = None
    """The limit for all nodes together, for a session that no node holds; None takes it without a limit."""


class Held(NamedTuple):
    """The answer to a SessionHold."""

    total: int
    """The connections of the user to all nodes, with the session."""
    holder: int
    """The number of the node that held the session before the call; 0 if none did, or its hold has expired."""


class SessionOrderUpdate(NamedTuple):
    """How the connections of one user to one node have changed."""

    scope: QuotaScope
    max_connections: int
    """The limit for all nodes together."""
    added: Sequence[str] = ()
    """New connections, the newest last."""
    renewed: Sequence[str] = ()
    """Connections that are still open."""
    removed: Sequence[str] = ()
    """Connections that have ended."""


class QuotaStore(Protocol):
    """Adds up the claims of all nodes. An instance belongs to one node.

    A coroutine may be started outside of any task, as those of the Broker.
    """

    @property
    def is_shared(self) -> bool:
        """True if other nodes may exist. If not, the node's own count is the total."""

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        """Replaces this node's last claim for each scope, for `CLAIM_TTL` seconds, unless the total would exceed the limit.

        Returns the total of all nodes with each claim, also if the claim was not stored. Of claims made at the same time, the
        last one stays. Raises ServiceError(BROKER_UNAVAILABLE).
        """

    async def hold_sessions(self, holds: Sequence[SessionHold]) -> Sequence[Held]:
        """Takes, renews or releases sessions. A hold lasts `CLAIM_TTL` seconds, and counts in the totals of `claim`.

        A session that no node holds is not taken if the total would exceed the limit. Raises ServiceError(BROKER_UNAVAILABLE).
        """

    async def update_session_order(self, updates: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        """Orders each user's connections over all nodes by age, and removes the oldest above the limit.

        Returns the removed connections of each user; the caller must close them. A connection that its node does not renew
        expires after `CLAIM_TTL` seconds. Raises ServiceError(BROKER_UNAVAILABLE).
        """
