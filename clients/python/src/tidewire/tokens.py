"""Signs the tokens with which users connect. Keep the secret on your backend."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jwt

from tidewire.errors import ConfigurationError

MIN_SECRET_BYTES = 32
SUBSCRIPTION_SUFFIX = ":subscription"
"""Behind the audience, for tokens that grant one subscription (docs/protocol.md#subscription-tokens)."""


class TokenSigner:
    """Signs tokens for users, with the secret that the service knows as `auth.secret`.

    >>> signer = TokenSigner("a secret of at least thirty-two bytes")
    >>> token = signer.token("ann", grants=["room:*"], ttl=3600)
    """

    def __init__(
        self,
        secret: str | bytes,
        *,
        issuer: str = "tidewire",
        audience: str = "tidewire",
        algorithm: str = "HS256",
        ttl: float = 3600.0,
    ) -> None:
        """Args: `issuer`, `audience`: as in the service's settings. `algorithm`: other than HS256, `secret` is a private key in
        PEM, and PyJWT's extra `crypto` must be installed. `ttl`: seconds that a token lasts, unless it names others."""
        if algorithm.startswith("HS") and len(secret) < MIN_SECRET_BYTES:
            raise ConfigurationError(f"the secret has fewer than {MIN_SECRET_BYTES} bytes")
        self._secret = secret
        self._algorithm = algorithm
        self.issuer = issuer
        self.audience = audience
        self.ttl = ttl

    def __repr__(self) -> str:
        return f"TokenSigner(issuer={self.issuer!r}, audience={self.audience!r}, algorithm={self._algorithm!r})"

    def token(
        self,
        user: str,
        *,
        grants: Sequence[str | Mapping[str, Any]] = (),
        ttl: float | None = None,
        tenant: str | None = None,
        info: Any = None,
        channels: Sequence[str] = (),
        jti: str | None = None,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """Returns a token for a user.

        Args:
            grants: patterns with every right, such as `room:*`, or `{"channel": pattern, "rights": ["subscribe", …]}`.
            ttl: seconds until it expires.
            info: what presence shows of the user.
            channels: channels to which each connection with this token is subscribed (feature `server_subscriptions`).
            jti: an id for `revoke_token`.
            claims: further claims.
        """
        return self._sign(
            user, self.audience, grants, ttl, {"tenant": tenant, "info": info, "jti": jti, **(claims or {})}, channels
        )

    def subscription_token(
        self,
        user: str,
        channel: str,
        *,
        rights: Sequence[str] | None = None,
        ttl: float | None = None,
        tenant: str | None = None,
    ) -> str:
        """Returns a token that grants one channel to a client that is connected already. It opens no connection.

        Args:
            rights: `subscribe`, `history`, `presence`, `publish`; every right if None.
        """
        grant: str | Mapping[str, Any] = (
            channel if rights is None else {"channel": channel, "rights": list(dict.fromkeys(rights))}
        )
        return self._sign(user, self.audience + SUBSCRIPTION_SUFFIX, [grant], ttl, {"tenant": tenant}, ())

    def _sign(
        self,
        user: str,
        audience: str,
        grants: Sequence[str | Mapping[str, Any]],
        ttl: float | None,
        extra: Mapping[str, Any],
        channels: Sequence[str],
    ) -> str:
        if isinstance(grants, str) or isinstance(channels, str):
            raise ConfigurationError("grants and channels are lists of names")
        if not user:
            raise ConfigurationError("a token needs a user")
        now = time.time()
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "aud": audience,
            "sub": user,
            "iat": int(now),
            "exp": int(now + (self.ttl if ttl is None else ttl)),
            "grants": list(grants),
        }
        claims |= {name: value for name, value in extra.items() if value is not None}
        if channels:
            claims["channels"] = list(channels)
        return jwt.encode(claims, self._secret, algorithm=self._algorithm)
