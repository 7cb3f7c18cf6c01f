"""Metrics of a node: its broker, the other nodes, its lifecycle, its process."""

from __future__ import annotations

import platform

from prometheus_client import Info, ProcessCollector

from service.telemetry import log, process
from service.telemetry.fast_metrics import Mirror
from service.telemetry.metrics.registry import LATENCY_BUCKETS, MetricFactory, start_at_zero

_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_PROBE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Objectives are told in these: to move one breaks them."""
_PAUSE = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


class BrokerMetrics:
    """Calls of the broker, and its connections."""

    def __init__(self, make: MetricFactory) -> None:
        self.broker_seconds = make.histogram(
            "broker_seconds",
            "Time of a call of the broker with every try that it took, of one call in eight.",
            LATENCY_BUCKETS,
        )
        self.broker_lag_seconds = make.fast_histogram(
            "broker_lag_seconds",
            "Time that the broker takes to answer a ping behind the messages that are on their way to this node.",
            LATENCY_BUCKETS,
        )
        self.broker_clock_skew_seconds = make.gauge(
            "broker_clock_skew_seconds",
            "Seconds by which this node's clock is ahead of the broker's; below 0: behind it. 0 with `memory://`.",
        )
        self.broker_queue = make.gauge("broker_queue", "Calls that wait for the broker.")
        self.broker_subscriptions = make.gauge(
            "broker_subscriptions", "Channels that the broker delivers to this node."
        )
        self.broker_empty_channels = make.gauge(
            "broker_empty_channels",
            "Channels in which nothing has been published whose position this node keeps at the broker, as they are subscribed.",
        )
        self.broker_reconnects = make.fast_counters(
            "broker_reconnects", "Connections to the broker that were lost, by what they are for.", "line"
        )
        start_at_zero(self.broker_reconnects, ("commands", "messages"))
        self.broker_errors = make.fast_counters(
            "broker_errors", "Calls that the broker refused, by its answer.", "reply"
        )
        self.broker_up = make.gauge("broker_up", "1 while the broker answers, else 0.")


class MemoryBrokerMetrics:
    """What the in-memory broker keeps."""

    def __init__(self, make: MetricFactory) -> None:
        self.broker_channels = make.gauge("broker_channels", "Channels that the in-memory broker keeps.")
        self.broker_events = make.gauge("broker_events", "Events that the in-memory broker keeps.")
        self.broker_bytes = make.gauge("broker_bytes", "Bytes of the events that the in-memory broker keeps.")


class ClusterMetrics:
    """The nodes that share the broker, and what they send each other."""

    def __init__(self, make: MetricFactory) -> None:
        self.nodes = make.gauge("nodes", "Nodes that share the broker and are alive, this one too.")
        self.revocations = make.gauge("revocations", "Revoked users and tokens that this node knows of.")
        self.control_commands = make.fast_counters(
            "control_commands", "Commands to all nodes that this one has carried out, by kind.", "kind"
        )
        start_at_zero(self.control_commands, ("disconnect", "unsubscribe", "close"))
        self.control_readings = make.counter(
            "control_readings", "Times that this node read what it may have missed of the other nodes' words."
        )


class LifecycleMetrics:
    """Readiness, drain and scheduled reconnects."""

    def __init__(self, make: MetricFactory) -> None:
        self.reconnects_asked = make.fast_counters(
            "reconnects_asked",
            "Clients told to come back and closed with 1012, by the reason that they were given.",
            "reason",
        )
        start_at_zero(self.reconnects_asked, ("shutdown", "age", "rebalance"))
        self.rebalance_surplus = make.gauge(
            "rebalance_surplus", "Connections that this node has above the nodes' mean and the margin."
        )
        self.draining = make.gauge("draining", "1 while this node drains, else 0.")
        self.drain_left = make.gauge("drain_left", "Connections that a draining node still has; else 0.")
        self.drain_timeouts = make.counter(
            "drain_timeouts", "Drains that did not end in time, after which connections were cut."
        )
        self.drain_cut_connections = make.counter(
            "drain_cut_connections", "Connections cut because they were left when `deadlines.shutdown` was over."
        )
        self.ready = make.gauge("ready", "1 while this node takes new connections, as `/readyz` tells it, else 0.")


class ProbeMetrics:
    """The latency probe."""

    def __init__(self, make: MetricFactory) -> None:
        self.probe_seconds = make.fast_histogram(
            "probe_seconds",
            "Time from publishing an event of the node's own to its echo by a client of the node's own.",
            _PROBE,
        )
        self.probe_failures = make.fast_counters(
            "probe_failures", "Events of the probe that were not echoed in time, by why.", "reason"
        )
        start_at_zero(self.probe_failures, ("timeout", "subscribe", "publish", "connection", "fault"))
        self.probe_last_success_timestamp_seconds = make.gauge(
            "probe_last_success_timestamp_seconds",
            "When the probe succeeded last, or began, in Unix time; 0 where there is none.",
        )


class ProcessMetrics:
    """The process: event loop, garbage collection, memory, files, logs."""

    def __init__(self, make: MetricFactory) -> None:
        self.supervised_task_deaths = make.fast_counters(
            "supervised_task_deaths", "Supervised tasks that ended unasked, by task.", "task"
        )
        self.log_records_dropped = Mirror(
            "tidewire_log_records_dropped",
            "Log records that were dropped: no room in the queue, not written, or not renderable.",
            "reason",
            log.dropped,
            make.registry,
        )
        self.log_queue_bytes = make.gauge("log_queue_bytes", "Bytes of log records that wait to be written.")
        self.log_queue_bytes.set_function(log.waiting_bytes)
        self.loop_lag_seconds = make.histogram("loop_lag_seconds", "How late the event loop calls back.", _LAG)
        self.loop_lag_max_seconds = make.gauge(
            "loop_lag_max_seconds", "The event loop's greatest lag in the last 15 seconds."
        )
        self.gc_pause_seconds = make.histogram(
            "gc_pause_seconds", "Time of one garbage collection.", _PAUSE, "generation"
        )
        self.start_memory_bytes = make.gauge(
            "start_memory_bytes", "Resident memory at the moment at which it began to serve."
        )
        self.open_fds = make.gauge("open_fds", "File descriptors in use.")
        self.open_fds.set_function(process.open_files)
        self.max_fds = make.gauge("max_fds", "File descriptors that this process may have.")
        self.max_fds.set_function(process.max_files)
        ProcessCollector(registry=make.registry)  # process_*: CPU seconds, resident memory, start time
        self.build = Info("tidewire_build", "What is running.", registry=make.registry)
        self.build.info({"version": process.version(), "python": platform.python_version()})

    def count_task_death(self, task: str) -> None:
        """Counts a supervised task that ended unasked."""
        self.supervised_task_deaths.labels(task=task).inc()
