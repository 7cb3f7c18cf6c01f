"""The Authenticator port: tokens to identities."""

from __future__ import annotations

from typing import Protocol

from service.core.identity import Identity


class Authenticator(Protocol):
    """Whoever it returns has been vouched for by an issuer the settings name."""

    async def authenticate(self, token: str) -> Identity:
        """Checks a token.

        Raises ServiceError: INVALID_TOKEN (with a reason that names no secret), TOKEN_EXPIRED, or OVERLOADED when the
        issuer's keys cannot be had right now.
        """
