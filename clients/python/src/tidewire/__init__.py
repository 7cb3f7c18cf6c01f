"""Python client of Tidewire.

>>> from tidewire import Tidewire
>>> client = Tidewire("https://events.example.com", api_key=key)
>>> client.publish("room:42", "chat.message", {"text": "hi"})

`AsyncTidewire` has the same methods for asyncio. `TokenSigner` signs the tokens of your users.
"""

from __future__ import annotations

from tidewire.async_client import AsyncTidewire
from tidewire.client import Tidewire
from tidewire.errors import (
    ApiError,
    AuthenticationError,
    CallFailedError,
    ConfigurationError,
    ConflictError,
    ConnectionEndedError,
    ConnectionFailedError,
    DeadlineExceededError,
    EventsMissedError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    RateLimitedError,
    SubscriptionEndedError,
    TidewireError,
    TooManyWaitingError,
    UnavailableError,
    UnexpectedResponseError,
)
from tidewire.events import Event, NewEvent, Position
from tidewire.http.flow import RetryPolicy
from tidewire.names import encode_user
from tidewire.realtime.channel import AsyncChannel
from tidewire.realtime.threads import Channel
from tidewire.results import BatchResult, Member, Presence, Published, Refused
from tidewire.tokens import TokenSigner
from tidewire.version import __version__

__all__ = [
    "ApiError",
    "AsyncChannel",
    "AsyncTidewire",
    "AuthenticationError",
    "BatchResult",
    "CallFailedError",
    "Channel",
    "ConfigurationError",
    "ConflictError",
    "ConnectionEndedError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "Event",
    "EventsMissedError",
    "ForbiddenError",
    "InvalidRequestError",
    "Member",
    "NewEvent",
    "NotFoundError",
    "Position",
    "Presence",
    "Published",
    "RateLimitedError",
    "Refused",
    "RetryPolicy",
    "SubscriptionEndedError",
    "Tidewire",
    "TidewireError",
    "TokenSigner",
    "TooManyWaitingError",
    "UnavailableError",
    "UnexpectedResponseError",
    "__version__",
    "encode_user",
]
