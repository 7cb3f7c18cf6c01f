"""Metrics of a node: its broker, the other nodes, its lifecycle, its process."""

from __future__ import annotations

import platform

from prometheus_client import Info, ProcessCollector

from service.telemetry import log, process
from service.telemetry.fast_metrics import Mirror
from service.telemetry.metrics.registry import LATENCY_BUCKETS, MetricFactory, start_at_zero

_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PROBE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds. Recording rules and SLOs use these bounds: a change breaks them."""
_PAUSE = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class BrokerMetrics:
    """Calls of the broker, and its connections."""

    def __init__(self, make: MetricFactory) -> None:
        self.broker_seconds = make.histogram(
            "broker_seconds",
            "Duration of a broker call with its retries, observed for one call in eight.",
            LATENCY_BUCKETS,
        )
        self.broker_lag_seconds = make.fast_histogram(
            "broker_lag_seconds",
            "Time that the broker takes to answer a ping that is queued behind the messages to this node.",
            LATENCY_BUCKETS,
        )
        self.broker_clock_skew_seconds = make.gauge(
            "broker_clock_skew_seconds",
            "Seconds that this node's clock is ahead of the broker's; negative if it is behind. 0 with `memory://`.",
        )
        self.broker_queue = make.gauge("broker_queue", "Broker calls that wait to be sent or answered.")
        self.broker_subscriptions = make.gauge(
            "broker_subscriptions", "Channels that the broker delivers to this node."
        )
        self.broker_empty_channels = make.gauge(
            "broker_empty_channels",
            "Subscribed channels without any event, whose position this node keeps alive at the broker.",
        )
        self.broker_reconnects = make.fast_counters(
            "broker_reconnects", "Lost connections to the broker, by purpose.", "line"
        )
        start_at_zero(self.broker_reconnects, ("commands", "messages"))
        self.broker_errors = make.fast_counters(
            "broker_errors", "Broker calls that were refused, by the reply.", "reply"
        )
        self.broker_up = make.gauge("broker_up", "1 while the broker answers, else 0.")


class HookMetrics:
    """Questions to the backend. Nothing is exported for an endpoint before `start`."""

    def __init__(self, make: MetricFactory) -> None:
        self.hooks = make.fast_counters(
            "hooks", "Questions to hooks of the backend, by endpoint and outcome.", "endpoint", "outcome"
        )
        self.hook_seconds = make.histogram(
            "hook_seconds",
            "Time that a question to a hook took, with the wait for its turn.",
            LATENCY_BUCKETS,
            "endpoint",
        )
        self.hooks_waiting = make.gauge("hooks_waiting", "Questions to hooks that have no answer yet.", "endpoint")
        self.hook_breaker_open = make.gauge(
            "hook_breaker_open",
            "Addresses of the endpoint that are not asked for a while, because they have failed again and again.",
            "endpoint",
        )
        self.hook_sessions = make.gauge(
            "hook_sessions",
            "Open connections for which the backend has vouched, and is asked again before they expire.",
        )
        self.hook_subscriptions = make.gauge(
            "hook_subscriptions",
            "Subscriptions that the backend is asked about again and again (`recheck` in the contract).",
        )
        self.hook_answers = make.gauge(
            "hook_answers",
            "Remembered answers of the backend, about clients (`connect`), reads (`read`) and empty channels (`cache_empty`).",
            "kind",
        )


CALL_BUCKETS = (*LATENCY_BUCKETS, 20.0, 30.0)
"""Seconds. A call may take longer than anything else."""


class CallMetrics:
    """Calls of clients to the backend. Nothing is exported for a call before `start_at_zero`."""

    def __init__(self, make: MetricFactory) -> None:
        self.calls = make.fast_counters(
            "calls",
            "Calls of clients to the backend, by name and outcome. The backend has answered with data (`replied`), an error of "
            "its own (`failed`) or a refusal (`denied`), or has given no answer (`unanswered`). This node has refused the call "
            "(`refused`), or has ended it because the client has left or the node shuts down (`ended`).",
            "call",
            "outcome",
        )
        self.call_seconds = make.histogram(
            "call_seconds",
            "Time that a call to the backend took, with the wait for its turn, by name.",
            CALL_BUCKETS,
            "call",
        )
        self.calls_under_way = make.fast_gauge("calls_under_way", "Calls of clients that have no answer yet.")


class MemoryBrokerMetrics:
    """The size of the in-memory broker."""

    def __init__(self, make: MetricFactory) -> None:
        self.broker_channels = make.gauge("broker_channels", "Channels in the in-memory broker.")
        self.broker_events = make.gauge("broker_events", "Events in the in-memory broker.")
        self.broker_bytes = make.gauge("broker_bytes", "Bytes of the events in the in-memory broker.")


class ClusterMetrics:
    """The nodes that share the broker, and the commands between them."""

    def __init__(self, make: MetricFactory) -> None:
        self.nodes = make.gauge("nodes", "Live nodes that share the broker, including this one.")
        self.revocations = make.gauge("revocations", "Revoked users and tokens known to this node.")
        self.session_endings = make.gauge(
            "session_endings",
            "Ended sessions and subscriptions that this node remembers, so that receipts end with them.",
        )
        self.session_endings_forgotten = make.fast_counters(
            "session_endings_forgotten",
            "Endings that were forgotten early, by whose bound was reached: then older receipts of that user or tenant end.",
            "scope",
        )
        start_at_zero(self.session_endings_forgotten, ("user", "tenant"))
        self.control_commands = make.fast_counters(
            "control_commands", "Cluster commands that this node has run, by kind.", "kind"
        )
        start_at_zero(self.control_commands, ("disconnect", "subscribe", "unsubscribe", "close"))
        self.control_readings = make.counter(
            "control_readings",
            "Times that this node read a control channel again, because it may have missed messages of other nodes.",
        )


class LifecycleMetrics:
    """Readiness, drain and scheduled reconnects."""

    def __init__(self, make: MetricFactory) -> None:
        self.reconnects_asked = make.fast_counters(
            "reconnects_asked",
            "Clients told to reconnect and closed with 1012, by reason.",
            "reason",
        )
        start_at_zero(self.reconnects_asked, ("shutdown", "age", "rebalance"))
        self.rebalance_surplus = make.gauge(
            "rebalance_surplus", "Connections of this node above the mean of all nodes plus the margin."
        )
        self.draining = make.gauge("draining", "1 while this node drains, else 0.")
        self.drain_left = make.gauge("drain_left", "Connections left on this node while it drains, else 0.")
        self.drain_timeouts = make.counter(
            "drain_timeouts", "Drains that timed out; the remaining connections were cut."
        )
        self.drain_cut_connections = make.counter(
            "drain_cut_connections", "Connections cut at the end of `deadlines.shutdown`."
        )
        self.ready = make.gauge("ready", "1 while `/readyz` reports this node ready, else 0.")


class ProbeMetrics:
    """The latency probe."""

    def __init__(self, make: MetricFactory) -> None:
        self.probe_seconds = make.fast_histogram(
            "probe_seconds",
            "Time from publishing a probe event to its echo by the probe's client.",
            _PROBE,
        )
        self.probe_failures = make.fast_counters(
            "probe_failures", "Probe events that were not echoed in time, by reason.", "reason"
        )
        start_at_zero(self.probe_failures, ("timeout", "subscribe", "publish", "connection", "fault"))
        self.probe_last_success_timestamp_seconds = make.gauge(
            "probe_last_success_timestamp_seconds",
            "Unix time of the last success of the probe, or of its start; 0 without a probe.",
        )


class ProcessMetrics:
    """The process: event loop, garbage collection, memory, files, logs."""

    def __init__(self, make: MetricFactory) -> None:
        self.supervised_task_deaths = make.fast_counters(
            "supervised_task_deaths", "Supervised tasks that died, by task.", "task"
        )
        self.log_records_dropped = Mirror(
            "tidewire_log_records_dropped",
            "Log records that were dropped, by reason: the queue was full, the write failed, or rendering failed.",
            "reason",
            log.dropped,
            make.registry,
        )
        self.log_queue_bytes = make.gauge("log_queue_bytes", "Bytes of log records in the queue.")
        self.log_queue_bytes.set_function(log.waiting_bytes)
        self.loop_lag_seconds = make.histogram("loop_lag_seconds", "How late the event loop runs a callback.", _LAG)
        self.loop_lag_max_seconds = make.gauge(
            "loop_lag_max_seconds", "The event loop's greatest lag in the last 15 seconds."
        )
        self.gc_pause_seconds = make.histogram(
            "gc_pause_seconds", "Duration of a garbage collection.", _PAUSE, "generation"
        )
        self.start_memory_bytes = make.gauge(
            "start_memory_bytes", "Resident memory when the service started to listen."
        )
        self.open_fds = make.gauge("open_fds", "Open file descriptors.")
        self.open_fds.set_function(process.open_files)
        self.max_fds = make.gauge("max_fds", "Maximum number of open file descriptors.")
        self.max_fds.set_function(process.max_files)
        ProcessCollector(registry=make.registry)  # process_*: CPU seconds, resident memory, start time
        self.build = Info("tidewire_build", "Version of the service and of Python.", registry=make.registry)
        self.build.info({"version": process.version(), "python": platform.python_version()})

    def count_task_death(self, task: str) -> None:
        """Counts a supervised task that died."""
        self.supervised_task_deaths.labels(task=task).inc()
