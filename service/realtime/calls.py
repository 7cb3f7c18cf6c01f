"""Calls of clients to the backend: asks it, checks its answers, and ends the calls of clients that are gone.

spec = calls.check(identity, "order.quote", data)
calls.start(connection, "q-1", partial(answer, spec, question), refuse)
...
calls.end(connection)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from functools import partial
from typing import Any, NamedTuple

from msgspec import UNSET, Raw

from service.contract.gate import Gate
from service.contract.model import CallSpec
from service.core.backoff import jittered
from service.core.hooks import CallAnswer, CallQuestion, HookError, Hooks, Outcome, refusal
from service.core.identity import Identity
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.telemetry.metrics.registry import start_at_zero

OUTCOMES = ("replied", "failed", "denied", "unanswered", "refused", "ended")
RETRY_AFTER = 1.0
"""Mean seconds after which a client is told to call again, if the node shuts down."""

Refuse = Callable[[ServiceError], None]
"""Tells the caller at once that its call has ended without an answer."""


class _UnderWay(NamedTuple):
    task: asyncio.Task[None]
    refuse: Refuse


class Calls:
    """The calls that are under way at this node, by owner: a connection, or a user that calls over HTTP."""

    def __init__(self, gate: Gate, hooks: Hooks | None, max_calls: int, runtime: Runtime) -> None:
        """`hooks`: None if the contract declares no calls. `max_calls`: those of one owner at once."""
        self._gate = gate
        self._hooks = hooks
        self._max_calls = max_calls
        self._tasks = runtime.tasks
        self._limit_hits = runtime.metrics.limits.limit_hits.labels(limit="calls")
        metrics = runtime.metrics.calls
        self._outcomes = metrics.calls
        self._seconds = metrics.call_seconds
        self._monotonic = runtime.clock.monotonic
        self._gauge = metrics.calls_under_way
        self._by_owner: dict[Hashable, dict[Hashable, _UnderWay]] = {}
        self._is_draining = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        for name in gate.call_names:
            start_at_zero(self._outcomes, OUTCOMES, name)
            self._seconds.labels(name)

    def check(self, identity: Identity, name: str, data: bytes | Raw) -> CallSpec:
        """Returns what the contract says of a call. Raises ServiceError, as `Gate.validate_call`."""
        try:
            return self._gate.validate_call(identity, name, data)
        except ServiceError as error:
            if error.code is not ErrorCode.UNKNOWN_CALL:
                self._count(name, "refused")
            raise

    def start(
        self,
        owner: Hashable,
        key: Hashable,
        name: str,
        work: Callable[[], Coroutine[Any, Any, None]],
        refuse: Refuse,
    ) -> asyncio.Task[None]:
        """Runs the work in a task, until `end` or `refuse` cancels it. `key`: tells the calls of an owner apart.

        Raises ServiceError: INVALID_MESSAGE (a call with this key is under way), TOO_MANY_CALLS, DRAINING.
        """
        try:
            self._check_free(owner, key)
        except ServiceError:
            self._count(name, "refused")
            raise
        task = self._tasks.spawn("call", work())
        self._by_owner.setdefault(owner, {})[key] = _UnderWay(task, refuse)
        self._is_idle.clear()
        self._gauge.value += 1.0
        task.add_done_callback(partial(self._remove, owner, key))
        return task

    def _check_free(self, owner: Hashable, key: Hashable) -> None:
        if self._is_draining:
            raise draining()
        present = self._by_owner.get(owner)
        if present is None:
            return
        if key in present:
            raise ServiceError(ErrorCode.INVALID_MESSAGE, "a call with this id is under way", path="$.id")
        if len(present) >= self._max_calls:
            self._limit_hits.inc()
            raise ServiceError(
                ErrorCode.TOO_MANY_CALLS, f"{self._max_calls} calls are under way already", limit=self._max_calls
            )

    def _remove(self, owner: Hashable, key: Hashable, task: asyncio.Task[None]) -> None:
        self._gauge.value -= 1.0
        present = self._by_owner[owner]
        del present[key]
        if not present:
            del self._by_owner[owner]
            if not self._by_owner:
                self._is_idle.set()

    async def ask(self, spec: CallSpec, question: CallQuestion) -> Raw:
        """Returns the backend's data, which matches the contract.

        Raises ServiceError: FORBIDDEN (the backend refuses the call), CALL_FAILED, HOOK_UNAVAILABLE.
        """
        hook, hooks = spec.hook, self._hooks
        if hooks is None:
            raise _no_answer(Outcome.NO_ENDPOINT)
        started = self._monotonic()
        try:
            answer = await hooks.call(hook, question)
            if answer.data is not None:
                self._check_reply(spec, answer.data)
        except HookError as error:
            hooks.record(hook, error.outcome)
            self._count(spec.name, "unanswered")
            raise _no_answer(error.outcome) from error
        except asyncio.CancelledError:
            hooks.record(hook, Outcome.CANCELLED)
            self._count(spec.name, "ended")
            raise
        finally:
            self._seconds.labels(spec.name).observe(self._monotonic() - started)
        hooks.record(hook, Outcome.ALLOWED if answer.allow else Outcome.DENIED)
        if answer.data is not None:
            self._count(spec.name, "replied")
            return answer.data
        self._count(spec.name, "failed" if answer.allow else "denied")
        raise _refusal(spec.name, answer)

    def _check_reply(self, spec: CallSpec, data: Raw) -> None:
        try:
            self._gate.validate_reply(spec, data)
        except ServiceError as error:
            raise HookError(Outcome.BAD_REPLY, error.message) from error

    def end(self, owner: Hashable) -> None:
        """Ends the calls of an owner that is gone."""
        present = self._by_owner.get(owner)
        if present is not None:
            for call in tuple(present.values()):
                call.task.cancel()

    def refuse(self, owner: Hashable) -> None:
        """Ends the calls of an owner whose connection is about to be closed. The client is told to call again."""
        present = self._by_owner.get(owner)
        if present is not None:
            error = draining()
            for call in tuple(present.values()):
                call.refuse(error)
                call.task.cancel()

    def refuse_all(self) -> None:
        """Does the same for all owners, and refuses later calls: the node shuts down."""
        self._is_draining = True
        for owner in tuple(self._by_owner):
            self.refuse(owner)

    async def wait_idle(self) -> None:
        """Waits until no call is under way."""
        await self._is_idle.wait()

    def _count(self, name: str, outcome: str) -> None:
        self._outcomes.labels(name, outcome).inc()


def draining() -> ServiceError:
    """Returns the error for a call that this node does not finish."""
    return ServiceError(
        ErrorCode.DRAINING,
        "the call has ended, because its connection moves to another node",
        retry_after=jittered(RETRY_AFTER),
    )


def _no_answer(outcome: Outcome) -> ServiceError:
    return ServiceError(ErrorCode.HOOK_UNAVAILABLE, "the backend gave no answer to this call", reason=outcome.value)


def _refusal(name: str, answer: CallAnswer) -> ServiceError:
    failure = answer.failure
    if failure is None:
        return refusal("this call", "$.call", answer)
    details = {} if failure.data is UNSET else {"data": failure.data}
    message = failure.message or f"the backend answers {name} with an error"
    return ServiceError(ErrorCode.CALL_FAILED, message, reason=failure.reason, **details)
