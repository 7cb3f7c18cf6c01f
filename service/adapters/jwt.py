"""The Authenticator for JSON Web Tokens: whom the configured issuers vouch for, and nobody else.

What a token says about how to check it is never believed: the algorithm is the issuer's, the key is the issuer's, `jku`, `jwk`
and `x5u` are not read, `crit` refuses the token. Only `iss` is read before the signature is checked, to choose the issuer, and
`kid`, to choose among that issuer's keys. Every token is checked anew; nothing is remembered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import jwt

from service.adapters.jwks import Algorithm, Fetch, FileKeys, Key, KeySource, SecretKey, UrlKeys
from service.core.clock import Clock
from service.core.identity import Identity, parse_grants
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import MAX_TOKEN

MIN_SECRET_BYTES = 32
"""RFC 7518 §3.2: an HS256 key is at least as long as its hash."""
MAX_KID = 256
MAX_SUBJECT = 128
MAX_ID = 256
MAX_INFO = 1024
MAX_TIME = 253_402_300_799
"""The end of the year 9999: a later time is a fault or an attempt at a token that never expires."""

REQUIRED = ("exp", "aud", "iss", "sub")
_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
"""Three non-empty segments: no unsigned token, no JWE, no padding, no second spelling of the same token."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """Someone whose tokens are accepted: exactly one algorithm and one place to have the keys from."""

    issuer: str
    """Equal to `iss`."""
    audience: str
    """Is `aud`, or one of them."""
    algorithm: Algorithm
    secret: str | None = field(default=None, repr=False)
    """Only with HS256, and then always."""
    jwks_file: Path | None = None
    jwks_url: str | None = None
    tenant_claim: str = "tenant"
    default_tenant: str = "default"
    """Of tokens without the tenant claim."""
    grants_claim: str = "grants"
    info_claim: str = "info"
    leeway: float = 5.0
    """Seconds by which the issuer's clock and this one may differ."""

    def __post_init__(self) -> None:
        """Raises ValueError with a sentence that says what is wrong."""
        if fault := next(_faults(self), None):
            raise ValueError(f"issuer {self.issuer!r}: {fault}")


def _faults(issuer: Issuer) -> Iterator[str]:
    if not issuer.issuer or not issuer.audience:
        yield "issuer and audience are needed"
    if issuer.algorithm not in get_args(Algorithm):
        yield f"algorithm is one of {', '.join(get_args(Algorithm))}"
    given = [name for name in ("secret", "jwks_file", "jwks_url") if getattr(issuer, name) is not None]
    wanted = ["secret"] if issuer.algorithm == "HS256" else ["jwks_file", "jwks_url"]
    if len(given) != 1 or given[0] not in wanted:
        yield f"{issuer.algorithm} needs {' or '.join(wanted)}, and only that; given: {', '.join(given) or 'nothing'}"
    if issuer.secret is not None and len(issuer.secret.encode()) < MIN_SECRET_BYTES:
        yield f"secret is shorter than {MIN_SECRET_BYTES} bytes"
    if issuer.jwks_url is not None and not _is_https(issuer.jwks_url):
        yield "jwks_url is not an https:// address (without a user): whoever can change the keys on their way can be anybody"
    if not _TENANT.fullmatch(issuer.default_tenant):
        yield f"default_tenant does not match {_TENANT.pattern}"
    if not 0 <= issuer.leeway <= 300:
        yield "leeway is between 0 and 300 seconds"


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname) and parts.username is None


class JwtAuthenticator:
    """Keeps the port's promise for the given issuers."""

    def __init__(self, issuers: Sequence[Issuer], clock: Clock, fetch: Fetch) -> None:
        """Raises ValueError if two issuers have the same name."""
        self._clock = clock
        self._issuers: dict[str, tuple[Issuer, KeySource]] = {}
        for issuer in issuers:
            if issuer.issuer in self._issuers:
                raise ValueError(f"issuer {issuer.issuer!r} stands twice; `iss` could not tell which is meant")
            self._issuers[issuer.issuer] = (issuer, _source(issuer, clock, fetch))

    async def authenticate(self, token: str) -> Identity:
        """As the port says."""
        header, claims = _unverified(token)
        name = claims.get("iss")
        if not isinstance(name, str) or name not in self._issuers:
            raise _refused("it is not from an issuer known here")
        issuer, source = self._issuers[name]
        kid = _kid(header, issuer)
        key = await source.find(kid)
        if key is None:
            raise _refused("the issuer has no key by which to check it")
        verified = _verified(token, key, issuer)
        expires_at = self._in_time(verified, issuer.leeway)
        return _identity(verified, issuer, expires_at)

    def _in_time(self, claims: Mapping[str, Any], leeway: float) -> float:
        # PyJWT would ask the operating system for the time and take "1", true and 1.9 for a moment: this is done here.
        now = self._clock.wall()
        expires_at = _moment(claims, "exp")
        for claim in ("nbf", "iat"):
            if claim in claims and _moment(claims, claim) > now + leeway:
                raise _refused(f"its {claim!r} is in the future")
        if expires_at <= now - leeway:
            raise ServiceError(ErrorCode.TOKEN_EXPIRED, "the token has expired")
        return expires_at


