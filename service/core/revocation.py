"""Tokens that are revoked before they expire. Pure: the name of each time argument says its clock."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from service.core.identity import Identity


class Target(Enum):
    """What a revocation revokes."""

    USER = "user"
    """Every token of a user that was issued before a given time."""
    TOKEN = "token"  # noqa: S105  # the word, not one
    """One token, by its id (`jti`)."""


class Subject(NamedTuple):
    """The user whose tokens are revoked, or the token. Each subject belongs to one tenant."""

    target: Target
    tenant: str
    name: str
    """The user, or the token's id."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """One revocation, in the form that the broker stores."""

    target: Target
    tenant: str
    name: str
    """The user, or the token's id."""
    until: float
    """Time at which every revoked token has expired, in seconds since the Unix epoch, by the store clock of its node. It is for
    people to read. A revocation is never evicted for this reason alone."""
    life: float
    """Seconds from the revocation to `until`."""
    before: float | None = None
    """Only tokens issued before this time are revoked; None: all."""
    reason: str = ""
    """Sent to the clients that are disconnected."""

    @property
    def subject(self) -> Subject:
        """The user or the token that it revokes. A subject has at most one revocation."""
        return Subject(self.target, self.tenant, self.name)

    def applies_to(self, issued_at: float | None) -> bool:
        """True if a token of the subject with this issue time is revoked. A token without an issue time always is."""
        return self.before is None or issued_at is None or issued_at < self.before

    def covers(self, other: Revocation) -> bool:
        """True if it revokes all tokens of another revocation of the same subject, for at least as long."""
        wide = self.before is None or (other.before is not None and self.before >= other.before)
        return wide and self.until >= other.until and self.life >= other.life

    def merged(self, older: Revocation) -> Revocation:
        """Returns one revocation that covers both."""
        wide = self.before is None or older.before is None
        before = None if wide else max(self.before or 0.0, older.before or 0.0)
        return replace(
            self,
            before=before,
            until=max(self.until, older.until),
            life=max(self.life, older.life),
            reason=self.reason or older.reason,
        )


class StoredRevocation(NamedTuple):
    """A revocation in the table."""

    revocation: Revocation
    since: float
    """Monotonic seconds at which this node first received it, or a wider one."""

    def is_expired(self, monotonic: float, wall: float) -> bool:
        """True if every token that it revokes has expired.

        A wrong wall clock can delay the result, but never makes it too early. A clock that is ahead is ignored until `life` has
        passed on the monotonic clock. While the wall clock is before `until`, this node still accepts expired tokens, so the
        revocation stays. It stays for at most one more `life`, because `until` itself may be wrong.
        """
        end = self.since + self.revocation.life
        return end <= monotonic and (self.revocation.until <= wall or end + self.revocation.life <= monotonic)


class RevocationTable:
    """At most `max_per_tenant` revocations of one tenant, and `max_total` of all tenants together.

    At `max_per_tenant` a tenant's oldest revocation is evicted. At `max_total` the oldest one of the largest tenant is evicted.
    So a tenant with at most an equal share of `max_total` loses nothing to others. If the newest revocation were refused instead,
    one tenant could stop all others from revoking. Most tokens of the oldest one have expired.
    """

    __slots__ = ("_max_per_tenant", "_max_total", "_sizes", "_tenants")

    def __init__(self, max_per_tenant: int, max_total: int) -> None:
        self._max_per_tenant = max_per_tenant
        self._max_total = max_total
        self._tenants: dict[str, dict[Subject, StoredRevocation]] = {}
        """Each tenant's revocations, by `since`."""
        self._sizes = _Sizes()

    def add(self, revocation: Revocation, monotonic: float) -> bool:
        """Adds a revocation, merged with the known one of its subject. Returns False if it evicted another one.

        A revocation that the table already covers changes nothing, so that reading it again does not extend it.
        """
        subject, tenant = revocation.subject, revocation.tenant
        stored = self._tenants.setdefault(tenant, {})
        known = stored.get(subject)
        if known is not None:
            merged = revocation.merged(known.revocation)
            if merged != known.revocation:
                del stored[subject]
                stored[subject] = StoredRevocation(merged, monotonic)
            return True
        stored[subject] = StoredRevocation(revocation, monotonic)
        self._sizes.grow(tenant)
        if len(stored) > self._max_per_tenant:
            self._remove(tenant, next(iter(stored)))
        elif self._sizes.total > self._max_total:
            largest = self._sizes.largest
            self._remove(largest, next(iter(self._tenants[largest])))
        else:
            return True
        return False

    def get(self, subject: Subject) -> Revocation | None:
        """Returns the revocation of a subject."""
        of_tenant = self._tenants.get(subject.tenant)
        stored = None if of_tenant is None else of_tenant.get(subject)
        return None if stored is None else stored.revocation

    def find(self, identity: Identity) -> Revocation | None:
        """Returns the revocation that applies to the identity's token, if any."""
        if not identity.user or identity.tenant not in self._tenants:
            return None
        of_user = self.get(Subject(Target.USER, identity.tenant, identity.user))
        if of_user is not None and of_user.applies_to(identity.issued_at):
            return of_user
        if identity.token_id is None:
            return None
        return self.get(Subject(Target.TOKEN, identity.tenant, identity.token_id))

    def evict_expired(self, monotonic: float, wall: float) -> None:
        """Removes the revocations whose tokens have all expired."""
        for tenant, stored in tuple(self._tenants.items()):
            expired = []
            for subject, one in stored.items():
                # All others are younger. Some may have a shorter life and be expired, but a check of thousands is too slow.
                if one.since + one.revocation.life > monotonic:
                    break
                if one.is_expired(monotonic, wall):
                    expired.append(subject)
            for subject in expired:
                self._remove(tenant, subject)

    @property
    def tenants(self) -> Collection[str]:
        """Tenants that have revocations."""
        return self._tenants.keys()

    def of_tenant(self, tenant: str) -> Iterator[Revocation]:
        """Iterates over a tenant's revocations, the oldest first."""
        return iter([stored.revocation for stored in self._tenants.get(tenant, {}).values()])

    def __len__(self) -> int:
        return self._sizes.total

    def _remove(self, tenant: str, subject: Subject) -> None:
        stored = self._tenants[tenant]
        del stored[subject]
        if not stored:
            del self._tenants[tenant]
        self._sizes.shrink(tenant)


class _Sizes:
    """The number of revocations of each tenant. Finds the largest tenant in constant time, because a full table needs it at every
    revocation."""

    __slots__ = ("_by_size", "_max_size", "_sizes", "total")

    def __init__(self) -> None:
        self.total = 0
        self._sizes: dict[str, int] = {}
        self._by_size: dict[int, dict[str, None]] = {}
        """The tenants of each size, in the order in which they reached it. Sizes without tenants are left out."""
        self._max_size = 0

    @property
    def largest(self) -> str:
        """The tenant with the most revocations; of several, the first one that reached that size. There must be a tenant."""
        return next(iter(self._by_size[self._max_size]))

    def grow(self, tenant: str) -> None:
        """Counts one more."""
        size = self._move(tenant, 1)
        self._max_size = max(self._max_size, size)

    def shrink(self, tenant: str) -> None:
        """Counts one less."""
        size = self._move(tenant, -1)
        if self._max_size not in self._by_size:  # it was the only tenant of that size, and is now one smaller
            self._max_size = size

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
