"""Every metric of the service. docs/operations.md explains how to read them.

Labels come from small closed sets: an error code, a delivery class, a declared event type. Never a channel, user or tenant:
their number grows with the traffic, and their names are other people's data.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from math import inf, nan
from pathlib import Path
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.telemetry import fast_metrics, log
from service.telemetry.fast_metrics import FastCounter, FastCounterFamily, FastGauge, FastHistogram, Mirror

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""Of what `Metrics.render` gives."""

OTHER: Final = fast_metrics.OTHER
"""Stands for every event type that nobody declared: clients could otherwise create labels."""

_LATENCY = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PROBE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Objectives are told in these: to move one breaks them."""
_PAUSE = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_PING = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 12.5)
_LENGTH = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0)
_EVENTS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0)
_DEPTH = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 350.0, 500.0)
_MEMBERS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0)

_DELIVERIES = ("durable", "latest", "ephemeral")
_LIMITS = (
    "message_bytes",
    "batch",
    "subscriptions",
    "connections",
    "connections_per_tenant",
    "connections_per_user",
    "connections_per_ip",
    "pending",
    "http_connections",
    "http_connections_per_ip",
    "ops_connections",
    "open_files",
    "hello_deadline",
    "header_deadline",
    "body_deadline",
    "message_deadline",
    "late_bytes",
    "outbox",
    "outbox_node",
    "stall",
    "heartbeat",
    "broker_queue",
    "revocations",
    "accept_rate",
)
_RATES = (
    "connection",
    "user",
    "ip",
    "tenant",
    "connection_subscribes",
    "user_subscribes",
    "ip_subscribes",
    "tenant_subscribes",
    "connect",
    "api_ip",
    "api_key",
    "http",
)
_FDS = Path("/proc/self/fd")
_STATM = Path("/proc/self/statm")

Traffic = tuple[FastCounter, FastCounter]
"""The counters of messages and of bytes of one event type."""


class Metrics:
    """The metrics of one running service, in a registry of their own: two services in one process do not mix.

    `event_types` are all types that may become a label: the contract's, and the protocol's own.
    Counters whose labels are known beforehand start at 0, so that an alert on them is never an empty vector.
    """

    def __init__(self, event_types: Iterable[str] = ()) -> None:
        self.registry = _Registry()
        self._event_types = frozenset(event_types)

        self.connections = self._level("connections", "Connections that are authenticated.")
        self.max_connections = self._gauge("max_connections", "Connections that this node takes at most.")
        self.pending = self._level("pending_connections", "Connections that have not said hello yet.")
        self.http_connections = self._gauge(
            "http_connections", "TCP connections of the public listener that are not WebSockets."
        )
        self.max_http_connections = self._gauge(
            "max_http_connections", "TCP connections that are not WebSockets that this node takes at most."
        )
        self.ops_connections = self._gauge("ops_connections", "TCP connections of the listener for health and metrics.")
        self.connects = self._tallies(
            "connects", "Connections authenticated, by the kind of credentials.", "credentials"
        )
        _start(self.connects, ("bearer", "ticket", "cookie", "hello", "anonymous"))
        self.token_signatures = self._tallies(
            "token_signatures",
            "Tokens signed with a private key, by whether the signature was checked or remembered to be right.",
            "outcome",
        )
        _start(self.token_signatures, ("checked", "remembered"))
        self.refusals = self._tallies(
            "upgrade_refusals",
            "Clients refused, by error code; by cause (`client`: what it sent or a limit of its own, `service`: a limit or a "
            "fault of this node, `draining`); and by where: `upgrade`, `hello`, `ticket`.",
            *("cause", "door", "reason"),
        )
        for door in ("upgrade", "hello", "ticket"):
            _start(
                self.refusals, ("overloaded", "too_many_connections", "broker_unavailable", "internal"), "service", door
            )
        self.refused_addresses = self._gauge(
            "refused_addresses", "Client addresses refused in the last 5 minutes for a cause that is the client's."
        )
        self.closes = self._tallies("closes", "Connections closed, by close code.", "code")
        self.recent_connect_clients = self._gauge(
            "recent_connect_clients",
            "Different clients that connected in the last 2 minutes. A client is a user at an address.",
        )
        self.recent_close_clients = self._gauge(
            "recent_close_clients", "Different clients of which a connection closed in the last 5 minutes."
        )
        self.recent_abnormal_close_clients = self._gauge(
            "recent_abnormal_close_clients",
            "Different clients of which a connection broke off or closed by a fault (close codes 1006, 1011, 1013, 4408) in the "
            "last 5 minutes.",
        )
        self.handshake_seconds = self._spread(
            "handshake_seconds",
            "Time from the whole request for an upgrade to its 101: waiting for its turn, and every check.",
            _LATENCY,
        )
        self.connection_seconds = self._spread(
            "connection_seconds", "How long connections lasted that have ended.", _LENGTH
        )
        self.connection_age = Gauge(
            "tidewire_connection_age_seconds",
            "How long the present connections have lasted: the median (0.5), nine of ten at most (0.9), the oldest (1).",
            ("quantile",),
            registry=self.registry,
        )
        self.ping_seconds = self._spread("ping_seconds", "Time from a ping to the client's answer.", _PING)

        self.messages_in = self._tallies("messages_in", "Messages received from clients, by type.", "type")
        self.messages_out = self._tallies("messages_out", "Messages written to clients, by type.", "type")
        self.bytes_in = self._tallies("bytes_in", "Bytes of the messages received from clients, by type.", "type")
        self.bytes_out = self._tallies("bytes_out", "Bytes of the messages written to clients, by type.", "type")
        self.errors = self._tallies("errors", "Refusals sent to clients, by error code.", "code")

        self.dropped = self._tallies("outbox_dropped", "Events that an outbox dropped, by delivery class.", "delivery")
        _start(self.dropped, _DELIVERIES)
        self.replaced = self._counter("outbox_replaced", "Latest events that a newer value replaced in an outbox.")
        self.slow_consumers = self._counter(
            "slow_consumers", "Connections closed because they did not read fast enough."
        )
        self.recent_slow_clients = self._gauge(
            "recent_slow_clients",
            "Different clients of which a connection was closed in the last 5 minutes because it did not read fast enough.",
        )
        self.connections_behind = self._gauge(
            "connections_behind", "Connections that have not taken all that they were sent."
        )
        self.outbox_depth = self._spread(
            "outbox_depth_messages",
            "Messages that wait for one connection that is behind: of each of them, at every look (twice a second).",
            _DEPTH,
        )
        self.max_outbox_bytes = self._gauge("max_outbox_bytes", "Bytes that this node may hold for its peers.")
        self.outbox_messages = self._level("outbox_messages", "Messages waiting in all outboxes of this node.")
        self.outbox_bytes = self._gauge(
            "outbox_bytes",
            "Bytes that this node holds for its peers: in outboxes, in transports, of messages that have come in part or wait, "
            "of request bodies.",
        )

        self.outbox_used_ratio = self._gauge(
            "outbox_used_ratio",
            "How full the bytes for peers are: the share of `outbox.node_bytes` in use, or of its own part the fullest tenant's, "
            "whichever is greater. At 1, clients that do not read are closed and large replies are refused.",
        )

        self.publishes = self._tallies("publishes", "Publishes, by delivery class and outcome.", "delivery", "outcome")
        for delivery in _DELIVERIES:
            _start(self.publishes, ("accepted", "duplicate", "refused"), delivery)
        self.publish_seconds = self._spread(
            "publish_seconds", "Time of one publish through the contract's gate and the broker.", _LATENCY
        )
        self.delivery_seconds = self._spread(
            "publish_to_write_seconds", "Time from accepting an event to writing it to a subscriber.", _LATENCY
        )
        self.native_sends = self._tallies(
            "native_sends",
            "Frames written to members by the native sender, by whether the kernel took all of it at once.",
            "outcome",
        )
        self.sent_natively = (self.native_sends.labels("whole"), self.native_sends.labels("short"))
        self.fanout = self._spread("fanout_members", "Connections that one event was delivered to.", _MEMBERS)

        self.subscriptions = self._level("subscriptions", "Subscriptions of all connections of this node.")
        self.channels = self._level("channels", "Channels with a subscriber on this node.")
        self.resumes = self._tallies("resumes", "Subscribes, by what came of the position they gave.", "outcome")
        _start(self.resumes, ("recovered", "gap", "fresh"))
        self.resumed_events = self._counter("resumed_events", "Missed events replayed to resuming clients.")
        self.resume_events = self._spread(
            "resume_events", "Missed events replayed to one resuming subscription.", _EVENTS
        )
        self.interruptions = self._counter(
            "interruptions", "Times that the broker told of events that may not have been delivered to this node."
        )
        self.gaps = self._tallies("gaps", "Gaps found between this node and a stream, by how.", "cause")
        _start(self.gaps, ("jump", "interruption", "check"))
        self.repairs = self._tallies("repairs", "Gaps closed from the stream, or announced to subscribers.", "outcome")
        _start(self.repairs, ("repaired", "announced"))
        self.repaired_events = self._counter("repaired_events", "Events read from streams to close gaps.")
        self.repair_failures = self._counter(
            "repair_failures", "Tries to read a stream that the broker did not answer."
        )
        self.epoch_changes = self._counter("epoch_changes", "Streams found to have started anew.")
        self.repeats = self._counter("repeats", "Events delivered to this node again, and dropped.")
        self.presence_events = self._tallies("presence_events", "Presence events told to channels, by kind.", "kind")
        _start(self.presence_events, ("joined", "left", "count"))
        self.presence_reentered = self._counter(
            "presence_reentered", "Entries of this node in presence that the store had lost, and that were made again."
        )

        self.rate_limited = self._tallies(
            "rate_limited",
            "Messages, subscribes, upgrades and requests of the backend API above a rate, by its scope.",
            "scope",
        )
        _start(self.rate_limited, _RATES)
        self.limit_hits = self._tallies(
            "limit_hits", "Times that a bound or deadline was reached, by its name.", "limit"
        )
        _start(self.limit_hits, _LIMITS)
        self.accept_rate = self._gauge(
            "accept_rate",
            "Upgrades a second that this node accepts: the setting, or less while its event loop is late.",
        )
        self.caps_unshared = self._counter(
            "caps_unshared", "Connections let in by the caps of this node alone, because the shared store was away."
        )

        self.api_requests = self._tallies(
            "api_requests", "HTTP requests, by route template, method and status.", "route", "method", "status"
        )
        self.api_seconds = self._histogram(
            "api_seconds", "Time of one HTTP request, by route template.", _LATENCY, "route"
        )

        self.broker_seconds = self._histogram(
            "broker_seconds",
            "Time of a call of the broker with every try that it took, of one call in eight.",
            _LATENCY,
        )
        self.broker_lag = self._spread(
            "broker_lag_seconds",
            "Time that the broker takes to answer a ping behind the messages that are on their way to this node.",
            _LATENCY,
        )
        self.broker_clock_skew = self._gauge(
            "broker_clock_skew_seconds",
            "Seconds by which this node's clock is ahead of the broker's; below 0: behind it. 0 with `memory://`.",
        )
        self.broker_queue = self._gauge("broker_queue", "Calls that wait for the broker.")
        self.broker_subscriptions = self._gauge(
            "broker_subscriptions", "Channels that the broker delivers to this node."
        )
        self.broker_empty = self._gauge(
            "broker_empty_channels",
            "Channels in which nothing has been published whose position this node keeps at the broker, as they are subscribed.",
        )
        self.broker_reconnects = self._tallies(
            "broker_reconnects", "Connections to the broker that were lost, by what they are for.", "line"
        )
        _start(self.broker_reconnects, ("commands", "messages"))
        self.broker_errors = self._tallies("broker_errors", "Calls that the broker refused, by its answer.", "reply")
        self.broker_up = self._gauge("broker_up", "1 while the broker answers, else 0.")
        self.broker_channels = self._gauge("broker_channels", "Channels that the in-memory broker keeps.")
        self.broker_events = self._gauge("broker_events", "Events that the in-memory broker keeps.")
        self.broker_bytes = self._gauge("broker_bytes", "Bytes of the events that the in-memory broker keeps.")

        self.nodes = self._gauge("nodes", "Nodes that share the broker and are alive, this one too.")
        self.revocations = self._gauge("revocations", "Revoked users and tokens that this node knows of.")
        self.control_commands = self._tallies(
            "control_commands", "Commands to all nodes that this one has carried out, by kind.", "kind"
        )
        _start(self.control_commands, ("disconnect", "unsubscribe", "close"))
        self.control_readings = self._counter(
            "control_readings", "Times that this node read what it may have missed of the other nodes' words."
        )

        self.reconnects_asked = self._tallies(
            "reconnects_asked",
            "Clients told to come back and closed with 1012, by the reason that they were given.",
            "reason",
        )
        _start(self.reconnects_asked, ("shutdown", "age", "rebalance"))
        self.rebalance_surplus = self._gauge(
            "rebalance_surplus", "Connections that this node has above the nodes' mean and the margin."
        )
        self.draining = self._gauge("draining", "1 while this node drains, else 0.")
        self.drain_left = self._gauge("drain_left", "Connections that a draining node still has; else 0.")
        self.drain_timeouts = self._counter(
            "drain_timeouts", "Drains that did not end in time, after which connections were cut."
        )
        self.drain_cut = self._counter(
            "drain_cut_connections", "Connections cut because they were left when `deadlines.shutdown` was over."
        )
        self.probe_seconds = self._spread(
            "probe_seconds",
            "Time from publishing an event of the node's own to its echo by a client of the node's own.",
            _PROBE,
        )
        self.probe_failures = self._tallies(
            "probe_failures", "Events of the probe that were not echoed in time, by why.", "reason"
        )
        _start(self.probe_failures, ("timeout", "subscribe", "publish", "connection", "fault"))
        self.probe_success = self._gauge(
            "probe_last_success_timestamp_seconds",
            "When the probe succeeded last, or began, in Unix time; 0 where there is none.",
        )

        self.ready = self._gauge("ready", "1 while this node takes new connections, as `/readyz` tells it, else 0.")
        self.tasks_died = self._tallies(
            "supervised_task_deaths", "Supervised tasks that ended unasked, by task.", "task"
        )
        self.metric_errors = self._tallies(
            "metric_errors",
            "Times that a metric could not be counted or exported, by its name; nothing else fails then.",
            "metric",
        )
        self.metric_errors.labels("api_requests")  # from the start, or its first increase would not be seen
        self.registry.errors = self.metric_errors
        self.log_dropped = Mirror(
            "tidewire_log_records_dropped",
            "Log records that were dropped: no room in the queue, not written, or not renderable.",
            "reason",
            log.dropped,
            self.registry,
        )
        self.log_queue = self._gauge("log_queue_bytes", "Bytes of log records that wait to be written.")
        self.log_queue.set_function(log.waiting_bytes)
        self.loop_lag = self._histogram("loop_lag_seconds", "How late the event loop calls back.", _LAG)
        self.loop_lag_max = self._gauge("loop_lag_max_seconds", "The event loop's greatest lag in the last 15 seconds.")
        self.gc_pause = self._histogram("gc_pause_seconds", "Time of one garbage collection.", _PAUSE, "generation")
        self.start_memory = self._gauge(
            "start_memory_bytes", "Resident memory at the moment at which it began to serve."
        )
        self.open_fds = self._gauge("open_fds", "File descriptors in use.")
        self.open_fds.set_function(open_files)
        self.max_fds = self._gauge("max_fds", "File descriptors that this process may have.")
        self.max_fds.set_function(max_files)
        ProcessCollector(registry=self.registry)  # process_*: CPU seconds, resident memory, start time
        self.info = Info("tidewire_build", "What is running.", registry=self.registry)
        self.version = _version()
        self.info.info({"version": self.version, "python": platform.python_version()})

        self._in: dict[str, Traffic] = {}
        self._out: dict[str, Traffic] = {}

    def event_type(self, type_: str) -> str:
        """The type as a label: itself if it is declared, else "other"."""
        return type_ if type_ in self._event_types else OTHER

    def in_(self, type_: str) -> Traffic:
        """Counters of messages and bytes received with this type. Cached: `.labels()` is too slow for every message."""
        return self._in.get(type_) or self._traffic(self._in, type_, self.messages_in, self.bytes_in)

    def out(self, type_: str) -> Traffic:
        """Counters of messages and bytes written with this type. Cached as in `in_`."""
        return self._out.get(type_) or self._traffic(self._out, type_, self.messages_out, self.bytes_out)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Counts an exception of the block, which only measures, and goes on: whoever is measured is answered all the same."""
        try:
            yield
        except Exception:
            self.metric_errors.labels(name).inc()

    def render(self) -> bytes:
        """All metrics in Prometheus' text format. One that fails is left out and counted."""
        return b"".join(self.registry.rendered())

    def _traffic(
        self, cache: dict[str, Traffic], type_: str, messages: FastCounterFamily, size: FastCounterFamily
    ) -> Traffic:
        label = self.event_type(type_)  # the cache is keyed by labels, so what clients make up does not fill it
        if label not in cache:
            cache[label] = (messages.labels(label), size.labels(label))
        return cache[label]

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"tidewire_{name}", text, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(f"tidewire_{name}", text, registry=self.registry)

    def _tallies(self, name: str, text: str, *labels: str) -> FastCounterFamily:
        return FastCounterFamily(f"tidewire_{name}", text, labels, self.registry)

    def _level(self, name: str, text: str) -> FastGauge:
        return FastGauge(f"tidewire_{name}", text, self.registry)

    def _spread(self, name: str, text: str, buckets: tuple[float, ...]) -> FastHistogram:
        return FastHistogram(f"tidewire_{name}", text, buckets, self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"tidewire_{name}", text, labels, buckets=buckets, registry=self.registry)


