"""Tokens that are good no more although they have not expired. Pure: time comes in as seconds since the Unix epoch."""

from __future__ import annotations

from collections.abc import Iterator
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
    """When every token that it concerns has expired by itself, so that it may be forgotten."""
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
        return wide and self.until >= other.until

    def joined(self, older: Revocation) -> Revocation:
        """Both in one: what has been revoked stays so."""
        wide = self.before is None or older.before is None
        before = None if wide else max(self.before or 0.0, older.before or 0.0)
        return replace(self, before=before, until=max(self.until, older.until), reason=self.reason or older.reason)


class RevocationTable:
    """At most `most` revocations: with one more, the one that has been there longest is forgotten."""

    __slots__ = ("_entries", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[Subject, Revocation] = {}

    def add(self, revocation: Revocation) -> bool:
        """Takes a revocation, joined with what is known of its subject. False if another was forgotten for it."""
        known = self._entries.pop(revocation.subject, None)
        self._entries[revocation.subject] = revocation if known is None else revocation.joined(known)
        if len(self._entries) <= self._most:
            return True
        del self._entries[next(iter(self._entries))]
        return False

    def get(self, subject: Subject) -> Revocation | None:
        """What is known of a subject."""
        return self._entries.get(subject)

    def find(self, identity: Identity) -> Revocation | None:
        """Why the token behind an identity is good no more; None if it is, or if there is none behind it."""
        if not identity.user:
            return None
        of_user = self._entries.get(Subject(Target.USER, identity.tenant, identity.user))
        if of_user is not None and of_user.concerns(identity.issued_at):
            return of_user
        if identity.token_id is None:
            return None
        return self._entries.get(Subject(Target.TOKEN, identity.tenant, identity.token_id))

    def forget(self, now: float) -> None:
        """Drops what no living token can meet any more."""
        for subject in [subject for subject, entry in self._entries.items() if entry.until <= now]:
            del self._entries[subject]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(tuple(self._entries.values()))
