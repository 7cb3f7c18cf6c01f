"""Every error that this package raises. `code` is stable, `retryable` says whether the same call can succeed later, and
`help` says what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidewire.codes import ERROR_CODES

_HELP: Mapping[str, str] = {
    "invalid_api_key": "Pass an API key of the service: one of its settings `api.key` and `api.keys`.",
    "unauthenticated": "Pass `token`: a token, or a function that returns one.",
    "invalid_token": "Sign the token with the secret, issuer and audience of the service; check that it is not revoked.",
    "token_expired": "Pass `token` as a function, so that the client can get a new token.",
    "forbidden": "Change the contract's rule for this channel, or grant the channel in the token.",
    "unknown_channel": "Check the channel's name, or declare its pattern in the contract.",
    "unknown_event": "Check the event's type, or declare it for this channel in the contract.",
    "unknown_call": "Check the name of the call, or declare it in the contract.",
    "no_calls": "Upgrade the service: it is older than calls.",
    "too_many_calls": "Make fewer calls at once, or raise the service's `limits.calls`.",
    "call_failed": "Decide by `reason`, which your backend has chosen.",
    "invalid_data": "Correct the data; `details['errors']` lists every fault.",
    "invalid_key": "Send `key` for a latest event only, with the value that the contract finds in the data.",
    "conflict": "Read the state again, then publish with its `rev`. `details['rev']` has the present one.",
    "rate_limited": "Publish several events with one `publish_many`, or raise the service's `limits.api_rate_per_key`.",
    "broker_unavailable": "Repeat the call with the same ids: an event is stored once.",
    "not_found": "Check the URL: it is that of the service, without `/ws` or `/api`.",
    "connection_failed": "Check the URL, and that the service runs. Repeat the call with the same ids.",
    "deadline_exceeded": "Repeat the call with the same ids, or pass a longer `deadline`.",
    "too_many_waiting": "Make fewer calls at once, or raise `max_waiting`.",
    "unexpected_response": "Check the URL: a proxy or another program has answered.",
    "events_missed": "Read the channel's history or reload your data, then continue with the iteration.",
    "not_connected": "Repeat the call with the same id when the connection is open again.",
}


class TidewireError(Exception):
    """Base of all errors of this package."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        details: Mapping[str, Any] | None = None,
        event_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        """The stable code: of the service (docs/protocol.md#errors), or of this package."""
        self.message = message
        self.retryable = retryable
        """Whether the same call can succeed later."""
        self.details: Mapping[str, Any] = details or {}
        """Facts that depend on the code, such as `path` or `errors`."""
        self.event_id = event_id
        """The id of the event that was published, or of the call. Publish it again with this id: it is stored once."""

    @property
    def help(self) -> str:
        """What to do, in a sentence."""
        known = ERROR_CODES.get(self.code)
        return _HELP.get(self.code) or (known.meaning if known is not None else "")

    @property
    def retry_after(self) -> float | None:
        """Seconds to wait before the next try, if the service has named them."""
        value = self.details.get("retry_after")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross processes, as in Celery: pickle keeps every field."""
        return _restore, (type(self), self.code, dict(self.__dict__), self.args)


def _restore(kind: type[TidewireError], code: str, fields: dict[str, Any], args: tuple[Any, ...]) -> TidewireError:
    error = kind.__new__(kind)
    Exception.__init__(error, *args)
    error.__dict__.update(fields)
    return error


class ConfigurationError(TidewireError, ValueError):
    """The client was made or called in a way that cannot work. Nothing was sent."""

    def __init__(self, message: str) -> None:
        super().__init__("configuration", message)


class ApiError(TidewireError):
    """The service has refused the request. `status` is the HTTP status, 0 over a WebSocket."""

    def __init__(self, code: str, message: str, *, status: int = 0, **fields: Any) -> None:
        super().__init__(code, message, **fields)
        self.status = status


class AuthenticationError(ApiError):
    """The API key, token or ticket is missing, wrong, expired or revoked (401)."""


class ForbiddenError(ApiError):
    """The contract or the grants do not allow it (403)."""


class NotFoundError(ApiError):
    """No such channel, event type or resource (404)."""


class InvalidRequestError(ApiError):
    """The request is wrong: a field, the data, a size (400, 405 to 422)."""


class ConflictError(ApiError):
    """The value has another `rev` than `if_rev`, or the channel does not keep what was asked for (409)."""

    @property
    def rev(self) -> int | None:
        """The present `rev` of the value, 0 without a value."""
        value = self.details.get("rev")
        return value if isinstance(value, int) else None


class CallFailedError(ApiError):
    """The backend has answered a call with an error of its own."""

    @property
    def reason(self) -> str:
        """The backend's code for programs."""
        return str(self.details.get("reason", ""))

    @property
    def data(self) -> Any:
        """What the backend adds; None if nothing."""
        return self.details.get("data")


class RateLimitedError(ApiError):
    """Above a rate or a cap (429)."""


class UnavailableError(ApiError):
    """The service cannot do it now (408, 5xx)."""


class ConnectionFailedError(TidewireError):
    """No connection, or it broke before the response. The service may or may not have carried out the request."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__("connection_failed", message, retryable=True, **fields)


class DeadlineExceededError(TidewireError):
    """The call did not complete within its deadline. The service may or may not have carried it out."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__("deadline_exceeded", message, retryable=True, **fields)


class TooManyWaitingError(TidewireError):
    """`max_waiting` calls of this client run or wait already. Nothing was sent."""

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__("too_many_waiting", message, retryable=True, **fields)


class UnexpectedResponseError(TidewireError):
    """The response is not one of a Tidewire service."""

    def __init__(self, message: str, *, status: int = 0, **fields: Any) -> None:
        super().__init__("unexpected_response", message, **fields)
        self.status = status


_BY_STATUS: Mapping[int, type[ApiError]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    429: RateLimitedError,
}


def api_error(
    code: str,
    message: str,
    *,
    status: int = 0,
    retryable: bool = False,
    details: Mapping[str, Any] | None = None,
    event_id: str | None = None,
) -> ApiError:
    """Returns the error of a refusal, in the class of its status."""
    known = ERROR_CODES.get(code)
    place = status or (known.status if known is not None else 400)
    kind = _BY_STATUS.get(place, UnavailableError if place >= 500 else InvalidRequestError)
    if code == "call_failed":
        kind = CallFailedError
    return kind(code, message, status=status, retryable=retryable, details=details, event_id=event_id)


class EventsMissedError(TidewireError):
    """Durable events may be missing: the store was replaced, or no longer keeps them. Iterate again to continue after them."""

    def __init__(self, channel: str, message: str) -> None:
        super().__init__("events_missed", message, details={"channel": channel})


class SubscriptionEndedError(TidewireError):
    """The service has ended the subscription: `details["reason"]` is `forbidden` or `removed`."""

    def __init__(self, channel: str, reason: str) -> None:
        message = f"{channel}: the service has ended the subscription: {reason}"
        super().__init__("subscription_ended", message, details={"channel": channel, "reason": reason})


class ConnectionEndedError(TidewireError):
    """The service has closed the connection, and a new one would end in the same way. `close_code` says why."""

    def __init__(self, close_code: int, message: str) -> None:
        super().__init__("connection_ended", message, details={"close_code": close_code})
        self.close_code = close_code
