"""Publishes events. Every event of a client or a backend passes the contract gate, then goes to the broker."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import NamedTuple

from msgspec import Raw
from msgspec.structs import replace

from service.aio.eager_start import ensure_task
from service.aio.pending import Pending
from service.contract.gate import Gate
from service.core.broker import Broker, PublishResult
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Publication
from service.core.hooks import Hook, HookError, Hooks, Outcome, PublishQuestion, no_answer, refusal
from service.core.identity import Identity
from service.core.session import Session, Subscription
from service.core.webhooks import EventWebhooks, publish_and_tell
from service.errors import ErrorCode, ServiceError
from service.realtime.ids import new_id
from service.telemetry.fast_metrics import FastCounter
from service.telemetry.metrics import Metrics


class _Outcomes(NamedTuple):
    """The counters of publishes of one delivery class."""

    accepted: FastCounter
    duplicate: FastCounter
    refused: FastCounter

    @classmethod
    def of(cls, metrics: Metrics, delivery: str) -> _Outcomes:
        return cls(*(metrics.delivery.publishes.labels(delivery, outcome) for outcome in cls._fields))


class _Client(NamedTuple):
    """Who publishes: what passes the gate a second time after the backend was asked."""

    identity: Identity
    subscription: Subscription | None
    session: Session | None


class Publisher:
    """Publishes on behalf of an identity."""

    def __init__(
        self,
        gate: Gate,
        broker: Broker,
        clock: Clock,
        metrics: Metrics,
        hooks: Hooks | None = None,
        webhooks: EventWebhooks | None = None,
    ) -> None:
        """`hooks`: asks those that the contract names; None if it names none. `webhooks`: tells the endpoints that the contract
        names at event types; None if it names none, or the settings have none."""
        self._gate = gate
        self._hooks = hooks
        self._webhooks = webhooks
        self._broker = broker
        self._clock = clock
        self._publish_seconds = metrics.delivery.publish_seconds
        self._unknown = metrics.delivery.publishes.labels("unknown", "refused")
        """Counts events that the gate refuses, because their delivery class is unknown."""
        self._outcomes = {delivery: _Outcomes.of(metrics, delivery.value) for delivery in Delivery}

    def publish(
        self,
        identity: Identity,
        channel: str,
        type: str,
        data: bytes | Raw,
        id: str | None,
        key: str | None,
        sender: str | None,
        subscription: Subscription | None = None,
        connection: str | None = None,
        if_rev: int | None = None,
        *,
        removed: bool = False,
        exclude: str | None = None,
        session: Session | None = None,
    ) -> PublishResult | Awaitable[PublishResult]:
        """Validates an event against the contract, and publishes it. An event without an id gets one. `subscription`: that of the
        publishing connection to the channel, if it has one. `connection`, `exclude`: as for `Gate.validate`.

        `removed`: removes the value of the key; `data` and `exclude` do not count. `if_rev`: only if the value has this state
        version. `session`: that of the publishing connection; its rights count at the time of the backend's answer, too.

        Returns the result; or an awaitable of it, if the broker or the backend is waited for: a `Pending` if that needs no
        task. All raise ServiceError. If the gate or the backend refuses the event, it was not published. If the broker fails, it
        may have been; it is safe to publish it again with the same id.
        """
        clock = self._clock
        started, at = clock.monotonic(), milliseconds(clock)
        publication: Publication | None = None
        try:
            if id is None:
                id = new_id()
            if removed:
                publication = self._gate.validate_removal(identity, channel, type, id, key, sender, at, subscription)
            else:
                publication = self._gate.validate(
                    identity, channel, type, data, id, key, sender, at, subscription, connection, exclude
                )
            if if_rev is not None:
                publication = self._gate.require_version(publication, if_rev)
            if (
                self._hooks is not None
                and not identity.is_backend
                and (hook := self._gate.hook_of(channel, type)) is not None
            ):
                return self._ask(self._hooks, hook, _Client(identity, subscription, session), publication)
            if self._webhooks is not None and (endpoint := self._gate.webhook_of(channel, type)) is not None:
                return self._publish_and_tell(self._webhooks, endpoint, publication, started)
            result = self._broker.start_publish(publication)
        except ServiceError:
            (self._unknown if publication is None else self._outcomes[publication.delivery].refused).inc()
            raise
        if isinstance(result, PublishResult):
            self._count(publication.delivery, result, started)
            return result
        if result is None:
            return self._wait(publication, started)
        result.add_done_callback(partial(self._count_done, publication.delivery, started))
        return result

    async def _ask(self, hooks: Hooks, hook: Hook, client: _Client, publication: Publication) -> PublishResult:
        """Asks the backend about an event that the gate has accepted, and publishes what it allows."""
        try:
            checked = await self._decide(hooks, hook, client, publication)
        except ServiceError:
            self._outcomes[publication.delivery].refused.inc()
            raise
        started = self._clock.monotonic()  # the backend's time has a metric of its own
        if self._webhooks is not None:
            endpoint = self._gate.webhook_of(checked.channel.name, checked.type)
            if endpoint is not None:
                return await self._publish_and_tell(self._webhooks, endpoint, checked, started)
        result = self._broker.start_publish(checked)
        if isinstance(result, PublishResult):
            self._count(checked.delivery, result, started)
            return result
        if result is None:
            return await self._wait(checked, started)
        result.add_done_callback(partial(self._count_done, checked.delivery, started))
        return await result

    async def _decide(self, hooks: Hooks, hook: Hook, client: _Client, publication: Publication) -> Publication:
        await ensure_task()  # asking takes a timeout, which needs one
        try:
            answer = await hooks.ask(hook, _question(client.identity, publication))
        except HookError as error:
            hooks.record(hook, error.outcome)
            if not hook.fails_open:
                raise no_answer("this event", error.outcome) from error
            return self._check_again(client, publication, publication.data)
        if not answer.allow:
            hooks.record(hook, Outcome.DENIED)
            raise refusal("this event", "$.type", answer)
        if answer.data is None:
            checked = self._check_again(client, publication, publication.data)
            hooks.record(hook, Outcome.ALLOWED)
            return checked
        try:
            checked = self._check_again(client, publication, answer.data)
        except ServiceError as error:
            if error.code in _FAULTS_OF_DATA:
                hooks.record(hook, Outcome.BAD_REPLY)
                raise no_answer("this event", Outcome.BAD_REPLY) from error
            hooks.record(hook, Outcome.CHANGED)
            raise
        hooks.record(hook, Outcome.CHANGED)
        return checked

    def _check_again(self, client: _Client, publication: Publication, data: bytes | Raw) -> Publication:
        """Passes the gate a second time: rights may have ended during the wait, and the backend may have changed the data."""
        session, channel = client.session, publication.channel.name
        identity = client.identity if session is None else session.identity
        subscription = client.subscription if session is None else session.find(channel)
        type_, id_, sender, at = publication.type, publication.id, publication.sender, publication.at
        if publication.removed:
            key = publication.key
            checked = self._gate.validate_removal(identity, channel, type_, id_, key, sender, at, subscription)
        else:
            exclude = publication.exclude
            checked = self._gate.validate(
                identity, channel, type_, data, id_, None, sender, at, subscription, exclude=exclude
            )
        return replace(checked, if_version=publication.if_version)

    async def _publish_and_tell(
        self, webhooks: EventWebhooks, endpoint: str, publication: Publication, started: float
    ) -> PublishResult:
        try:
            result = await publish_and_tell(self._broker, webhooks, endpoint, publication)
        except ServiceError:
            self._outcomes[publication.delivery].refused.inc()
            raise
        self._count(publication.delivery, result, started)
        return result

    async def _wait(self, publication: Publication, started: float) -> PublishResult:
        try:
            result = await self._broker.publish(publication)
        except ServiceError:
            self._outcomes[publication.delivery].refused.inc()
            raise
        self._count(publication.delivery, result, started)
        return result

    def _count_done(self, delivery: Delivery, started: float, pending: Pending[PublishResult]) -> None:
        if pending.error is None:
            self._count(delivery, pending.result(), started)
        elif isinstance(pending.error, ServiceError):
            self._outcomes[delivery].refused.inc()

    def _count(self, delivery: Delivery, result: PublishResult, started: float) -> None:
        outcomes = self._outcomes[delivery]
        (outcomes.duplicate if result.duplicate else outcomes.accepted).value += 1
        self._publish_seconds.observe(self._clock.monotonic() - started)


_FAULTS_OF_DATA = frozenset({ErrorCode.MALFORMED, ErrorCode.INVALID_DATA, ErrorCode.INVALID_KEY})


def _question(identity: Identity, publication: Publication) -> PublishQuestion:
    return PublishQuestion(
        identity.tenant,
        identity.user,
        publication.sender,
        publication.channel.name,
        publication.type,
        publication.id,
        publication.key,
        publication.data,
        publication.removed,
    )
