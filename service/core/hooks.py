"""The port to the backend's hooks: the service asks the backend, whose answer narrows what the contract allows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from msgspec import Raw, Struct


@dataclass(frozen=True, slots=True)
class Hook:
    """A question to the backend that the contract declares."""

    endpoint: str
    """The endpoint's name in the settings. The tenant of the question selects the address."""
    fails_open: bool = False
    """True if what is asked for is allowed when there is no answer."""


class Outcome(Enum):
    """How a question ended."""

    ALLOWED = "allowed"
    CHANGED = "changed"
    """Allowed, with other data."""
    DENIED = "denied"
    TIMEOUT = "timeout"
    """No answer in time."""
    UNREACHABLE = "unreachable"
    """No connection, or it broke."""
    STATUS = "status"
    """Another HTTP status than 200."""
    BAD_REPLY = "bad_reply"
    """The reply is no answer: not JSON, too large, of the wrong shape, or with data that the contract refuses."""
    BUSY = "busy"
    """Too many questions wait already."""
    OPEN = "open"
    """Not asked, because the endpoint has failed again and again (circuit breaker)."""
    CACHED = "cached"
    """Not asked, because the backend has answered before, and said for how long that counts."""
    NO_ENDPOINT = "no_endpoint"
    """The settings have no such endpoint for the tenant."""


MAX_TTL = 3_600.0
"""Seconds for which an answer counts, at most."""


class PublishQuestion(Struct, frozen=True, gc=False):
    """May this client publish this event?"""

    tenant: str
    user: str
    """Empty for an anonymous client."""
    sender: str | None
    """As subscribers see it in `from`."""
    channel: str
    event: str
    """The event type."""
    id: str
    key: str | None
    data: bytes
    """JSON; empty for a removal."""
    removed: bool = False
    """True if the client removes the value of `key`."""


class ReadQuestion(Struct, frozen=True, gc=False):
    """May this client subscribe to this channel, or read its history or presence?"""

    tenant: str
    user: str
    """Empty for an anonymous client."""
    channel: str
    right: str
    """`subscribe`, `history` or `presence`."""


Question = PublishQuestion | ReadQuestion


class Answer(Struct, frozen=True, gc=False):
    """What the backend has answered."""

    allow: bool
    reason: str | None = None
    """Why not, for the client."""
    data: Raw | None = None
    """JSON that replaces the data of the event."""
    ttl: float = 0.0
    """Seconds for which the answer about a read counts, for the same token."""


class HookError(Exception):
    """There is no answer. The message says why, without secrets."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class Hooks(Protocol):
    """Asks the backend."""

    async def ask(self, hook: Hook, question: Question) -> Answer:
        """Returns the answer, within the endpoint's timeout. Raises HookError."""

    def record(self, hook: Hook, outcome: Outcome) -> None:
        """Counts how a question ended, once for each question."""

    async def close(self) -> None:
        """Ends all connections to the backend; later questions have no answer."""
