"""The errors of stores. Every port raises BROKER_UNAVAILABLE only, and `Broker.publish` also CONFLICT."""

from __future__ import annotations

from service.errors import ErrorCode, ServiceError


def unavailable(reason: str) -> ServiceError:
    """Returns the error of a call that the store cannot serve now; the reason names no secret."""
    return ServiceError(ErrorCode.BROKER_UNAVAILABLE, reason)


class MisconfiguredError(ServiceError):
    """The store cannot serve calls until an operator changes something, so a retry is useless."""

    def __init__(self, reason: str) -> None:
        super().__init__(ErrorCode.BROKER_UNAVAILABLE, reason)


def check_version(expected: int, found: int) -> None:
    """Raises ServiceError(CONFLICT) if a value has another state version than expected. 0 stands for no value."""
    if found != expected:
        reason = f"the value has rev {found}" if found else "there is no value"
        raise ServiceError(ErrorCode.CONFLICT, f"{reason}, not rev {expected}", path="$.if_rev", rev=found)
