"""Metrics of messages, deliveries, subscriptions and streams."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from service.telemetry import fast_metrics
from service.telemetry.fast_metrics import FastCounter, FastCounterFamily
from service.telemetry.metrics.registry import LATENCY_BUCKETS, MetricFactory, start_at_zero

OTHER: Final = fast_metrics.OTHER
"""The label of every event type that is not declared: clients could otherwise create labels."""

_EVENTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0)
_DEPTH = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 350.0, 500.0)
_MEMBERS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0)
_DELIVERIES = ("durable", "latest", "ephemeral")

Traffic = tuple[FastCounter, FastCounter]
"""The counters of messages and of bytes of one event type."""


class MessageMetrics:
    """Messages between clients and this node.

    `event_types` are the types that may become a label; every other type counts as "other".
    """

    def __init__(self, make: MetricFactory, event_types: Iterable[str]) -> None:
        self._event_types = frozenset(event_types)
        self.messages_in = make.fast_counters("messages_in", "Messages received from clients, by type.", "type")
        self.messages_out = make.fast_counters("messages_out", "Messages written to clients, by type.", "type")
        self.bytes_in = make.fast_counters("bytes_in", "Bytes of the messages received from clients, by type.", "type")
        self.bytes_out = make.fast_counters("bytes_out", "Bytes of the messages written to clients, by type.", "type")
        self.errors = make.fast_counters("errors", "Errors sent to clients, by error code.", "code")
        self._in: dict[str, Traffic] = {}
        self._out: dict[str, Traffic] = {}

    def event_type(self, type_: str) -> str:
        """The type as a label: itself if it is declared, else "other"."""
        return type_ if type_ in self._event_types else OTHER

    def count_in(self, type_: str, size: int) -> None:
        """Counts a message of so many bytes from a client. The counters are cached: `.labels()` is too slow for every message."""
        messages, bytes_ = self._in.get(type_) or self._traffic(self._in, type_, self.messages_in, self.bytes_in)
        messages.value += 1
        bytes_.value += size

    def count_out(self, type_: str, size: int, times: int = 1, frames: int = 1) -> None:
        """Counts so many messages, of so many bytes together, written to so many clients. Cached as in `count_in`."""
        messages, bytes_ = self._out.get(type_) or self._traffic(self._out, type_, self.messages_out, self.bytes_out)
        messages.value += times * frames
        bytes_.value += times * size

    def _traffic(
        self, cache: dict[str, Traffic], type_: str, messages: FastCounterFamily, size: FastCounterFamily
    ) -> Traffic:
        label = self.event_type(type_)  # the cache is keyed by labels, so types that clients invent do not fill it
        if label not in cache:
            cache[label] = (messages.labels(label), size.labels(label))
        return cache[label]


class OutboxMetrics:
    """Bytes and messages that wait for clients."""

    def __init__(self, make: MetricFactory) -> None:
        self.outbox_dropped = make.fast_counters(
            "outbox_dropped", "Events that an outbox dropped, by delivery class.", "delivery"
        )
        start_at_zero(self.outbox_dropped, _DELIVERIES)
        self.outbox_replaced = make.counter(
            "outbox_replaced", "Latest events that a newer value replaced in an outbox."
        )
        self.slow_consumers = make.counter("slow_consumers", "Connections closed because they read too slowly.")
        self.connections_behind = make.gauge(
            "connections_behind", "Connections with sent data that their peer has not taken."
        )
        self.outbox_depth_messages = make.fast_histogram(
            "outbox_depth_messages",
            "Messages that wait for a connection that is behind, observed twice a second for each of them.",
            _DEPTH,
        )
        self.max_outbox_bytes = make.gauge(
            "max_outbox_bytes", "Maximum number of bytes that this node buffers for its peers."
        )
        self.outbox_messages = make.fast_gauge("outbox_messages", "Messages waiting in all outboxes of this node.")
        self.outbox_bytes = make.gauge(
            "outbox_bytes",
            "Bytes that this node buffers for its peers: outboxes, transports, incomplete and waiting messages, request bodies.",
        )
        self.outbox_used_ratio = make.gauge(
            "outbox_used_ratio",
            "The used part of `outbox.node_bytes`, or the used part of its share by the fullest tenant, whichever is greater. "
            "At 1, clients that do not read are closed and large replies are refused.",
        )


class DeliveryMetrics:
    """Publishes, and deliveries to members of rooms."""

    def __init__(self, make: MetricFactory) -> None:
        self.publishes = make.fast_counters(
            "publishes", "Publishes, by delivery class and outcome.", "delivery", "outcome"
        )
        for delivery in _DELIVERIES:
            start_at_zero(self.publishes, ("accepted", "duplicate", "refused"), delivery)
        self.removed_events = make.counter(
            "removed_events", "Durable events and values that the backend has taken back."
        )
        self.purges = make.counter("purges", "Channels whose history and state the backend has dropped.")
        self.publish_seconds = make.fast_histogram(
            "publish_seconds", "Duration of a publish, through the contract's gate and the broker.", LATENCY_BUCKETS
        )
        self.publish_to_write_seconds = make.fast_histogram(
            "publish_to_write_seconds", "Time from accepting an event to writing it to a subscriber.", LATENCY_BUCKETS
        )
        self.native_sends = make.fast_counters(
            "native_sends",
            "Frames written to members by the native sender, by outcome: the kernel took the `whole` frame or a `short` part.",
            "outcome",
        )
        self.sent_natively = (self.native_sends.labels("whole"), self.native_sends.labels("short"))
        self.fanout_members = make.fast_histogram(
            "fanout_members", "Connections that an event was delivered to.", _MEMBERS
        )


class SubscriptionMetrics:
    """Subscriptions, resumed positions and presence."""

    def __init__(self, make: MetricFactory) -> None:
        self.subscriptions = make.fast_gauge("subscriptions", "Subscriptions of all connections of this node.")
        self.channels = make.fast_gauge("channels", "Channels with a subscriber on this node.")
        self.resumes = make.fast_counters(
            "resumes", "Subscribes, by outcome: `recovered`, `gap`, or `fresh` without a position.", "outcome"
        )
        start_at_zero(self.resumes, ("recovered", "gap", "fresh"))
        self.resumed_events = make.counter("resumed_events", "Missed events sent to clients that resume.")
        self.resume_events = make.fast_histogram(
            "resume_events", "Missed events sent to one subscription that resumes.", _EVENTS
        )
        self.granted_subscriptions = make.gauge(
            "granted_subscriptions", "Subscriptions with rights of their own, from a token or the backend."
        )
        self.tail_events = make.counter("tail_events", "Last events sent to clients that subscribe with `tail`.")
        self.history_pages = make.fast_counters(
            "history_pages",
            "Requests for history pages that caches may keep, by outcome: the page (`served`), no body because the cache has it "
            "(`not_modified`), or an error (`refused`).",
            "outcome",
        )
        start_at_zero(self.history_pages, ("served", "not_modified", "refused"))
        self.presence_events = make.fast_counters("presence_events", "Presence events published, by kind.", "kind")
        start_at_zero(self.presence_events, ("joined", "left", "count"))
        self.presence_reentered = make.counter(
            "presence_reentered", "Presence entries of this node that the store had lost and that were added again."
        )


class StreamMetrics:
    """Gaps between this node and the streams of the broker."""

    def __init__(self, make: MetricFactory) -> None:
        self.interruptions = make.counter(
            "interruptions", "Times that the broker reported events that may not have been delivered to this node."
        )
        self.gaps = make.fast_counters("gaps", "Gaps found between this node and a stream, by cause.", "cause")
        start_at_zero(self.gaps, ("jump", "interruption", "check"))
        self.repairs = make.fast_counters(
            "repairs",
            "Gaps that were recovered from the stream (`repaired`), or announced to subscribers (`announced`).",
            "outcome",
        )
        start_at_zero(self.repairs, ("repaired", "announced"))
        self.repaired_events = make.counter("repaired_events", "Events read from streams to recover gaps.")
        self.repair_failures = make.counter("repair_failures", "Failed reads of a stream.")
        self.epoch_changes = make.counter("epoch_changes", "Streams found in a new epoch.")
        self.repeats = make.counter(
            "repeats", "Duplicate events that the broker delivered to this node, and that were dropped."
        )
