"""Asks the backend's endpoints: finds the one for the tenant, encodes the question, checks the answer, counts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

import structlog

from service.adapters.http_hooks import bodies
from service.adapters.http_hooks.endpoint import Endpoint
from service.core.clock import Clock
from service.core.hooks import (
    Answer,
    CallAnswer,
    CallQuestion,
    ConnectAnswer,
    ConnectQuestion,
    Content,
    EmptyQuestion,
    Hook,
    HookError,
    Outcome,
    Question,
)
from service.telemetry.metrics import Metrics
from service.telemetry.metrics.registry import start_at_zero
from service.telemetry.outage import OutageLog

R = TypeVar("R")
T = TypeVar("T")

_log = structlog.get_logger("hooks")


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
        endpoint, limit = self._find(hook, question.tenant), self._max_data
        reply = await self._ask(endpoint, question.tenant, bodies.encode(question), bodies.decode)
        return self._check(endpoint, lambda: bodies.check(reply, question, limit))

    async def ask_about_client(self, hook: Hook, question: ConnectQuestion) -> ConnectAnswer:
        """Returns who a client is, within the endpoint's timeout. Raises HookError."""
        endpoint = self._find(hook, question.tenant)
        reply = await self._ask(endpoint, question.tenant, bodies.encode_connect(question), bodies.decode_connect)
        return self._check(endpoint, lambda: bodies.check_connect(reply, question, endpoint.config.tenants))

    async def ask_for_content(self, hook: Hook, question: EmptyQuestion) -> Content:
        """Returns what belongs into an empty channel, within the endpoint's timeout. Raises HookError."""
        endpoint = self._find(hook, question.tenant)
        reply = await self._ask(endpoint, question.tenant, bodies.encode_empty(question), bodies.decode_content)
        return self._check(endpoint, lambda: bodies.check_content(reply))

    async def call(self, hook: Hook, question: CallQuestion) -> CallAnswer:
        """Returns the answer to a call, within the hook's timeout. Raises HookError. A cancelled call ends its request."""
        endpoint, limit = self._find(hook, question.tenant), self._max_data
        body = bodies.encode_call(question)
        reply = await self._post(endpoint, question.tenant, body, bodies.decode_call, hook.timeout)
        return self._check(endpoint, lambda: bodies.check_call(reply, limit))

    def _find(self, hook: Hook, tenant: str) -> Endpoint:
        endpoint = self._endpoints.get((hook.endpoint, tenant))
        if endpoint is None:
            raise HookError(Outcome.NO_ENDPOINT, f"no endpoint {hook.endpoint!r} for the tenant")
        return endpoint

    async def _ask(self, endpoint: Endpoint, tenant: str, body: bytes, decode: Callable[[bytes], R]) -> R:
        """Asks a question that somebody waits for, and measures the wait. Calls have a metric of their own."""
        started = self._monotonic()
        try:
            return await self._post(endpoint, tenant, body, decode)
        finally:
            self._metrics.hook_seconds.labels(endpoint.config.name).observe(self._monotonic() - started)

    async def _post(
        self,
        endpoint: Endpoint,
        tenant: str,
        body: bytes,
        decode: Callable[[bytes], R],
        timeout: float | None = None,  # noqa: ASYNC109  # as in Endpoint.post
    ) -> R:
        name = endpoint.config.name
        try:
            return await endpoint.post(tenant, f"hook_{secrets.token_urlsafe(12)}", body, decode, timeout)
        except HookError as error:
            if error.outcome is not Outcome.BUSY:
                self._outages[name].failed(endpoint, endpoint=name, reason=str(error))
            raise

    def _check(self, endpoint: Endpoint, check: Callable[[], T]) -> T:
        """Checks an answer against its bounds. The breaker counts no fault: it concerns one client, one event or one call."""
        name = endpoint.config.name
        try:
            answer = check()
        except HookError as error:
            self._outages[name].failed(endpoint, endpoint=name, reason=str(error))
            raise
        self._outages[name].recovered(endpoint, endpoint=name)
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
