"""Asks the backend whether a client may read a channel, where the contract names a hook; and what its answers mean to clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import NamedTuple

from service.aio.eager_start import ensure_task
from service.contract.gate import Gate
from service.core.answer_memory import AnswerMemory
from service.core.hooks import Answer, Hook, HookError, Hooks, Outcome, ReadQuestion, no_answer, refusal
from service.core.identity import Identity, Right
from service.errors import ServiceError
from service.realtime.runtime import Runtime


class _Key(NamedTuple):
    endpoint: str
    identity: Identity
    """The token with all that it says: another token of the same user is asked about again."""
    channel: str
    right: Right


class Decisions:
    """The backend decides about reads that the gate has allowed. Afterwards the gate is asked again."""

    def __init__(self, gate: Gate, hooks: Hooks | None, max_answers: int, runtime: Runtime) -> None:
        """`hooks`: None if the contract names none. `max_answers`: those to remember, if the backend says for how long."""
        self._gate = gate
        self._hooks = hooks if gate.has_read_hooks else None
        metrics = runtime.metrics
        self._answers = AnswerMemory[_Key, Answer](
            max_answers, runtime.clock.monotonic, metrics.limits.limit_hits.labels(limit="hook_answers").inc
        )
        metrics.hooks.hook_answers.labels("read").set_function(lambda: len(self._answers))

    @property
    def asks_about_reads(self) -> bool:
        """True if the backend is asked about some channels."""
        return self._hooks is not None

    def check_read(
        self, identity: Identity, channel: str, right: Right, *, is_recheck: bool = False
    ) -> Awaitable[None] | None:
        """Asks about a read that the gate has allowed. Returns what has to be waited for; None if nobody has to be asked.

        `is_recheck`: the client reads the channel already.

        Raises ServiceError, at once or at the end of the wait: FORBIDDEN, HOOK_UNAVAILABLE, or why the gate refuses it meanwhile.
        """
        if self._hooks is None or identity.is_backend:
            return None
        hook = self._gate.read_hook_of(channel)
        if hook is None:
            return None
        key = _Key(hook.endpoint, identity, channel, right)
        answer = self._answers.recall(key)
        if answer is None:
            return self._ask(self._hooks, hook, key, is_recheck=is_recheck)
        self._hooks.record(hook, Outcome.CACHED)
        if not answer.allow:
            raise refusal("this channel", "$.channel", answer)
        return None

    async def wait_for_read(self, identity: Identity, channel: str, right: Right, *, is_recheck: bool = False) -> None:
        """Does what `check_read` does, with its wait. Raises ServiceError."""
        waiting = self.check_read(identity, channel, right, is_recheck=is_recheck)
        if waiting is not None:
            await waiting

    async def check_subscribes(self, identity: Identity, channels: Iterable[str]) -> None:
        """Asks about several subscribes at once. Raises the first ServiceError, with the name of the channel."""
        results = await asyncio.gather(
            *(self._check_subscribe(identity, name) for name in channels), return_exceptions=True
        )
        for result in results:
            if result is not None:
                raise result

    async def _check_subscribe(self, identity: Identity, channel: str) -> None:
        try:
            await self.wait_for_read(identity, channel, Right.SUBSCRIBE)
        except ServiceError as error:
            raise ServiceError(error.code, error.message, **{**error.details, "channel": channel}) from error

    async def _ask(self, hooks: Hooks, hook: Hook, key: _Key, *, is_recheck: bool) -> None:
        await ensure_task()  # asking takes a timeout, which needs one
        identity = key.identity
        try:
            question = ReadQuestion(identity.tenant, identity.user, key.channel, key.right.value, is_recheck)
            answer = await hooks.ask(hook, question)
        except HookError as error:
            hooks.record(hook, error.outcome)
            if not hook.fails_open:
                raise no_answer("this channel", error.outcome) from error
        else:
            hooks.record(hook, Outcome.ALLOWED if answer.allow else Outcome.DENIED)
            self._answers.remember(key, answer, answer.ttl)
            if not answer.allow:
                raise refusal("this channel", "$.channel", answer)
        self._gate.authorise(identity, key.channel, key.right)  # the token may have expired during the wait