def _source(issuer: Issuer, clock: Clock, fetch: Fetch) -> KeySource:
    if issuer.secret is not None:
        return SecretKey(issuer.secret)
    if issuer.jwks_file is not None:
        return FileKeys(issuer.jwks_file, issuer.algorithm, clock)
    assert issuer.jwks_url is not None  # noqa: S101  # Issuer has checked that there is exactly one
    return UrlKeys(issuer.jwks_url, issuer.algorithm, clock, fetch)


def _unverified(token: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    if len(token) > MAX_TOKEN:
        raise _refused(f"it is longer than {MAX_TOKEN} characters")
    if not _COMPACT.fullmatch(token):
        raise _refused("it is not three segments of base64url")
    try:
        parts = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise _refused("its header or payload cannot be read") from error
    return parts["header"], parts["payload"]


def _kid(header: Mapping[str, Any], issuer: Issuer) -> str | None:
    if header.get("alg") != issuer.algorithm:
        raise _refused(f"its issuer signs with {issuer.algorithm}")
    if "crit" in header or "b64" in header:
        raise _refused("it has header extensions that this service does not know")
    kid = header.get("kid")
    if kid is not None and (not isinstance(kid, str) or len(kid) > MAX_KID):
        raise _refused(f"its kid is not a text of at most {MAX_KID} characters")
    return kid


def _verified(token: str, key: Key, issuer: Issuer) -> Mapping[str, Any]:
    try:
        claims: Mapping[str, Any] = jwt.decode(
            token,
            key,
            algorithms=[issuer.algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            options={
                "require": list(REQUIRED),
                "verify_exp": False,  # these three: see _in_time
                "verify_nbf": False,
                "verify_iat": False,
                "verify_sub": False,  # see _identity
                "verify_jti": False,  # the same
                "enforce_minimum_key_length": True,
            },
        )
    except jwt.MissingRequiredClaimError as error:
        raise _refused(f"it has no {error.claim!r}") from error
    except jwt.InvalidAudienceError as error:
        raise _refused("it is for another audience") from error
    except jwt.InvalidSignatureError as error:
        raise _refused("its signature is wrong") from error
    except (jwt.PyJWTError, ValueError) as error:  # PyJWT's sentences can quote the token: they stay behind
        raise _refused("it cannot be verified") from error
    return claims


def _moment(claims: Mapping[str, Any], claim: str) -> float:
    value = claims[claim]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_TIME:
        raise _refused(f"its {claim!r} is not a time in seconds since 1970")
    return float(value)


def _identity(claims: Mapping[str, Any], issuer: Issuer, expires_at: float) -> Identity:
    user = claims["sub"]
    # Invisible characters would let one name look like another in logs, lists and messages.
    if not isinstance(user, str) or not 1 <= len(user) <= MAX_SUBJECT or not user.isprintable() or user != user.strip():
        raise _refused(f"its 'sub' is not 1 to {MAX_SUBJECT} printable characters without spaces around them")
    # A claim that is there but null is refused too: falling back to the default would widen what the token may do.
    tenant = claims.get(issuer.tenant_claim, issuer.default_tenant)
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise _refused(f"its {issuer.tenant_claim!r} does not match {_TENANT.pattern}")
    try:
        grants = parse_grants(claims.get(issuer.grants_claim))
    except ValueError as error:
        raise _refused(str(error)) from error
    return Identity(
        tenant,
        user,
        grants,
        expires_at,
        _info(claims.get(issuer.info_claim), issuer.info_claim),
        issued_at=_moment(claims, "iat") if "iat" in claims else None,
        token_id=_id(claims),
    )


def _id(claims: Mapping[str, Any]) -> str | None:
    if "jti" not in claims:
        return None
    found = claims["jti"]
    # What the backend API could not name could not be revoked either.
    if not isinstance(found, str) or not 1 <= len(found) <= MAX_ID:
        raise _refused(f"its 'jti' is not a text of 1 to {MAX_ID} characters")
    return found


def _info(value: Any, claim: str) -> bytes | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _refused(f"its {claim!r} is not an object")
    try:
        info = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:  # NaN, or half a surrogate pair
        raise _refused(f"its {claim!r} cannot be written as JSON") from error
    if len(info) > MAX_INFO:
        raise _refused(f"its {claim!r} is larger than {MAX_INFO} bytes")
    return info


def _refused(reason: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_TOKEN, f"the token is refused: {reason}")
