"""The Authenticator for JSON Web Tokens: whom the configured issuers vouch for, and nobody else.

What a token says about how to check it is never believed: the algorithm is the issuer's, the key is the issuer's, `jku`, `jwk`
and `x5u` are not read, `crit` refuses the token. Only `iss` is read before the signature is checked, to choose the issuer, and
`kid`, to choose among that issuer's keys. Every token's claims are checked anew; of a signature that was right it may be
remembered that it was (signatures.py).

The compact form is taken apart here and not by PyJWT, for speed; a test holds this to refuse all that PyJWT does. The keys and
the signatures are PyJWT's matter. docs/adr/0018-tokens.md tells why.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from sys import intern
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import jwt
import msgspec

from service.adapters.jwt.key_sources import Algorithm, Fetch, FileKeys, KeySource, SecretKey, SharedKey, UrlKeys
from service.adapters.jwt.signature_cache import Signatures
from service.core.clock import Clock
from service.core.identity import Identity, parse_grants
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import MAX_TOKEN
from service.telemetry.metrics import Metrics

MIN_SECRET_BYTES = 32
"""RFC 7518 §3.2: an HS256 key is at least as long as its hash."""
MAX_KID = 256
MAX_SUBJECT = 128
MAX_ID = 256
MAX_INFO = 1024
MAX_TIME = 253_402_300_799
"""The end of the year 9999: a later time is a fault or an attempt at a token that never expires."""

REQUIRED = ("exp", "aud", "iss", "sub")
MAX_SHARED_HEADER = 256
"""Bytes up to which a header is remembered as it was read: an issuer's tokens all have the same one, or a few."""
_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_CHARACTERS = _ALPHABET + b"."
_STANDARD = bytes.maketrans(b"-_", b"+/")
_ENDINGS = (_ALPHABET, b"", _ALPHABET[::16], _ALPHABET[::4])
"""What the last character can be, by the length modulo 4: bits that stand for nothing are 0 (RFC 4648 §3.5), so that there is
no second spelling of the same token."""
_NUMBERS = (int, float)
_PADDING = (b"", b"", b"==", b"=")
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


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
    if issuer.secret is not None and _is_public(issuer.secret):
        yield "secret is a public key or a certificate: everybody who has it could sign"
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


def _is_public(secret: str) -> bool:
    try:
        SharedKey(secret)
    except jwt.InvalidKeyError:
        return True
    return False


