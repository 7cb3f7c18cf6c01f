"""Checks the claims of a verified token, and turns them into an identity."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from sys import intern
from typing import Any

from msgspec.structs import asdict

from service.adapters.jwt.errors import refused
from service.adapters.jwt.issuer import TENANT_PATTERN, Issuer
from service.core.claims import check_channels, check_user, encode_info
from service.core.identity import Identity, SubscribedIdentity, parse_grants
from service.errors import ErrorCode, ServiceError

MAX_ID = 256
"""Characters."""
MAX_TIME = 253_402_300_799
"""The end of the year 9999. A later time is a fault, or an attempt at a token that never expires."""
REQUIRED = ("exp", "aud", "iss", "sub")

_NUMBERS = (int, float)


def identity_of(claims: Mapping[str, Any], issuer: Issuer, now: float) -> Identity:
    """Returns the identity at a time (seconds since the Unix epoch). Raises ServiceError."""
    get = claims.get
    for claim in REQUIRED:
        if get(claim) is None:
            raise refused(f"it has no {claim!r}")
    if claims["aud"] != issuer.audience:
        _check_audience(claims["aud"], issuer.audience)
    expires_at = _check_times(claims, issuer.leeway, now)
    user = _subject(claims["sub"])
    # A null claim is refused, too: the default tenant could give the token more rights.
    tenant = get(issuer.tenant_claim, issuer.default_tenant)
    if not isinstance(tenant, str) or not _is_tenant(tenant):
        raise refused(f"its {issuer.tenant_claim!r} does not match {TENANT_PATTERN.pattern}")
    try:
        grants = parse_grants(get(issuer.grants_claim))
    except ValueError as error:
        raise refused(str(error)) from error
    info = get(issuer.info_claim)
    identity = Identity(
        intern(tenant),
        user,
        grants,
        expires_at,
        None if info is None else _info(info, issuer.info_claim),
        issued_at=_time(claims, "iat") if "iat" in claims else None,
        token_id=_token_id(claims["jti"]) if "jti" in claims else None,
    )
    channels = get(issuer.channels_claim)
    return identity if channels is None else _subscribed(identity, channels, issuer.channels_claim)


def _subscribed(identity: Identity, channels: Any, claim: str) -> Identity:
    try:
        names = check_channels(channels)
    except ValueError as error:
        raise refused(f"its {claim!r} {error}") from error
    return SubscribedIdentity(**asdict(identity), channels=names)


def _check_audience(audience: Any, expected: str) -> None:
    if not isinstance(audience, list) or not all(isinstance(one, str) for one in audience):
        raise refused("it is for another audience")
    if expected not in audience:
        raise refused("it is for another audience")


def _check_times(claims: Mapping[str, Any], leeway: float, now: float) -> float:
    """Returns when the token expires."""
    # Not checked with PyJWT, which reads the system's time and accepts "1", true and 1.9 as times.
    expires_at = _time(claims, "exp")
    for claim in ("nbf", "iat"):
        if claim in claims and _time(claims, claim) > now + leeway:
            raise refused(f"its {claim!r} is in the future")
    if expires_at <= now - leeway:
        raise ServiceError(ErrorCode.TOKEN_EXPIRED, "the token has expired")
    return expires_at


def _time(claims: Mapping[str, Any], claim: str) -> float:
    value = claims[claim]
    if type(value) not in _NUMBERS or not 0 <= value <= MAX_TIME:  # not isinstance: a bool is an int
        raise refused(f"its {claim!r} is not a time in seconds since 1970")
    return _shared_float(value)


_shared_float = lru_cache(maxsize=512)(float)
"""Tokens that were issued at about the same time expire in the same second. Their identities share one object."""


def _subject(user: Any) -> str:
    try:
        return check_user(user)
    except ValueError as error:
        raise refused(f"its 'sub' {error}") from error


@lru_cache(maxsize=1024)
def _is_tenant(name: str) -> bool:
    return TENANT_PATTERN.fullmatch(name) is not None


def _token_id(id_: Any) -> str:
    # The backend API could not revoke a token with another id.
    if not isinstance(id_, str) or not 1 <= len(id_) <= MAX_ID:
        raise refused(f"its 'jti' is not a text of 1 to {MAX_ID} characters")
    return id_


def _info(value: Any, claim: str) -> bytes:
    try:
        return encode_info(value)
    except ValueError as error:
        raise refused(f"its {claim!r} {error}") from error
