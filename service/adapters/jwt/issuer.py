"""An issuer of tokens, as the settings describe it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

import jwt

from service.adapters.jwt.keys import Algorithm, SharedKey

MIN_SECRET_BYTES = 32
"""RFC 7518 §3.2: an HS256 key is at least as long as its hash."""
MAX_LEEWAY = 300
"""Seconds."""
SUBSCRIPTION_SUFFIX = ":subscription"
"""What follows the audience of an issuer in the `aud` of tokens for one subscription. So they open no connection, at nodes of any
version, and other tokens grant no subscription."""
TENANT_PATTERN = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, slots=True)
class Issuer:
    """An issuer has exactly one algorithm, and one source of keys."""

    issuer: str
    """The claim `iss`."""
    audience: str
    """The claim `aud`, or one of its elements."""
    algorithm: Algorithm
    secret: str | None = field(default=None, repr=False)
    """Required with HS256, and only with it."""
    jwks_file: Path | None = None
    jwks_url: str | None = None
    tenant_claim: str = "tenant"
    default_tenant: str = "default"
    """For tokens without the tenant claim."""
    grants_claim: str = "grants"
    info_claim: str = "info"
    channels_claim: str = "channels"
    leeway: float = 5.0
    """Seconds by which the issuer's clock may differ from ours."""

    def for_subscriptions(self) -> Issuer:
        """Returns the issuer of the tokens for one subscription: the same with another audience."""
        return replace(self, audience=self.audience + SUBSCRIPTION_SUFFIX)

    def __post_init__(self) -> None:
        """Raises ValueError, whose text says what is wrong."""
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
    if not TENANT_PATTERN.fullmatch(issuer.default_tenant):
        yield f"default_tenant does not match {TENANT_PATTERN.pattern}"
    if not 0 <= issuer.leeway <= MAX_LEEWAY:
        yield f"leeway is between 0 and {MAX_LEEWAY} seconds"


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