class JwtAuthenticator:
    """Keeps the port's promise for the given issuers."""

    def __init__(
        self,
        issuers: Sequence[Issuer],
        clock: Clock,
        fetch: Fetch,
        *,
        remember: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        """`remember`: tokens whose signatures need not be checked again. Raises ValueError if two issuers have the same
        name."""
        self._clock = clock
        self._signatures = Signatures(remember, metrics or Metrics())
        self._issuers: dict[str, tuple[Issuer, KeySource]] = {}
        for issuer in issuers:
            if issuer.issuer in self._issuers:
                raise ValueError(f"issuer {issuer.issuer!r} stands twice; `iss` could not tell which is meant")
            self._issuers[issuer.issuer] = (issuer, _source(issuer, clock, fetch))

    async def authenticate(self, token: str) -> Identity:
        """As the port says."""
        parts = _take_apart(token)
        claims = parts.claims
        name = claims.get("iss")
        found = self._issuers.get(name) if isinstance(name, str) else None
        if found is None:
            raise _refused("it is not from an issuer known here")
        issuer, source = found
        _check_header(parts.header, issuer)
        key = await source.find(parts.header.kid)
        if key is None:
            raise _refused("the issuer has no key by which to check it")
        if not self._signatures.is_right(key, parts.signed, parts.signature, parts.token):
            raise _refused("its signature is wrong")
        _check_claims(claims, issuer)
        expires_at = self._in_time(claims, issuer.leeway)
        return _identity(claims, issuer, expires_at)

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


class _Header(NamedTuple):
    """What is looked at of a header."""

    algorithm: Any
    kid: str | None
    is_extended: bool
    """Whether it has members that change what the rest means."""


class _Parts(msgspec.Struct, frozen=True, gc=False):
    """A token in its parts, as yet unverified."""

    header: _Header
    claims: Mapping[str, Any]
    token: bytes
    signed: bytes
    signature: bytes


def _take_apart(token: str) -> _Parts:
    if len(token) > MAX_TOKEN:
        raise _refused(f"it is longer than {MAX_TOKEN} characters")
    whole = token.encode() if token.isascii() else b""
    segments = whole.split(b".")
    # Three, none of them empty: no unsigned token, no JWE, no padding.
    if len(segments) != 3 or b"" in segments or whole.translate(None, _CHARACTERS):
        raise _refused("it is not three segments of base64url")
    header, payload, signature = segments
    signed = whole[: -1 - len(signature)]
    read = _shared_header if len(header) <= MAX_SHARED_HEADER else _header
    try:
        return _Parts(read(header), _decode(_bytes(payload)), whole, signed, _bytes(signature))
    except _UNREADABLE as error:
        raise _refused("its header or payload cannot be read") from error


def _bytes(segment: bytes) -> bytes:
    """Raises ValueError if it is not base64url as an encoder writes it (RFC 7515 §2). The alphabet has been checked."""
    over = len(segment) & 3
    if segment[-1] not in _ENDINGS[over]:
        raise ValueError("not base64url")
    return a2b_base64(segment.translate(_STANDARD) + _PADDING[over])


def _header(segment: bytes) -> _Header:
    """Raises one of _UNREADABLE, or ServiceError."""
    header = _decode(_bytes(segment))
    kid = header.get("kid")
    # A kid that is null is not the same as none, which lets a lone key be meant.
    if "kid" in header and not (isinstance(kid, str) and len(kid) <= MAX_KID):
        raise _refused(f"its kid is not a text of at most {MAX_KID} characters")
    return _Header(header.get("alg"), kid, "crit" in header or "b64" in header)


_shared_header = lru_cache(maxsize=256)(_header)


def _check_header(header: _Header, issuer: Issuer) -> None:
    if header.algorithm != issuer.algorithm:
        raise _refused(f"its issuer signs with {issuer.algorithm}")
    if header.is_extended:
        raise _refused("it has header extensions that this service does not know")


def _check_claims(claims: Mapping[str, Any], issuer: Issuer) -> None:
    for claim in REQUIRED:
        if claims.get(claim) is None:
            raise _refused(f"it has no {claim!r}")
    audience = claims["aud"]
    if audience == issuer.audience:
        return
    if not isinstance(audience, list) or not all(isinstance(one, str) for one in audience):
        raise _refused("it is for another audience")
    if issuer.audience not in audience:
        raise _refused("it is for another audience")


def _moment(claims: Mapping[str, Any], claim: str) -> float:
    value = claims[claim]
    if type(value) not in _NUMBERS or not 0 <= value <= MAX_TIME:  # no bool, which is an int
        raise _refused(f"its {claim!r} is not a time in seconds since 1970")
    return float(value)


def _identity(claims: Mapping[str, Any], issuer: Issuer, expires_at: float) -> Identity:
    user = claims["sub"]
    # Invisible characters would let one name look like another in logs, lists and messages.
    if not isinstance(user, str) or not 1 <= len(user) <= MAX_SUBJECT or not user.isprintable() or user != user.strip():
        raise _refused(f"its 'sub' is not 1 to {MAX_SUBJECT} printable characters without spaces around them")
    # A claim that is there but null is refused too: falling back to the default would widen what the token may do.
    tenant = claims.get(issuer.tenant_claim, issuer.default_tenant)
    if not isinstance(tenant, str) or not _is_tenant(tenant):
        raise _refused(f"its {issuer.tenant_claim!r} does not match {_TENANT.pattern}")
    try:
        grants = parse_grants(claims.get(issuer.grants_claim))
    except ValueError as error:
        raise _refused(str(error)) from error
    return Identity(
        intern(tenant),
        user,
        grants,
        expires_at,
        _info(claims.get(issuer.info_claim), issuer.info_claim),
        issued_at=_moment(claims, "iat") if "iat" in claims else None,
        token_id=_id(claims),
    )


@lru_cache(maxsize=1024)
def _is_tenant(name: str) -> bool:
    return _TENANT.fullmatch(name) is not None


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
        info = _encode(value).encode()
    except (ValueError, RecursionError) as error:
        raise _refused(f"its {claim!r} cannot be written as JSON") from error
    if len(info) > MAX_INFO:
        raise _refused(f"its {claim!r} is larger than {MAX_INFO} bytes")
    return info


def _refused(reason: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_TOKEN, f"the token is refused: {reason}")
