"""What one call does, without I/O: a flow yields what to do next, and gets the outcome. Both clients run the same flows."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeVar

import msgspec

from tidewire.errors import (
    ConnectionFailedError,
    DeadlineExceededError,
    TidewireError,
    UnexpectedResponseError,
    api_error,
)

T = TypeVar("T")


class Credential(Enum):
    """What a request is authorised by."""

    API_KEY = "api_key"
    TOKEN = "token"  # noqa: S105  # a word, no secret
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request of the API, and how its response is read."""

    method: str
    path: str = field(repr=False)
    """Encoded, with its query."""
    parse: Callable[[bytes], T] = field(repr=False)
    """Raises ValueError or KeyError if the body is not what it should be."""
    body: bytes | None = field(default=None, repr=False)
    credential: Credential = Credential.API_KEY
    event_id: str | None = None

    @property
    def shown_path(self) -> str:
        """The path as errors show it: without the signature of a history page, which is a secret."""
        return "/history/…" if self.path.startswith("/history/") else self.path

    def __str__(self) -> str:
        return f"{self.method} {self.shown_path}"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response. The names of its headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Send:
    """Send this request; its outcome is a Response, or the TidewireError that it failed with."""

    call: Call[Any]
    timeout: float
    """Seconds until the whole response is here."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait; the outcome is None."""

    seconds: float


Flow = Generator[Send | Wait, Response | TidewireError | None, T]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a call is repeated. All calls of the API may be: an event has an id, and is stored once."""

    max_attempts: int = 5
    base: float = 0.2
    """Seconds: the wait before the n-th retry is random, up to `base * 2**n`."""
    max_wait: float = 5.0
    """Seconds: the longest such wait. The service can ask for a longer one with Retry-After, within the call's deadline."""
    attempt_timeout: float = 5.0
    """Seconds for one attempt: a connection whose other end is gone must not use up the whole deadline."""
    random: Callable[[], float] = field(default=random.random, repr=False)

    def wait(self, attempt: int, retry_after: float | None) -> float:
        """Returns the seconds to wait after a failed attempt; the first is 0."""
        jitter = self.random() * min(self.max_wait, self.base * 2.0**attempt)
        return jitter if retry_after is None else max(0.0, retry_after) + min(1.0, jitter)


@dataclass(frozen=True, slots=True)
class Deadline:
    """When a call ends, by a monotonic clock."""

    seconds: float
    now: Callable[[], float] = field(default=time.monotonic, repr=False)
    end: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "end", self.now() + self.seconds)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.end - self.now()


def attempts(call: Call[T], policy: RetryPolicy, deadline: Deadline) -> Flow[T]:
    """Sends a call until it succeeds, is refused for good, or its deadline or its attempts are used up."""
    attempt = 0
    while True:
        outcome = yield Send(call, max(min(deadline.left, policy.attempt_timeout), 0.001))
        if isinstance(outcome, Response):
            if 200 <= outcome.status < 300:
                return _parsed(call, outcome)
            error = refusal(outcome, call.event_id)
        elif isinstance(outcome, TidewireError):
            error = outcome
        else:
            raise TypeError("a Send has an outcome")
        error.event_id = call.event_id
        attempt += 1
        wait = policy.wait(attempt - 1, error.retry_after)
        if not error.retryable or attempt >= policy.max_attempts or wait >= deadline.left:
            is_late = isinstance(error, DeadlineExceededError)
            raise late(call, deadline.seconds - max(0.0, deadline.left)) if is_late else error
        yield Wait(wait)


def _parsed(call: Call[T], response: Response) -> T:
    try:
        return call.parse(response.body)
    except (ValueError, KeyError, TypeError) as error:
        raise UnexpectedResponseError(
            f"{call}: the response is not that of a Tidewire service: {error}",
            status=response.status,
            event_id=call.event_id,
        ) from error


class _Problem(msgspec.Struct):
    code: str
    detail: str = ""
    retryable: bool = False
    details: dict[str, Any] = {}


def refusal(response: Response, event_id: str | None = None) -> TidewireError:
    """Returns the error of a response that is no success."""
    wait = _retry_after(response.headers)
    try:
        problem = msgspec.json.decode(response.body, type=_Problem)
    except ValueError:
        details = {} if wait is None else {"retry_after": wait}
        text = response.body[:200].decode(errors="replace")
        return UnexpectedResponseError(
            f"HTTP status {response.status} without a Tidewire error: {text}",
            status=response.status,
            retryable=response.status in (408, 429, 502, 503, 504),
            details=details,
            event_id=event_id,
        )
    details = problem.details
    if wait is not None and "retry_after" not in details:
        details = {**details, "retry_after": wait}
    return api_error(
        problem.code,
        problem.detail,
        status=response.status,
        retryable=problem.retryable,
        details=details,
        event_id=event_id,
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("retry-after", "").strip()
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def failed(error: Exception, call: Call[Any], base: str) -> ConnectionFailedError:
    """Returns the error of a request to a service that got no response. The message has no header, so no secret."""
    reason = str(error) or type(error).__name__
    return ConnectionFailedError(f"{call.method} {base}{call.shown_path}: {reason}", event_id=call.event_id)


def late(call: Call[Any], seconds: float) -> DeadlineExceededError:
    """Returns the error of a request whose time is up."""
    return DeadlineExceededError(f"{call}: no response within {seconds:.1f} s", event_id=call.event_id)
