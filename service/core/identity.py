"""Identities, and the grants in their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar

from msgspec import Struct
from msgspec.structs import replace

from service.core.channel import grant_regex
from service.core.hooks import ConnectQuestion


class Right(Enum):
    """What a grant can allow in a channel. Each right is checked separately."""

    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"
    HISTORY = "history"
    PRESENCE = "presence"


ALL_RIGHTS = frozenset(Right)


@dataclass(frozen=True, slots=True)
class Grant:
    """Rights in all channels that match a pattern."""

    pattern: str
    rights: frozenset[Right] = ALL_RIGHTS

    def covers(self, channel: str, right: Right) -> bool:
        """True if this grant gives the right in the (valid) channel."""
        return right in self.rights and grant_regex(self.pattern).fullmatch(channel) is not None


class Identity(Struct, frozen=True, gc=False):
    """An authenticated party. Only an Authenticator, `anonymous` and `backend` create one."""

    tenant: str
    user: str
    """Empty for an anonymous connection and for the backend."""
    grants: tuple[Grant, ...] = ()
    expires_at: float | None = None
    """Seconds since the Unix epoch; None if the credentials do not expire."""
    info: bytes | None = None
    """JSON that presence shows to others."""
    is_backend: bool = False
    """True if the party has an API key. Then it may publish every declared event of its tenant."""
    issued_at: float | None = None
    """Seconds since the Unix epoch; None if the credentials do not say."""
    token_id: str | None = None
    """The token's `jti`, by which it can be revoked."""

    channels: ClassVar[tuple[str, ...]] = ()
    """Channels to which the token subscribes each connection."""
    question: ClassVar[ConnectQuestion | None] = None
    """The question to which the backend has answered with this identity; None if a token says everything."""
    welcome_data: ClassVar[bytes | None] = None
    """JSON for the client, in `welcome`."""

    def __repr__(self) -> str:
        """Omits grants and info."""
        return f"Identity(tenant={self.tenant!r}, user={self.user!r})"

    @property
    def is_anonymous(self) -> bool:
        """True if the party has no credentials."""
        return not self.user and not self.is_backend

    def with_grants(self, other: Identity) -> Identity:
        """Returns the identity with the grants of another one of the same user, too."""
        return replace(self, grants=(*self.grants, *other.grants))

    def may(self, right: Right, channel: str) -> bool:
        """True if a grant gives the right in the channel."""
        return any(grant.covers(channel, right) for grant in self.grants)


class SubscribedIdentity(Identity, frozen=True, gc=False):
    """An identity whose token names channels. A type of its own, so that the others take no memory for them."""

    channels: tuple[str, ...] = ()  # type: ignore[misc]  # a field in place of the constant of other identities


class VouchedIdentity(SubscribedIdentity, frozen=True, gc=False):
    """An identity for which the backend vouches (hook `connect`). It expires; its issue time is that of the answer."""

    # Fields in place of the constants of other identities.
    question: ConnectQuestion | None = None  # type: ignore[misc]  # see above
    welcome_data: bytes | None = None  # type: ignore[misc]  # see above


def anonymous(tenant: str) -> Identity:
    """Returns the identity of a client without credentials."""
    return Identity(tenant=tenant, user="")


def backend(tenant: str) -> Identity:
    """Returns the identity of a holder of the tenant's API key."""
    return Identity(tenant=tenant, user="", is_backend=True)


MAX_INTERNED = 16
"""Equal grants of tokens with up to this many grants share one object, because many connections have the same grants."""
_TEXT = frozenset({str})


def parse_grants(claim: Any) -> tuple[Grant, ...]:
    """Parses a token's grants: a list of patterns (every right), or of ``{"channel": pattern, "rights": [...]}``.

    Raises ValueError with a sentence. A token with an unknown grant is refused: to ignore or widen the grant would be wrong.
    """
    if type(claim) is list and len(claim) <= MAX_INTERNED:
        entries = tuple(claim)
        if _TEXT.issuperset(map(type, entries)):
            return _from_patterns(entries)
        return _intern(tuple(_grant(entry, index) for index, entry in enumerate(entries)))
    if claim is None:
        return ()
    if not isinstance(claim, Iterable) or isinstance(claim, str | bytes | Mapping):
        raise ValueError("grants is not a list")  # noqa: TRY004  # one kind of failure for every malformed claim
    return tuple(_grant(entry, index) for index, entry in enumerate(claim))


@lru_cache(maxsize=1024)
def _from_patterns(patterns: tuple[str, ...]) -> tuple[Grant, ...]:
    return _intern(tuple(map(_full_grant, patterns)))


@lru_cache(maxsize=1024)
def _intern(grants: tuple[Grant, ...]) -> tuple[Grant, ...]:
    return grants


@lru_cache(maxsize=4096)
def _full_grant(pattern: str) -> Grant:
    grant_regex(pattern)
    return Grant(pattern)


def _grant(entry: Any, index: int) -> Grant:
    if isinstance(entry, str):
        return _full_grant(entry)
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
    """The unchecked credentials of an upgrade or a request."""

    token: str | None = None
    ticket: str | None = None
    from_cookie: bool = False

    def __repr__(self) -> str:
        """Omits the secrets."""
        return f"Credentials(from_cookie={self.from_cookie})"
