"""The error of a token that is refused."""

from __future__ import annotations

from service.core.authenticator import UnknownTokenError
from service.errors import ErrorCode, ServiceError


def refused(reason: str) -> ServiceError:
    """Returns the error for a client. The reason must not quote the token."""
    return ServiceError(ErrorCode.INVALID_TOKEN, f"the token is refused: {reason}")


def unknown(reason: str) -> UnknownTokenError:
    """Returns the error for what is no token of an issuer in the settings."""
    return UnknownTokenError(ErrorCode.INVALID_TOKEN, f"the token is refused: {reason}")
