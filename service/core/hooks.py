"""The port to the backend's hooks: the service asks the backend, whose answer narrows what the contract allows."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from msgspec import UNSET, Raw, Struct

from service.errors import ErrorCode, ServiceError


@dataclass(frozen=True, slots=True)
class Hook:
    """A question to the backend that the contract declares."""

    endpoint: str
    """The endpoint's name in the settings. The tenant of the question selects the address."""
    fails_open: bool = False
    """True if what is asked for is allowed when there is no answer."""
    recheck: float = 0.0
    """Seconds after which the backend is asked again about a subscription that goes on; 0 asks once."""
    timeout: float | None = None
    """Seconds until a question has no answer; None: those of the endpoint."""


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
    LIMITED = "limited"
    """Not asked, because too many clients have asked to be authenticated at once."""
    CANCELLED = "cancelled"
    """Ended before the answer, because the client that has called is gone, or the node shuts down."""


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
    is_recheck: bool = False
    """True if the client has subscribed before, and may lose the subscription."""


class EmptyQuestion(Struct, frozen=True, gc=False):
    """What belongs into this channel, which is empty?"""

    tenant: str
    channel: str


class Content(Struct, frozen=True, gc=False):
    """What belongs into an empty channel."""

    events: tuple[tuple[str, Raw], ...]
    """Type and data of each event, in order."""
    ttl: float = 0.0
    """Seconds after which the backend is asked again if the channel is empty then."""


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


class CallQuestion(Struct, frozen=True, gc=False):
    """What does the backend answer to this call of a client?"""

    tenant: str
    user: str
    """Empty for an anonymous client."""
    sender: str
    """As subscribers see it in `from` of the client's events."""
    connection: str | None
    """The id of its connection or stream; None for a call over HTTP without one."""
    id: str
    call: str
    """The name in the contract."""
    data: bytes
    """JSON."""


class CallFailure(Struct, frozen=True, gc=False):
    """An error of the application, in answer to a call."""

    reason: str
    """A code for programs."""
    message: str | None = None
    data: Any = UNSET
    """What the client gets with the error: a JSON value, or UNSET."""


class CallAnswer(Struct, frozen=True, gc=False):
    """What the backend has answered to a call: data, a failure, or a refusal."""

    data: Raw | None = None
    """JSON. None if there is a failure, or `allow` is false."""
    failure: CallFailure | None = None
    allow: bool = True
    reason: str | None = None
    """Why the call is refused, for the client."""


class ClientContext(Struct, frozen=True, gc=False):
    """What the backend may know of a client that connects, beside its token."""

    address: str
    """Its IP address."""
    origin: str | None = None
    """The origin of the page that connects, as the browser says."""
    client: str = ""
    """Name and version of the client's library, as the client says; empty if it says none."""
    headers: tuple[tuple[str, str], ...] = ()
    """Names and values of those headers of the request that the settings list."""


class ConnectQuestion(Struct, frozen=True, gc=False):
    """Who is this client, and what may it do?"""

    tenant: str
    token: str | None
    """What the client has sent as its token; None if it has sent none."""
    context: ClientContext
    user: str | None = None
    """The user of the session that is about to expire; None for a new one."""

    def __repr__(self) -> str:
        """Omits the token and the headers."""
        return f"ConnectQuestion(tenant={self.tenant!r}, user={self.user!r})"


class ConnectAnswer(Struct, frozen=True, gc=False):
    """Who the client is, or why it is refused."""

    allow: bool
    reason: str | None = None
    error: ErrorCode = ErrorCode.FORBIDDEN
    """The code of a refusal. INVALID_TOKEN and TOKEN_EXPIRED let the client get a new token."""
    user: str = ""
    tenant: str = ""
    expires_in: float = 0.0
    """Seconds after which the backend is asked again."""
    grants: tuple[Any, ...] = ()
    """Objects of the class `Grant`, as a token has them; core/identity.py imports this module."""
    info: bytes | None = None
    """JSON that presence shows to others."""
    channels: tuple[str, ...] = ()
    """Channels to which the connection is subscribed."""
    data: bytes | None = None
    """JSON for `welcome`."""
    ttl: float = 0.0
    """Seconds for which the answer counts for the same question."""


class HookError(Exception):
    """There is no answer. The message says why, without secrets."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class Hooks(Protocol):
    """Asks the backend."""

    async def ask(self, hook: Hook, question: Question) -> Answer:
        """Returns the answer, within the endpoint's timeout. Raises HookError."""

    async def ask_for_content(self, hook: Hook, question: EmptyQuestion) -> Content:
        """Returns what belongs into an empty channel, within the endpoint's timeout. Raises HookError."""

    async def call(self, hook: Hook, question: CallQuestion) -> CallAnswer:
        """Returns the answer to a call, within the hook's timeout. Raises HookError. A cancelled call ends its request."""

    def record(self, hook: Hook, outcome: Outcome) -> None:
        """Counts how a question ended, once for each question."""

    async def close(self) -> None:
        """Ends all connections to the backend; later questions have no answer."""


def refusal(what: str, path: str, answer: Answer | CallAnswer) -> ServiceError:
    """Returns the error for what the backend refuses."""
    details = {} if answer.reason is None else {"reason": answer.reason}
    return ServiceError(ErrorCode.FORBIDDEN, f"the backend refuses {what}", path=path, **details)


def no_answer(what: str, outcome: Outcome, **details: object) -> ServiceError:
    """Returns the error for what the backend has not decided about."""
    message = f"the backend, which decides about {what}, gave no answer"
    return ServiceError(ErrorCode.HOOK_UNAVAILABLE, message, reason=outcome.value, **details)
