"""The Authenticator port: turns tokens into identities."""

from __future__ import annotations

from typing import Protocol

from service.core.hooks import ClientContext
from service.core.identity import Identity
from service.errors import ServiceError


class UnknownTokenError(ServiceError):
    """A token of no issuer in the settings, such as one that is no JWT. The backend may know it (hook `connect`)."""


class Authenticator(Protocol):
    """Returns only identities whose tokens a configured issuer has signed, or for which the backend vouches.

    `context`: what the backend may know of the client. None if the backend must not be asked.
    """

    def authenticate_now(self, token: str) -> Identity | None:
        """Does the same as `authenticate`, if that needs no wait. Otherwise returns None: call `authenticate`."""

    async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
        """Verifies a token.

        Raises ServiceError: INVALID_TOKEN (the reason names no secret), TOKEN_EXPIRED, or OVERLOADED if the issuer's keys
        are not available now, or too many clients ask. If the backend was asked, also FORBIDDEN and HOOK_UNAVAILABLE.
        """

    async def authenticate_without_token(self, context: ClientContext | None) -> Identity | None:
        """Asks the backend about a client without a token. Raises ServiceError, as `authenticate`.

        Returns None if nobody is to be asked: then the client is anonymous, where the settings allow that.
        """

    async def authenticate_again(self, identity: Identity, token: str | None = None) -> Identity:
        """Asks the backend about a session for which it has vouched before. `token`: a new one of the client.

        Returns an identity of the same user and tenant. Raises ServiceError, as `authenticate`.
        """

    async def authenticate_subscription(self, token: str) -> Identity:
        """Verifies the token of a subscription. No other method accepts it, and this one accepts no other token.

        Raises the same.
        """

    def forget(self, identity: Identity) -> None:
        """Forgets the backend's answer that has led to an identity, so that the next question is asked."""
