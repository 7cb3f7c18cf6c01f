"""Metrics of webhooks: what the service tells the backend."""

from __future__ import annotations

from service.telemetry.metrics.registry import LATENCY_BUCKETS, MetricFactory

DELIVERY_BUCKETS = (*LATENCY_BUCKETS, 30.0, 60.0)
"""Seconds, up to the longest timeout of an endpoint."""


class WebhookMetrics:
    """Deliveries and queues. Nothing is exported for an endpoint before it has a queue."""

    def __init__(self, make: MetricFactory) -> None:
        self.webhooks = make.fast_counters(
            "webhooks",
            "Entries of webhooks, by endpoint and outcome: those of each delivery, and those that were not sent.",
            "endpoint",
            "outcome",
        )
        self.webhook_seconds = make.histogram(
            "webhook_seconds", "Time that a delivery to an endpoint took.", DELIVERY_BUCKETS, "endpoint"
        )
        self.webhook_waiting = make.gauge(
            "webhook_waiting", "Records that wait in the queues which this node delivers.", "endpoint"
        )
        self.webhook_oldest_seconds = make.gauge(
            "webhook_oldest_seconds", "Age of the oldest entry that waits in these queues; 0 if none waits.", "endpoint"
        )
        self.webhook_dead_letters = make.gauge(
            "webhook_dead_letters",
            "Entries that could not be delivered, and are neither replayed nor dropped. The node that delivers the first queue "
            "exports them.",
            "endpoint",
        )
        self.webhook_queues = make.gauge("webhook_queues", "Queues that this node delivers.", "endpoint")
        self.webhook_facts = make.gauge(
            "webhook_facts",
            "Connected clients, occupied channels and present users at this node whose end a webhook will tell.",
        )
        self.webhook_facts_lapsed = make.counter(
            "webhook_facts_lapsed",
            "Ends that are told only when entries have expired, because too many waited for the store.",
        )