class _Registry(CollectorRegistry):
    """A registry of which each collector is rendered by itself, so that a broken one takes no other with it."""

    errors: FastCounterFamily
    """Counts what failed, by the metric's name."""

    def __init__(self) -> None:
        super().__init__()
        self._collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """See CollectorRegistry."""
        super().register(collector)
        self._collectors.append(collector)

    def rendered(self) -> Iterator[bytes]:
        """The text of each; that of the failures comes last."""
        for collector in self._collectors:
            if collector is self.errors:
                continue
            try:
                yield generate_latest(_Family(collector))
            except Exception:
                self.errors.labels(_name(collector)).inc()
        yield generate_latest(_Family(self.errors))


class _Family:
    """The metrics of one collector less their `_created` samples: a third more lines that no rule or dashboard reads."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        for metric in self._collector.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _name(collector: Collector) -> str:
    """The metric's own name, or what it is."""
    return str(getattr(collector, "name", None) or getattr(collector, "_name", None) or type(collector).__name__)


def _start(counter: FastCounterFamily, values: Iterable[str], *before: str) -> None:
    for value in values:
        counter.labels(*before, value)


def resident_memory() -> float:
    """Bytes of this process that are in memory; NaN where the system does not tell."""
    try:
        return float(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return nan


def open_files() -> float:
    """Descriptors in use; NaN where the system does not tell."""
    try:
        # Since Linux 6.2 the directory's size is their number; listing 15 000 of them takes milliseconds.
        return float(_FDS.stat().st_size or len(os.listdir(_FDS)))  # noqa: PTH208  # no objects wanted, only their number
    except OSError:  # not Linux, or no descriptor left to read it with
        return nan


def max_files() -> float:
    """Descriptors that this process may have: the soft limit, inf for any number; NaN where the system does not tell."""
    if sys.platform == "win32":
        return nan
    import resource  # there is none on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else float(soft)


def _version() -> str:
    try:
        return version("tidewire-server")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
