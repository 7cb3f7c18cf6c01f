"""Asks the backend's endpoints: finds the one for the tenant, encodes the question, checks the answer, counts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import structlog
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from service.adapters.http_hooks.endpoint import Endpoint
from service.core.claims import check_channels, check_user, encode_info
from service.core.clock import Clock
from service.core.hooks import (
    Answer,
    ConnectAnswer,
    ConnectQuestion,
    Content,
    EmptyQuestion,
    Hook,
    HookError,
    Outcome,
    Question,
    ReadQuestion,
)
from service.core.identity import parse_grants
from service.errors import ErrorCode
from service.telemetry.metrics import Metrics
from service.telemetry.metrics.registry import start_at_zero
from service.telemetry.outage import OutageLog

MAX_REASON = 256
"""Characters of a reason; the rest is cut off."""
DEFAULT_EXPIRY = 3_600.0
"""Seconds after which the backend is asked again about a client, unless it says another time."""
MAX_EXPIRY = 86_400.0
"""Seconds of such a time, at most. A longer one is shortened."""
MAX_WELCOME_DATA = 4_096
"""Bytes of JSON for `welcome`, at most."""
MAX_EVENTS = 256
"""Events for an empty channel, at most."""

_log = structlog.get_logger("hooks")


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


_decode = msgspec.json.Decoder(_Reply).decode
_decode_connect = msgspec.json.Decoder(_ConnectReply).decode
_decode_content = msgspec.json.Decoder(_ContentReply).decode
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
T = TypeVar("T")


class HttpHooks:
    """Asks endpoints over HTTP."""

    def __init__(self, endpoints: Iterable[Endpoint], max_data: int, clock: Clock, metrics: Metrics) -> None:
        """No two endpoints of one name have a tenant in common. `max_data`: bytes of an event's data."""
        self._max_data = max_data
        self._endpoints = {(one.config.name, tenant): one for one in endpoints for tenant in one.config.tenants}
        self._monotonic = clock.monotonic
        self._metrics = metrics.hooks
        self._outages: dict[str, OutageLog] = {}
        for name, ones in self._by_name().items():
            self._outages[name] = OutageLog(_log, "hook_failed", "hook_answers_again", clock.monotonic)
            start_at_zero(self._metrics.hooks, [outcome.value for outcome in Outcome], name)
            self._metrics.hook_seconds.labels(name)
            self._metrics.hooks_waiting.labels(name).set_function(partial(_waiting, ones))
            self._metrics.hook_breaker_open.labels(name).set_function(partial(_open_breakers, ones))

    def _by_name(self) -> dict[str, set[Endpoint]]:
        found: dict[str, set[Endpoint]] = {}
        for (name, _), endpoint in self._endpoints.items():
            found.setdefault(name, set()).add(endpoint)
        return found

    async def ask(self, hook: Hook, question: Question) -> Answer:
        """Returns the answer, within the endpoint's timeout. Raises HookError."""
        endpoint = self._find(hook, question.tenant)
        return await self._ask(endpoint, question.tenant, _encode(question), lambda reply: self._parse(reply, question))

    async def ask_about_client(self, hook: Hook, question: ConnectQuestion) -> ConnectAnswer:
        """Returns who a client is, within the endpoint's timeout. Raises HookError."""
        endpoint = self._find(hook, question.tenant)
        return await self._ask(
            endpoint,
            question.tenant,
            _encode_connect(question),
            lambda reply: _parse_connect(reply, question, endpoint),
        )

    async def ask_for_content(self, hook: Hook, question: EmptyQuestion) -> Content:
        """Returns what belongs into an empty channel, within the endpoint's timeout. Raises HookError."""
        body = msgspec.json.encode(_Empty(question.tenant, question.channel))
        return await self._ask(self._find(hook, question.tenant), question.tenant, body, _parse_content)

    def _find(self, hook: Hook, tenant: str) -> Endpoint:
        endpoint = self._endpoints.get((hook.endpoint, tenant))
        if endpoint is None:
            raise HookError(Outcome.NO_ENDPOINT, f"no endpoint {hook.endpoint!r} for the tenant")
        return endpoint

    async def _ask(self, endpoint: Endpoint, tenant: str, body: bytes, parse: Callable[[bytes], T]) -> T:
        started, name = self._monotonic(), endpoint.config.name
        try:
            answer = parse(await endpoint.post(tenant, f"hook_{secrets.token_urlsafe(12)}", body))
        except HookError as error:
            if error.outcome is not Outcome.BUSY:
                self._outages[name].failed(endpoint, endpoint=name, reason=str(error))
            raise
        finally:
            self._metrics.hook_seconds.labels(name).observe(self._monotonic() - started)
        self._outages[name].recovered(endpoint, endpoint=name)
        return answer

    def _parse(self, reply: bytes, question: Question) -> Answer:
        return _parse(reply, question, self._max_data)

    def record(self, hook: Hook, outcome: Outcome) -> None:
        """Counts how a question ended, once for each question."""
        self._metrics.hooks.labels(hook.endpoint, outcome.value).inc()

    async def close(self) -> None:
        """Ends all connections to the backend; later questions have no answer."""
        for endpoint in set(self._endpoints.values()):
            await endpoint.close()


