"""The Authenticator for JSON Web Tokens."""

from __future__ import annotations

from collections.abc import Sequence

from service.adapters.jwt.claims import identity_of
from service.adapters.jwt.errors import refused, unknown
from service.adapters.jwt.issuer import Issuer
from service.adapters.jwt.key_sources import Fetch, KeySource, key_source
from service.adapters.jwt.keys import Key
from service.adapters.jwt.signature_cache import SignatureCache
from service.adapters.jwt.token import UnverifiedToken, split_token
from service.core.clock import Clock
from service.core.hooks import ClientContext
from service.core.identity import Identity
from service.telemetry.metrics import Metrics


class JwtAuthenticator:
    """Authenticates tokens of the given issuers.

    The claims of a token are checked each time. Only the result of verifying its signature is cached.
    """

    def __init__(
        self,
        issuers: Sequence[Issuer],
        clock: Clock,
        fetch: Fetch,
        *,
        max_cached_signatures: int = 0,
        metrics: Metrics | None = None,
    ) -> None:
        """Raises ValueError if two issuers have the same name."""
        self._clock = clock
        self._signatures = SignatureCache(max_cached_signatures, metrics or Metrics())
        self._issuers: dict[str, tuple[Issuer, KeySource]] = {}
        self._of_subscriptions = {issuer.issuer: issuer.for_subscriptions() for issuer in issuers}
        for issuer in issuers:
            if issuer.issuer in self._issuers:
                raise ValueError(f"issuer {issuer.issuer!r} stands twice; `iss` could not tell which is meant")
            self._issuers[issuer.issuer] = (issuer, key_source(issuer, clock, fetch))

    async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
        """Verifies a token by its issuer's key, and checks its claims."""
        unverified = split_token(token)
        issuer, source = self._issuer_of(unverified)
        return self._verify(unverified, issuer, await _find_key(source, unverified))

    async def authenticate_subscription(self, token: str) -> Identity:
        """Verifies a token for one subscription in the same way; it has another audience."""
        unverified = split_token(token)
        issuer, source = self._issuer_of(unverified)
        key = await _find_key(source, unverified)
        return self._verify(unverified, self._of_subscriptions[issuer.issuer], key)

    async def authenticate_without_token(self, context: ClientContext | None) -> None:
        """Returns None: without a token there is nothing to verify."""

    async def authenticate_again(self, identity: Identity, token: str | None = None) -> Identity:
        """Raises ServiceError: no identity of a token can be renewed without another token."""
        raise refused("the session began with a token of an issuer, and needs a new one")

    def forget(self, identity: Identity) -> None:
        """Does nothing: no identity is remembered."""

    def authenticate_now(self, token: str) -> Identity | None:
        """Does the same as `authenticate` with a key that is known."""
        unverified = split_token(token)
        issuer, source = self._issuer_of(unverified)
        key = source.find_now(unverified.header.kid)
        return None if key is None else self._verify(unverified, issuer, key)

    def _issuer_of(self, unverified: UnverifiedToken) -> tuple[Issuer, KeySource]:
        name = unverified.claims.get("iss")
        known = self._issuers.get(name) if isinstance(name, str) else None
        if known is None:
            raise unknown("it is not from an issuer known here")
        header, issuer = unverified.header, known[0]
        if header.algorithm != issuer.algorithm:
            raise refused(f"its issuer signs with {issuer.algorithm}")
        if header.has_extensions:
            raise refused("it has header extensions that this service does not know")
        return known

    def _verify(self, unverified: UnverifiedToken, issuer: Issuer, key: Key) -> Identity:
        if not self._signatures.verify(key, unverified.signed, unverified.signature, unverified.token):
            raise refused("its signature is wrong")
        return identity_of(unverified.claims, issuer, self._clock.wall())


async def _find_key(source: KeySource, unverified: UnverifiedToken) -> Key:
    key = await source.find(unverified.header.kid)
    if key is None:
        raise refused("the issuer has no key by which to check it")
    return key
