"""Publishes events. Every event of a client or a backend passes the contract gate, then goes to the broker."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import NamedTuple

from msgspec import Raw

from service.aio.pending import Pending
from service.contract.gate import Gate
from service.core.broker import Broker, PublishResult
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Publication
from service.core.identity import Identity
from service.core.session import Subscription
from service.errors import ServiceError
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


class Publisher:
    """Publishes on behalf of an identity."""

    def __init__(self, gate: Gate, broker: Broker, clock: Clock, metrics: Metrics) -> None:
        self._gate = gate
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
    ) -> PublishResult | Awaitable[PublishResult]:
        """Validates an event against the contract, and publishes it. An event without an id gets one. `subscription`: that of the
        publishing connection to the channel, if it has one. `connection`, `exclude`: as for `Gate.validate`.

        `removed`: removes the value of the key; `data` and `exclude` do not count. `if_rev`: only if the value has this state
        version.

        Returns the result; or an awaitable of it, if the broker has to wait: a `Pending` if that needs no task. All raise
        ServiceError. If the gate refuses the event, it was not published. If the broker fails, it may have been; it is safe to
        publish it again with the same id.
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
