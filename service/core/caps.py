"""The CapStore port: how many connections all nodes together have, of a tenant or of a user, and which are the oldest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

LEASE = 30.0
"""Seconds that a claim counts unless it is made again: how long the connections of a node that was killed still do."""


class Holder(NamedTuple):
    """Whose connections are counted."""

    tenant: str
    user: str | None = None
    """None: all of the tenant."""


class Claim(NamedTuple):
    """What one node holds."""

    holder: Holder
    held: int
    """All its connections of that holder, not only the newest: so a claim may be repeated, and the last one counts."""
    most: int | None = None
    """The cap; None enters the claim however many there are."""


class Step(NamedTuple):
    """What one node says of a user's connections."""

    holder: Holder
    most: int
    """The cap."""
    came: Sequence[str] = ()
    """Connections that are new, the newest last."""
    stay: Sequence[str] = ()
    """Connections that are still there."""
    went: Sequence[str] = ()
    """Connections that are gone."""


class CapStore(Protocol):
    """Adds up the claims of all nodes. It belongs to one node, and knows it from the others.

    Its coroutines may be begun outside of any task, as the Broker's.
    """

    @property
    def is_shared(self) -> bool:
        """Whether there can be other nodes; else what a node counts itself is all there is to add up."""

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int]:
        """Enters each claim in the place of this node's last one for the holder, for `LEASE` seconds, unless all nodes would
        then hold more than its cap. Returns for each how many connections all nodes would hold with it, entered or not.

        Of claims made at the same time the one that was made last stays. Raises ServiceError(BROKER_UNAVAILABLE).
        """

    async def line_up(self, steps: Sequence[Step]) -> Sequence[Sequence[str]]:
        """Keeps users' connections to all nodes in the order in which they came. Returns for each step the oldest above the
        cap: they have lost their places, and are for the caller to end. A place is kept for `LEASE` seconds after the node
        spoke of it last. Raises ServiceError(BROKER_UNAVAILABLE).
        """
