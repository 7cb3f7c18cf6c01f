"""Tokens that are good no more although they have not expired. Pure: time comes in as an argument, and of which clock it must
be stands with it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from service.core.identity import Identity


class Target(Enum):
    """What a revocation is aimed at."""

    USER = "user"
    """Every token of a user that was issued before a moment."""
    TOKEN = "token"  # noqa: S105  # the word, not one
    """One token, by its id (`jti`)."""


class Subject(NamedTuple):
    """Whose tokens, or which one. Tenants never share one."""

    target: Target
    tenant: str
    name: str
    """The user, or the token's id."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """Says that tokens are good no more."""

    target: Target
    tenant: str
    name: str
    """As in Subject."""
    until: float
    """When every token that it concerns has expired by itself, in seconds since the Unix epoch by the store's clock as the
    node that made it knew it: for people to read, and never alone a reason to forget it."""
    life: float
    """Seconds from its making until then."""
    before: float | None = None
    """Tokens issued before this moment are concerned; None: whenever they were issued."""
    reason: str = ""
    """Told to the clients that are disconnected."""

    @property
    def subject(self) -> Subject:
        """Whom it is about; there is one revocation a subject."""
        return Subject(self.target, self.tenant, self.name)

    def concerns(self, issued_at: float | None) -> bool:
        """Whether a token of the subject is revoked. One that does not say when it was issued is."""
        return self.before is None or issued_at is None or issued_at < self.before

    def covers(self, other: Revocation) -> bool:
        """Whether it says all that another one of the same subject says."""
        wide = self.before is None or (other.before is not None and self.before >= other.before)
        return wide and self.until >= other.until and self.life >= other.life

    def joined(self, older: Revocation) -> Revocation:
        """Both in one: what has been revoked stays so."""
        wide = self.before is None or older.before is None
        before = None if wide else max(self.before or 0.0, older.before or 0.0)
        return replace(
            self,
            before=before,
            until=max(self.until, older.until),
            life=max(self.life, older.life),
            reason=self.reason or older.reason,
        )


class Held(NamedTuple):
    """A revocation in the table."""

    revocation: Revocation
    since: float
    """When this node heard of it first, or of more of it (monotonic)."""

    def is_over(self, monotonic: float, wall: float) -> bool:
        """Whether no living token can meet it any more.

        A wall clock that is wrong makes that later, never sooner. One that is ahead has no say before the life is over as the
        monotonic clock counts it. While one that is behind has not come to `until`, this node would still take tokens that
        have expired, so the revocation stays; but at most for its life once more, as `until` may be what is wrong.
        """
        end = self.since + self.revocation.life
        return end <= monotonic and (self.revocation.until <= wall or end + self.revocation.life <= monotonic)


class RevocationTable:
    """At most `most` revocations of a tenant, and `total` of all tenants together.

    A tenant that has one more than `most` forgets the one that it has had longest. With one more than `total`, the tenant that
    has the most forgets its own. So no tenant can push out another's: one that has no more than an equal share, `total` by the
    number of tenants, loses nothing by what the others revoke. To refuse the newest instead would let those who revoke a
    lot keep everybody else from revoking at all; and what is forgotten is the oldest, of which most tokens have expired by
    themselves.
    """

    __slots__ = ("_most", "_sizes", "_tenants", "_total")

    def __init__(self, most: int, total: int) -> None:
        self._most = most
        self._total = total
        self._tenants: dict[str, dict[Subject, Held]] = {}
        """Each tenant's by the time since when they are held."""
        self._sizes = _Sizes()

    def add(self, revocation: Revocation, monotonic: float) -> bool:
        """Takes a revocation, joined with what is known of its subject. False if another was forgotten for it.

        What says nothing new changes nothing: to read it once more is no reason to hold it longer.
        """
        subject, tenant = revocation.subject, revocation.tenant
        held = self._tenants.setdefault(tenant, {})
        known = held.get(subject)
        if known is not None:
            joined = revocation.joined(known.revocation)
            if joined != known.revocation:
                del held[subject]
                held[subject] = Held(joined, monotonic)
            return True
        held[subject] = Held(revocation, monotonic)
        self._sizes.grow(tenant)
        if len(held) > self._most:
            self._drop(tenant, next(iter(held)))
        elif self._sizes.total > self._total:
            largest = self._sizes.largest
            self._drop(largest, next(iter(self._tenants[largest])))
        else:
            return True
        return False

    def get(self, subject: Subject) -> Revocation | None:
        """What is known of a subject."""
        of_tenant = self._tenants.get(subject.tenant)
        held = None if of_tenant is None else of_tenant.get(subject)
        return None if held is None else held.revocation

    def find(self, identity: Identity) -> Revocation | None:
        """Why the token behind an identity is good no more; None if it is, or if there is none behind it."""
        if not identity.user or identity.tenant not in self._tenants:
            return None
        of_user = self.get(Subject(Target.USER, identity.tenant, identity.user))
        if of_user is not None and of_user.concerns(identity.issued_at):
            return of_user
        if identity.token_id is None:
            return None
        return self.get(Subject(Target.TOKEN, identity.tenant, identity.token_id))

    def forget(self, monotonic: float, wall: float) -> None:
        """Drops what no living token can meet any more (see `Held.is_over`)."""
        for tenant, held in tuple(self._tenants.items()):
            over = []
            for subject, one in held.items():
                # The others are held for less long. Some of them may have a shorter life: they wait, so that this costs
                # nothing for the thousands whose time has not come.
                if one.since + one.revocation.life > monotonic:
                    break
                if one.is_over(monotonic, wall):
                    over.append(subject)
            for subject in over:
                self._drop(tenant, subject)

    @property
    def tenants(self) -> Collection[str]:
        """Those that have revocations."""
        return self._tenants.keys()

    def of(self, tenant: str) -> Iterator[Revocation]:
        """The tenant's, the one held longest first."""
        return iter([held.revocation for held in self._tenants.get(tenant, {}).values()])

    def __len__(self) -> int:
        return self._sizes.total

    def _drop(self, tenant: str, subject: Subject) -> None:
        held = self._tenants[tenant]
        del held[subject]
        if not held:
            del self._tenants[tenant]
        self._sizes.shrink(tenant)


class _Sizes:
    """How many each tenant has, and who has the most, in constant time: a full table asks with every revocation."""

    __slots__ = ("_by_size", "_most", "_sizes", "total")

    def __init__(self) -> None:
        self.total = 0
        self._sizes: dict[str, int] = {}
        self._by_size: dict[int, dict[str, None]] = {}
        """The tenants of each size, the one that came to it first in front; no size without any."""
        self._most = 0

    @property
    def largest(self) -> str:
        """Of the tenants that have the most the one that has had so many longest. There must be one."""
        return next(iter(self._by_size[self._most]))

    def grow(self, tenant: str) -> None:
        """One more."""
        size = self._move(tenant, 1)
        self._most = max(self._most, size)

    def shrink(self, tenant: str) -> None:
        """One less."""
        size = self._move(tenant, -1)
        if self._most not in self._by_size:  # it was the only one of its size, and is now of the next one
            self._most = size

    def _move(self, tenant: str, by: int) -> int:
        before = self._sizes.pop(tenant, 0)
        after = before + by
        if before:
            del self._by_size[before][tenant]
            if not self._by_size[before]:
                del self._by_size[before]
        if after:
            self._sizes[tenant] = after
            self._by_size.setdefault(after, {})[tenant] = None
        self.total += by
        return after
