"""The JSON of questions to the backend, and of its replies. docs/hooks.md and docs/calls.md explain the fields. Pure.

`decode_…` raises HookError for a reply that has not the shape of an answer, `check_…` for an answer beyond its bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from service.core.claims import check_channels, check_user, encode_info
from service.core.hooks import (
    Answer,
    CallAnswer,
    CallFailure,
    CallQuestion,
    ConnectAnswer,
    ConnectQuestion,
    Content,
    EmptyQuestion,
    HookError,
    Outcome,
    Question,
    ReadQuestion,
)
from service.core.identity import parse_grants
from service.errors import ErrorCode

MAX_REASON = 256
"""Characters of a reason; the rest is cut off."""
DEFAULT_EXPIRY = 3_600.0
"""Seconds after which the backend is asked again about a client, unless it says another time."""
MAX_EXPIRY = 86_400.0
"""Seconds of such a time, at most. A longer one is shortened."""
MAX_WELCOME_DATA = 4_096
"""Bytes of JSON for `welcome`, at most."""
MAX_FAILURE_REASON = 64
"""Characters of the reason of a call's failure, at most: programs compare it, so it is not cut off."""
MAX_FAILURE_DATA = 4_096
"""Bytes of JSON in a call's failure, at most."""
MAX_EVENTS = 256
"""Events for an empty channel, at most."""


class _Event(Struct, omit_defaults=True):
    type: str
    id: str
    data: Raw | None = None
    key: str | None = None
    removed: bool = False


class _Publish(Struct, tag_field="hook", tag="publish"):
    """The body of a question. docs/hooks.md explains the fields."""

    tenant: str
    user: str
    sender: str | None
    channel: str
    event: _Event


class _Read(Struct, tag_field="hook", tag="read"):
    """The same about a read."""

    tenant: str
    user: str
    channel: str
    right: str
    recheck: bool | UnsetType = UNSET


class _Connect(Struct, omit_defaults=True):
    """The same about a client that connects, or whose session is about to expire."""

    hook: str
    tenant: str
    address: str
    user: str | None = None
    token: str | None = None
    origin: str | None = None
    client: str = ""
    headers: Mapping[str, str] = {}


class _Empty(Struct, tag_field="hook", tag="cache_empty"):
    """The same about an empty channel."""

    tenant: str
    channel: str


class _Call(Struct, tag_field="hook", tag="call"):
    """The question of a call."""

    tenant: str
    user: str
    sender: str
    id: str
    call: str
    data: Raw
    connection: str | UnsetType = UNSET


class _CallError(Struct):
    reason: Annotated[str, Meta(min_length=1, max_length=MAX_FAILURE_REASON)]
    message: str | None = None
    data: Any = UNSET
    """Decoded, because nothing else checks it before the client gets it."""


class _CallReply(Struct):
    """The body of a reply to a call."""

    data: Raw = Raw()
    error: _CallError | None = None
    allow: bool = True
    reason: str | None = None


class _ContentEvent(Struct):
    type: str
    data: Raw


class _ContentReply(Struct):
    """The body of a reply about an empty channel."""

    events: Annotated[list[_ContentEvent], Meta(max_length=MAX_EVENTS)]
    ttl: Annotated[float, Meta(ge=0)] = 0.0


class _Reply(Struct):
    """The body of a reply. Further fields are ignored, so that a backend may serve several versions."""

    allow: bool
    reason: str | None = None
    data: Raw = Raw()
    ttl: Annotated[float, Meta(ge=0)] = 0.0


class _ConnectReply(Struct):
    """The body of a reply about a client."""

    allow: bool
    reason: str | None = None
    error: Literal["forbidden", "invalid_token", "token_expired"] = "forbidden"
    user: str | None = None
    tenant: str | None = None
    expires_in: Annotated[float, Meta(gt=0)] = DEFAULT_EXPIRY
    grants: list[Any] | None = None
    info: dict[str, Any] | None = None
    channels: list[str] = []
    data: Raw = Raw()
    ttl: Annotated[float, Meta(ge=0)] = 0.0


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
R = TypeVar("R")
T = TypeVar("T")


def _decoder(kind: type[R]) -> Callable[[bytes], R]:
    """Returns what decodes a reply. It raises HookError for what has not the shape of an answer."""
    parse = msgspec.json.Decoder(kind).decode

    def checked(reply: bytes) -> R:
        try:
            return parse(reply)
        except _UNREADABLE as error:
            raise _bad_reply(str(error)[:200]) from error

    return checked


decode = _decoder(_Reply)
decode_connect = _decoder(_ConnectReply)
decode_content = _decoder(_ContentReply)
decode_call = _decoder(_CallReply)


