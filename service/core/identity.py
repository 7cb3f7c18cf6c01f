"""Who is speaking, and what a token lets them do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

from msgspec import Struct

from service.core.channel import grant_regex


class Right(Enum):
    """What a grant can allow in a channel; each is asked for by itself."""

    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"
    HISTORY = "history"
    PRESENCE = "presence"


ALL_RIGHTS = frozenset(Right)


@dataclass(frozen=True, slots=True)
class Grant:
    """Some rights in all channels that a pattern matches."""

    pattern: str
    rights: frozenset[Right] = ALL_RIGHTS

    def covers(self, channel: str, right: Right) -> bool:
        """Whether this grant gives the right in the (valid) channel."""
        return right in self.rights and grant_regex(self.pattern).fullmatch(channel) is not None


class Identity(Struct, frozen=True, gc=False):
    """An authenticated party; made only by an Authenticator, by `anonymous` or by `backend`."""

    tenant: str
    user: str
    """Empty for an anonymous connection and for the backend."""
    grants: tuple[Grant, ...] = ()
    expires_at: float | None = None
    """Seconds since the Unix epoch; None if the credentials do not expire."""
    info: bytes | None = None
    """JSON shown to others in presence."""
    is_backend: bool = False
    """Holds an API key: may publish every declared event of its tenant."""
    issued_at: float | None = None
    """Seconds since the Unix epoch; None if the credentials do not say."""
    token_id: str | None = None
    """By which this one token can be revoked."""

    def __repr__(self) -> str:
        """Without what only the token's owner has to know."""
        return f"Identity(tenant={self.tenant!r}, user={self.user!r})"

    @property
    def is_anonymous(self) -> bool:
        """Whether nobody has vouched for this party."""
        return not self.user and not self.is_backend

    def may(self, right: Right, channel: str) -> bool:
        """Whether a grant gives the right in the channel."""
        return any(grant.covers(channel, right) for grant in self.grants)


def anonymous(tenant: str) -> Identity:
    """A party without credentials, for services that allow it."""
    return Identity(tenant=tenant, user="")


def backend(tenant: str) -> Identity:
    """The holder of one of the tenant's API keys."""
    return Identity(tenant=tenant, user="", is_backend=True)


MAX_SHARED = 16
"""Grants of one token up to which equal ones are the same object in all identities."""
_TEXT = frozenset({str})


def parse_grants(claim: Any) -> tuple[Grant, ...]:
    """Reads a token's grants: a list of patterns (every right), or of ``{"channel": pattern, "rights": [...]}``.

    Equal claims nearly always give the same tuple: connections have many, and few different ones.

    Raises ValueError with a sentence. A grant that is not understood refuses the token: it must never widen or vanish.
    """
    if type(claim) is list and len(claim) <= MAX_SHARED:
        entries = tuple(claim)
        if _TEXT.issuperset(map(type, entries)):
            return _of_patterns(entries)
        return _shared(tuple(_grant(entry, index) for index, entry in enumerate(entries)))
    if claim is None:
        return ()
    if not isinstance(claim, Iterable) or isinstance(claim, str | bytes | Mapping):
        raise ValueError("grants is not a list")  # noqa: TRY004  # one kind of failure for every malformed claim
    return tuple(_grant(entry, index) for index, entry in enumerate(claim))


@lru_cache(maxsize=1024)
def _of_patterns(patterns: tuple[str, ...]) -> tuple[Grant, ...]:
    return _shared(tuple(map(_whole, patterns)))


@lru_cache(maxsize=1024)
def _shared(grants: tuple[Grant, ...]) -> tuple[Grant, ...]:
    return grants


@lru_cache(maxsize=4096)
def _whole(pattern: str) -> Grant:
    grant_regex(pattern)
    return Grant(pattern)


def _grant(entry: Any, index: int) -> Grant:
    if isinstance(entry, str):
        return _whole(entry)
    if not isinstance(entry, Mapping) or set(entry) != {"channel", "rights"} or not isinstance(entry["channel"], str):
        raise ValueError(f"grants[{index}] is neither a pattern nor {{channel, rights}}")
    if not isinstance(entry["rights"], list):
        raise ValueError(f"grants[{index}].rights is not a list")  # noqa: TRY004  # as above
    grant_regex(entry["channel"])
    try:
        rights = frozenset(Right(right) for right in entry["rights"])
    except (TypeError, ValueError) as error:
        known = ", ".join(sorted(right.value for right in Right))
        raise ValueError(f"grants[{index}].rights: each is one of {known}") from error
    return Grant(entry["channel"], rights)


class Credentials(Struct, frozen=True, gc=False):
    """What an upgrade or request carried, before anyone has checked it."""

    token: str | None = None
    ticket: str | None = None
    from_cookie: bool = False

    def __repr__(self) -> str:
        """Without the secrets."""
        return f"Credentials(from_cookie={self.from_cookie})"
