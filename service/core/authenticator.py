"""The Authenticator port: turns tokens into identities."""

from __future__ import annotations

from typing import Protocol

from service.core.identity import Identity


class Authenticator(Protocol):
    """Returns only identities whose tokens a configured issuer has signed."""

    def authenticate_now(self, token: str) -> Identity | None:
        """Does the same as `authenticate`, if that needs no wait. Otherwise returns None: call `authenticate`."""

    async def authenticate(self, token: str) -> Identity:
        """Verifies a token.

        Raises ServiceError: INVALID_TOKEN (the reason names no secret), TOKEN_EXPIRED, or OVERLOADED if the issuer's keys
        are not available now.
        """

    async def authenticate_subscription(self, token: str) -> Identity:
        """Verifies the token of a subscription. No other method accepts it, and this one accepts no other token.

        Raises the same.
        """
