"""Errors that the service sends to its users.

A `ServiceError` becomes an `error` message on a connection, or problem+json over HTTP. Any other exception becomes
`internal` and is logged. `protocol/close.py` has the codes with which connections are closed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any


class ErrorCode(Enum):
    """Every error code, with its HTTP status, whether a retry can help, and its meaning.

    The tables in docs/protocol.md and in the JavaScript client are generated from this enum.
    """

    code: str
    status: int
    retryable: bool
    meaning: str

    MALFORMED = (
        "malformed",
        400,
        False,
        "The frame or body is not UTF-8 JSON, is neither an object nor a batch of objects, or repeats a key in an object.",
    )
    BINARY_REFUSED = ("binary_refused", 400, False, "A binary frame; this protocol is UTF-8 JSON text.")
    UNKNOWN_TYPE = ("unknown_type", 400, False, "No system message has this type, and event types contain a dot.")
    INVALID_MESSAGE = (
        "invalid_message",
        400,
        False,
        "A field is missing, misspelt or of the wrong type; details.path says where.",
    )
    TOO_BIG = (
        "too_big",
        413,
        False,
        "A message, its data or a request's body is larger than allowed; limits.message_bytes bounds the first two.",
    )
    UNSUPPORTED_VERSION = ("unsupported_version", 400, False, "The upgrade does not offer the subprotocol tidewire.v1.")
    UPGRADE_REQUIRED = (
        "upgrade_required",
        426,
        False,
        "A plain GET of the WebSocket address: an upgrade would succeed.",
    )
    UNAUTHENTICATED = ("unauthenticated", 401, False, "No credentials, or a message before hello.")
    INVALID_TOKEN = ("invalid_token", 401, False, "This service does not accept the token.")
    TOKEN_EXPIRED = ("token_expired", 401, False, "The token has expired; get a new one.")
    INVALID_TICKET = ("invalid_ticket", 401, False, "The ticket is unknown, used or expired.")
    INVALID_ADDRESS = (
        "invalid_address",
        403,
        False,
        "The address of a history page is forged, changed or expired; read history to get a new one.",
    )
    INVALID_RECEIPT = (
        "invalid_receipt",
        403,
        False,
        "The receipt is forged, expired, ended or of another user; get one from a new stream or poll.",
    )
    INVALID_API_KEY = ("invalid_api_key", 401, False, "The backend API needs a valid API key.")
    FORBIDDEN = ("forbidden", 403, False, "The contract or the token's grants do not allow this.")
    ORIGIN_REFUSED = ("origin_refused", 403, False, "This Origin is not in the allow-list.")
    INVALID_CHANNEL = ("invalid_channel", 400, False, "The channel name breaks the naming rules.")
    UNKNOWN_CHANNEL = ("unknown_channel", 404, False, "No pattern of the contract matches this channel.")
    UNKNOWN_EVENT = ("unknown_event", 404, False, "The contract declares no event of this type in this channel.")
    UNKNOWN_CALL = ("unknown_call", 404, False, "The contract declares no call of this name.")
    INVALID_DATA = (
        "invalid_data",
        422,
        False,
        "The data does not match the schema of the event or call; details.errors lists every fault.",
    )
    INVALID_KEY = ("invalid_key", 422, False, "A latest event needs its key; other classes have none.")
    CONFLICT = (
        "conflict",
        409,
        False,
        "The value has another rev than if_rev; details.rev is its rev, 0 without a value.",
    )
    NOT_SUBSCRIBED = ("not_subscribed", 409, False, "This connection has not subscribed to the channel.")
    ALREADY_SUBSCRIBED = ("already_subscribed", 409, False, "This connection has subscribed to the channel before.")
    TOO_MANY_SUBSCRIPTIONS = (
        "too_many_subscriptions",
        429,
        False,
        "The connection has limits.subscriptions channels already.",
    )
    TOO_MANY_CALLS = (
        "too_many_calls",
        429,
        True,
        "The connection has limits.calls calls under way; the backend was not asked.",
    )
    CALL_FAILED = (
        "call_failed",
        422,
        False,
        "The backend answers the call with an error of its own; details.reason and details.data are from it.",
    )
    NO_HISTORY = ("no_history", 409, False, "The channel keeps no history.")
    NO_PRESENCE = ("no_presence", 409, False, "The channel keeps no presence.")
    RATE_LIMITED = ("rate_limited", 429, True, "Too many messages; details.retry_after is the wait in seconds.")
    TOO_MANY_CONNECTIONS = (
        "too_many_connections",
        429,
        True,
        "A cap on connections is reached; details.scope names it.",
    )
    DEADLINE = ("deadline", 408, True, "The request did not complete in time.")
    OVERLOADED = ("overloaded", 503, True, "The node has reached one of its limits.")
    DRAINING = ("draining", 503, True, "The node is shutting down; another node accepts connections.")
    BROKER_UNAVAILABLE = (
        "broker_unavailable",
        503,
        True,
        "The broker does not answer. It may or may not have accepted the request: retry with the same id.",
    )
    HOOK_UNAVAILABLE = (
        "hook_unavailable",
        503,
        True,
        "The backend, which decides about this or is called, gave no answer. Nothing was published: retry with the same id.",
    )
    NOT_FOUND = ("not_found", 404, False, "No such resource.")
    METHOD_NOT_ALLOWED = (
        "method_not_allowed",
        405,
        False,
        "The resource does not support this method; Allow lists those that it does.",
    )
    UNSUPPORTED_MEDIA_TYPE = ("unsupported_media_type", 415, False, "Bodies are application/json.")
    INVALID_REQUEST = (
        "invalid_request",
        400,
        False,
        "A query parameter or header is wrong; details.parameter names it.",
    )
    URI_TOO_LONG = (
        "uri_too_long",
        414,
        False,
        "The request's target is too long; details.limit is the bound in bytes.",
    )
    HEADER_TOO_LARGE = (
        "header_too_large",
        431,
        False,
        "A request header is too large, or there are too many; details.limit is the bound.",
    )
    EXPECTATION_FAILED = ("expectation_failed", 417, False, "The request expects something other than 100-continue.")
    NOT_IMPLEMENTED = ("not_implemented", 501, False, "A transfer coding other than chunked.")
    INTERNAL = ("internal", 500, True, "A fault in the service; its log record has the same id.")

    def __init__(self, code: str, status: int, retryable: bool, meaning: str) -> None:
        self.code = code
        self.status = status
        self.retryable = retryable
        self.meaning = meaning


class ServiceError(Exception):
    """A refusal. It tells the client what is wrong, where, and what would be right."""

    def __init__(self, code: ErrorCode, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details: Mapping[str, Any] = details

    @property
    def retryable(self) -> bool:
        """True if the same request can succeed later."""
        return self.code.retryable

    def __str__(self) -> str:
        return f"{self.code.code}: {self.message}"