def encode(question: Question) -> bytes:
    """Returns the question about a publish or a read."""
    if isinstance(question, ReadQuestion):
        recheck = True if question.is_recheck else UNSET
        return msgspec.json.encode(_Read(question.tenant, question.user, question.channel, question.right, recheck))
    event = _Event(
        question.event,
        question.id,
        None if question.removed else Raw(question.data),
        question.key,
        question.removed,
    )
    return msgspec.json.encode(_Publish(question.tenant, question.user, question.sender, question.channel, event))


def check(found: _Reply, question: Question, max_data: int) -> Answer:
    """Checks a reply. Raises HookError."""
    has_data = _size(found.data, max_data) > 0
    if has_data and (not found.allow or isinstance(question, ReadQuestion) or question.removed):
        raise _bad_reply("only an event that is allowed has data")
    return Answer(found.allow, _cut(found.reason), found.data if has_data else None, found.ttl)


def _size(data: Raw, limit: int, field: str = "data") -> int:
    """Returns the bytes of a field; 0 if it is absent. Raises HookError if there are more than `limit`."""
    size = memoryview(data).nbytes
    if size > limit:
        raise _bad_reply(f"{field} has {size} bytes; {limit} are allowed")
    return size


def encode_call(question: CallQuestion) -> bytes:
    """Returns the question of a call."""
    return msgspec.json.encode(
        _Call(
            question.tenant,
            question.user,
            question.sender,
            question.id,
            question.call,
            Raw(question.data),
            UNSET if question.connection is None else question.connection,
        )
    )


def check_call(found: _CallReply, max_data: int) -> CallAnswer:
    """Checks a reply to a call. Raises HookError."""
    has_data, error = _size(found.data, max_data) > 0, found.error
    if has_data + (error is not None) + (not found.allow) != 1:
        raise _bad_reply("an answer to a call has either data, or error, or allow: false")
    if error is None:
        return CallAnswer(found.data if has_data else None, allow=found.allow, reason=_cut(found.reason))
    if error.data is not UNSET:
        _size(Raw(msgspec.json.encode(error.data)), MAX_FAILURE_DATA, "error.data")
    return CallAnswer(failure=CallFailure(error.reason, _cut(error.message), error.data))


def encode_empty(question: EmptyQuestion) -> bytes:
    """Returns the question about an empty channel."""
    return msgspec.json.encode(_Empty(question.tenant, question.channel))


def check_content(found: _ContentReply) -> Content:
    """Returns what belongs into an empty channel."""
    return Content(tuple((event.type, event.data) for event in found.events), found.ttl)


def encode_connect(question: ConnectQuestion) -> bytes:
    """Returns the question about a client."""
    context = question.context
    return msgspec.json.encode(
        _Connect(
            "connect" if question.user is None else "refresh",
            question.tenant,
            context.address,
            question.user,
            question.token,
            context.origin,
            context.client,
            dict(context.headers),
        )
    )


def check_connect(found: _ConnectReply, question: ConnectQuestion, tenants: Collection[str]) -> ConnectAnswer:
    """Checks a reply about a client as strictly as the claims of a token. Raises HookError."""
    if not found.allow:
        return ConnectAnswer(
            allow=False, reason=_cut(found.reason), error=ErrorCode[found.error.upper()], ttl=found.ttl
        )
    tenant = question.tenant if found.tenant is None else found.tenant
    if tenant not in tenants:
        raise _bad_reply("tenant is none of the endpoint's")
    user = question.user if found.user is None else found.user
    if question.user is not None and (user, tenant) != (question.user, question.tenant):
        raise _bad_reply("user or tenant is another one than that of the session")
    size = _size(found.data, MAX_WELCOME_DATA)
    return ConnectAnswer(
        allow=True,
        user=_checked("user", check_user, user),
        tenant=tenant,
        expires_in=min(found.expires_in, MAX_EXPIRY),
        grants=_checked("grants", parse_grants, found.grants),
        info=None if found.info is None else _checked("info", encode_info, found.info),
        channels=_checked("channels", check_channels, found.channels),
        data=bytes(found.data) if size else None,
        ttl=found.ttl,
    )


def _checked(field: str, check: Callable[[Any], T], value: Any) -> T:
    try:
        return check(value)
    except ValueError as error:
        raise _bad_reply(f"{field}: {error}") from error


def _bad_reply(reason: str) -> HookError:
    return HookError(Outcome.BAD_REPLY, f"the reply is no answer: {reason}")


def _cut(reason: str | None) -> str | None:
    return None if reason is None else reason[:MAX_REASON]
