"""Publishes events. Every event of a client or a backend goes this way: contract gate, broker, metrics."""

from __future__ import annotations

from typing import NamedTuple

from msgspec import Raw

from service.contract.gate import Gate
from service.core.broker import Broker, PublishResult
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery
from service.core.identity import Identity
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
        self._metrics = metrics
        self._unknown = metrics.delivery.publishes.labels("unknown", "refused")
        """Counts events that the gate refuses: their delivery class is not known."""
        self._outcomes = {delivery: _Outcomes.of(metrics, delivery.value) for delivery in Delivery}

    async def publish(
        self,
        identity: Identity,
        *,
        channel: str,
        type: str,
        data: bytes | Raw,
        id: str | None,
        key: str | None,
        sender: str | None,
        subscribed: bool,
    ) -> PublishResult:
        """Validates an event against the contract, and publishes it. An event without an id gets one.

        Raises ServiceError. If the gate refuses the event, it was not published. If the broker fails, it may have been; it is
        safe to publish it again with the same id.
        """
        started = self._clock.monotonic()
        refused = self._unknown
        try:
            publication = self._gate.validate(
                identity,
                channel=channel,
                type=type,
                data=bytes(data),
                id=id if id is not None else new_id(),
                key=key,
                sender=sender,
                at=milliseconds(self._clock),
                subscribed=subscribed,
            )
            outcomes = self._outcomes[publication.delivery]
            refused = outcomes.refused
            result = await self._broker.publish(publication)
        except ServiceError:
            refused.inc()
            raise
        (outcomes.duplicate if result.duplicate else outcomes.accepted).inc()
        self._metrics.delivery.publish_seconds.observe(max(0.0, self._clock.monotonic() - started))
        return result
