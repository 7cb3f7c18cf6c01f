"""Every metric of the service. docs/reference/metrics.md explains how to read them.

Labels come from small closed sets: an error code, a delivery class, a declared event type. Never a channel, user or tenant:
their number grows with the traffic, and their names are other people's data.

Example:
    metrics = Metrics(event_types={"chat.message"})
    metrics.connections.connects.labels("bearer").inc()
    text = metrics.render()
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST

from service.telemetry.metrics.clients import ClientMetrics, ConnectionMetrics, HttpMetrics, LimitMetrics
from service.telemetry.metrics.node import (
    BrokerMetrics,
    CallMetrics,
    ClusterMetrics,
    HookMetrics,
    LifecycleMetrics,
    MemoryBrokerMetrics,
    ProbeMetrics,
    ProcessMetrics,
)
from service.telemetry.metrics.registry import MetricFactory, Registry
from service.telemetry.metrics.traffic import (
    DeliveryMetrics,
    MessageMetrics,
    OutboxMetrics,
    StreamMetrics,
    SubscriptionMetrics,
)
from service.telemetry.metrics.webhooks import WebhookMetrics

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""The content type of what `Metrics.render` returns."""


class Metrics:
    """The metrics of one running service, in a registry of their own: two services in one process do not mix.

    An attribute of a group has the name that is exported, without `tidewire_` and without `_total`.
    `event_types` are the types that may become a label: the contract's, and the protocol's own.
    """

    def __init__(self, event_types: Iterable[str] = ()) -> None:
        self.registry = Registry()
        make = MetricFactory(self.registry)
        self.connections = ConnectionMetrics(make)
        self.clients = ClientMetrics(make)
        self.http = HttpMetrics(make)
        self.limits = LimitMetrics(make)
        self.messages = MessageMetrics(make, event_types)
        self.outbox = OutboxMetrics(make)
        self.delivery = DeliveryMetrics(make)
        self.subscriptions = SubscriptionMetrics(make)
        self.streams = StreamMetrics(make)
        self.broker = BrokerMetrics(make)
        self.memory_broker = MemoryBrokerMetrics(make)
        self.hooks = HookMetrics(make)
        self.webhooks = WebhookMetrics(make)
        self.calls = CallMetrics(make)
        self.cluster = ClusterMetrics(make)
        self.lifecycle = LifecycleMetrics(make)
        self.probe = ProbeMetrics(make)
        self.process = ProcessMetrics(make)
        self.metric_errors = make.fast_counters(
            "metric_errors",
            "Failures to count or export a metric, by metric. They affect nothing else.",
            "metric",
        )
        self.metric_errors.labels("api_requests")  # from the start, or its first increase would not be seen
        self.registry.errors = self.metric_errors

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Counts and suppresses an exception of the block. The block only measures, so the request is still
        answered."""
        try:
            yield
        except Exception:
            self.metric_errors.labels(name).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format. One that fails is left out and counted."""
        return b"".join(self.registry.rendered())