def _waiting(endpoints: Iterable[Endpoint]) -> int:
    return sum(one.waiting for one in endpoints)


def _open_breakers(endpoints: Iterable[Endpoint]) -> int:
    return sum(one.breaker.is_open for one in endpoints)


def _encode(question: Question) -> bytes:
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


def _parse(reply: bytes, question: Question, max_data: int) -> Answer:
    """Checks a reply. Raises HookError."""
    try:
        found = _decode(reply)
    except _UNREADABLE as error:
        raise _bad_reply(str(error)[:200]) from error
    size = memoryview(found.data).nbytes
    has_data = size > 0
    if size > max_data:
        raise _bad_reply(f"data has {size} bytes; {max_data} are allowed")
    if has_data and (not found.allow or isinstance(question, ReadQuestion) or question.removed):
        raise _bad_reply("only an event that is allowed has data")
    return Answer(found.allow, _cut(found.reason), found.data if has_data else None, found.ttl)


def _encode_connect(question: ConnectQuestion) -> bytes:
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


def _parse_connect(reply: bytes, question: ConnectQuestion, endpoint: Endpoint) -> ConnectAnswer:
    """Checks a reply about a client as strictly as the claims of a token. Raises HookError."""
    try:
        found = _decode_connect(reply)
    except _UNREADABLE as error:
        raise _bad_reply(str(error)[:200]) from error
    if not found.allow:
        return ConnectAnswer(
            allow=False, reason=_cut(found.reason), error=ErrorCode[found.error.upper()], ttl=found.ttl
        )
    tenant = question.tenant if found.tenant is None else found.tenant
    if tenant not in endpoint.config.tenants:
        raise _bad_reply("tenant is none of the endpoint's")
    user = question.user if found.user is None else found.user
    if question.user is not None and (user, tenant) != (question.user, question.tenant):
        raise _bad_reply("user or tenant is another one than that of the session")
    size = memoryview(found.data).nbytes
    if size > MAX_WELCOME_DATA:
        raise _bad_reply(f"data has {size} bytes; {MAX_WELCOME_DATA} are allowed")
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


def _parse_content(reply: bytes) -> Content:
    try:
        found = _decode_content(reply)
    except _UNREADABLE as error:
        raise _bad_reply(str(error)[:200]) from error
    return Content(tuple((event.type, event.data) for event in found.events), found.ttl)


def _checked(field: str, check: Callable[[Any], T], value: Any) -> T:
    try:
        return check(value)
    except ValueError as error:
        raise _bad_reply(f"{field}: {error}") from error


def _bad_reply(reason: str) -> HookError:
    return HookError(Outcome.BAD_REPLY, f"the reply is no answer: {reason}")


def _cut(reason: str | None) -> str | None:
    return None if reason is None else reason[:MAX_REASON]
