"""An Authenticator that asks the backend about clients whose tokens no issuer of the settings has signed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from msgspec.structs import replace

from service.adapters.http_hooks.hooks import HttpHooks
from service.aio.eager_start import ensure_task
from service.core.answer_memory import AnswerMemory
from service.core.authenticator import Authenticator, UnknownTokenError
from service.core.backoff import jittered
from service.core.clock import Clock
from service.core.hooks import ClientContext, ConnectAnswer, ConnectQuestion, Hook, HookError, Outcome, no_answer
from service.core.identity import Identity, VouchedIdentity
from service.core.limits import Rate
from service.core.token_bucket import TokenBucket
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import MAX_TOKEN
from service.telemetry.metrics import Metrics

RETRY_AFTER = 1.0
"""Seconds that a client waits at least after a question without an answer."""
MAX_REMEMBERED = 0.5
"""The part of a session's life for which an answer is remembered at most, so that no client gets a session that ends at once."""


@dataclass(frozen=True, slots=True)
class ConnectHook:
    """Whom to ask about clients, and how often."""

    endpoint: str
    tenant: str
    """The tenant whose endpoint is asked, and that of clients of which the backend names none."""
    rate: Rate
    """Questions of this node about clients."""
    without_token: bool
    """True if the backend is asked about clients without a token, too."""


class HookAuthenticator:
    """Lets another Authenticator verify the tokens of known issuers, and asks the backend about all others.

    A token of a known issuer that is refused is not asked about. Nothing is allowed without an answer.
    """

    def __init__(
        self,
        tokens: Authenticator,
        hooks: HttpHooks,
        config: ConnectHook,
        answers: AnswerMemory[ConnectQuestion, ConnectAnswer | VouchedIdentity],
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        """`answers`: remembers those for which the backend says for how long."""
        self._tokens = tokens
        self._hooks = hooks
        self._config = config
        self._hook = Hook(config.endpoint)
        self._answers = answers
        self._clock = clock
        self._bucket = TokenBucket(config.rate, clock.monotonic())
        self._limited = metrics.limits.limit_hits.labels(limit="hook_connects")

    def authenticate_now(self, token: str) -> Identity | None:
        """Returns the identity of a token of a known issuer, if that needs no wait."""
        try:
            return self._tokens.authenticate_now(token)
        except UnknownTokenError:
            return None

    async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
        """Returns the identity of a token, or that with which the backend answers. Raises ServiceError."""
        try:
            return await self._tokens.authenticate(token)
        except UnknownTokenError:
            if context is None or not _is_askable(token):
                raise
        return await self._connect(ConnectQuestion(self._config.tenant, token, context))

    async def authenticate_without_token(self, context: ClientContext | None) -> Identity | None:
        """Returns the identity with which the backend answers; None if it is not to be asked. Raises ServiceError."""
        if context is None or not self._config.without_token:
            return None
        return await self._connect(ConnectQuestion(self._config.tenant, None, context))

    async def authenticate_again(self, identity: Identity, token: str | None = None) -> Identity:
        """Asks the backend about a session for which it has vouched. `token`: a new one of the client. Raises ServiceError."""
        question = identity.question
        if question is None or (token is not None and not _is_askable(token)):
            return await self._tokens.authenticate_again(identity, token)
        if token is not None:
            question = replace(question, token=token)
        answer = await self._ask(replace(question, tenant=identity.tenant, user=identity.user))
        if not answer.allow:
            _refuse(answer)
        return self._identity(answer, question)

    async def authenticate_subscription(self, token: str) -> Identity:
        """Verifies the token of a subscription, which only an issuer can sign."""
        return await self._tokens.authenticate_subscription(token)

    def forget(self, identity: Identity) -> None:
        """Forgets the answer that has led to an identity."""
        if identity.question is not None:
            self._answers.forget(identity.question)

    async def _connect(self, question: ConnectQuestion) -> Identity:
        known = self._answers.recall(question)
        if known is not None:
            self._hooks.record(self._hook, Outcome.CACHED)
            if isinstance(known, ConnectAnswer):
                _refuse(known)
            return known
        answer = await self._ask(question)
        if not answer.allow:
            self._answers.remember(question, answer, answer.ttl)
            _refuse(answer)
        identity = self._identity(answer, question)
        self._answers.remember(question, identity, min(answer.ttl, answer.expires_in * MAX_REMEMBERED))
        return identity

    async def _ask(self, question: ConnectQuestion) -> ConnectAnswer:
        self._charge()
        await ensure_task()  # asking takes a timeout, which needs one
        try:
            answer = await self._hooks.ask_about_client(self._hook, question)
        except HookError as error:
            self._hooks.record(self._hook, error.outcome)
            raise no_answer("this client", error.outcome, retry_after=jittered(RETRY_AFTER)) from error
        self._hooks.record(self._hook, Outcome.ALLOWED if answer.allow else Outcome.DENIED)
        return answer

    def _charge(self) -> None:
        """Raises ServiceError(OVERLOADED) above the rate: a crowd without valid tokens must not become the backend's crowd."""
        now = self._clock.monotonic()
        if not self._bucket.acquire(now):
            return
        self._limited.inc()
        self._hooks.record(self._hook, Outcome.LIMITED)
        raise ServiceError(
            ErrorCode.OVERLOADED,
            "this node asks the backend about no more clients at the moment",
            retry_after=round(self._bucket.schedule_retry(now), 3),
        )

    def _identity(self, answer: ConnectAnswer, question: ConnectQuestion) -> VouchedIdentity:
        now = self._clock.wall()
        return VouchedIdentity(
            answer.tenant,
            answer.user,
            answer.grants,
            now + answer.expires_in,
            answer.info,
            issued_at=now,
            channels=answer.channels,
            question=question,
            welcome_data=answer.data,
        )


def _is_askable(token: str) -> bool:
    return len(token) <= MAX_TOKEN and token.isascii() and token.isprintable()


def _refuse(answer: ConnectAnswer) -> NoReturn:
    details = {} if answer.reason is None else {"reason": answer.reason}
    raise ServiceError(answer.error, "the backend refuses this client", **details)
