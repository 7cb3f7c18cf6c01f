"""The CapStore port: how many connections all nodes together have, of a tenant or of a user."""

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


class CapStore(Protocol):
    """Adds up the claims of all nodes. It belongs to one node, and knows it from the others."""

    async def claim(self, claims: Sequence[Claim]) -> Sequence[int]:
        """Enters each claim in the place of this node's last one for the holder, for `LEASE` seconds, unless all nodes would
        then hold more than its cap. Returns for each how many connections all nodes would hold with it, entered or not.

        Of claims made at the same time the one that was made last stays. Raises ServiceError(BROKER_UNAVAILABLE).
        """
