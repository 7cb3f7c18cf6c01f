"""Asks the backend's endpoints: finds the one for the tenant, encodes the question, checks the answer, counts."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from functools import partial
from typing import Annotated

import msgspec
import structlog
from msgspec import Meta, Raw, Struct

from service.adapters.http_hooks.endpoint import Endpoint
from service.core.clock import Clock
from service.core.hooks import Answer, Hook, HookError, Outcome, Question, ReadQuestion
from service.telemetry.metrics import Metrics
from service.telemetry.metrics.registry import start_at_zero
from service.telemetry.outage import OutageLog

MAX_REASON = 256
"""Characters of a reason; the rest is cut off."""

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


class _Reply(Struct):
    """The body of a reply. Further fields are ignored, so that a backend may serve several versions."""

    allow: bool
    reason: str | None = None
    data: Raw = Raw()
    ttl: Annotated[float, Meta(ge=0)] = 0.0


_decode = msgspec.json.Decoder(_Reply).decode


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
        endpoint = self._endpoints.get((hook.endpoint, question.tenant))
        if endpoint is None:
            raise HookError(Outcome.NO_ENDPOINT, f"no endpoint {hook.endpoint!r} for the tenant")
        started = self._monotonic()
        try:
            reply = await endpoint.post(question.tenant, f"hook_{secrets.token_urlsafe(12)}", _encode(question))
            answer = _parse(reply, question, self._max_data)
        except HookError as error:
            if error.outcome is not Outcome.BUSY:
                self._outages[hook.endpoint].failed(endpoint, endpoint=hook.endpoint, reason=str(error))
            raise
        finally:
            self._metrics.hook_seconds.labels(hook.endpoint).observe(self._monotonic() - started)
        self._outages[hook.endpoint].recovered(endpoint, endpoint=hook.endpoint)
        return answer

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
        return msgspec.json.encode(_Read(question.tenant, question.user, question.channel, question.right))
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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HookError(Outcome.BAD_REPLY, f"the reply is no answer: {str(error)[:200]}") from error
    size = memoryview(found.data).nbytes
    has_data = size > 0
    if size > max_data:
        raise HookError(Outcome.BAD_REPLY, f"the reply is no answer: data has {size} bytes; {max_data} are allowed")
    if has_data and (not found.allow or isinstance(question, ReadQuestion) or question.removed):
        raise HookError(Outcome.BAD_REPLY, "the reply is no answer: only an event that is allowed has data")
    reason = None if found.reason is None else found.reason[:MAX_REASON]
    return Answer(found.allow, reason, found.data if has_data else None, found.ttl)
