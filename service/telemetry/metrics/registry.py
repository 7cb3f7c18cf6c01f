"""The registry of a service's metrics, and the factory of the metrics in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.telemetry.fast_metrics import FastCounterFamily, FastGauge, FastHistogram

LATENCY_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds."""


class Registry(CollectorRegistry):
    """Renders each collector by itself, so that a broken one does not break the others."""

    errors: FastCounterFamily
    """Counts failures to render, by metric."""

    def __init__(self) -> None:
        super().__init__()
        self._collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Registers a collector."""
        super().register(collector)
        self._collectors.append(collector)

    def rendered(self) -> Iterator[bytes]:
        """The text of each collector; the failures come last."""
        for collector in self._collectors:
            if collector is self.errors:
                continue
            try:
                yield generate_latest(_Family(collector))
            except Exception:
                self.errors.labels(_name(collector)).inc()
        yield generate_latest(_Family(self.errors))


class _Family:
    """The metrics of one collector without `_created` samples, which no rule or dashboard reads."""

    def __init__(self, collector: Collector) -> None:
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        for metric in self._collector.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


def _name(collector: Collector) -> str:
    """The name of the metric, or else of its class."""
    return str(getattr(collector, "name", None) or getattr(collector, "_name", None) or type(collector).__name__)


class MetricFactory:
    """Makes metrics whose exported names begin with `tidewire_`, in one registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry

    def counter(self, name: str, text: str) -> Counter:
        """A counter without labels, for rare events."""
        return Counter(f"tidewire_{name}", text, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A gauge that is set, or read from a function."""
        return Gauge(f"tidewire_{name}", text, labels, registry=self.registry)

    def histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        """A histogram with labels, for rare events."""
        return Histogram(f"tidewire_{name}", text, labels, buckets=buckets, registry=self.registry)

    def fast_counters(self, name: str, text: str, *labels: str) -> FastCounterFamily:
        """Counters by labels, for the hot path."""
        return FastCounterFamily(f"tidewire_{name}", text, labels, self.registry)

    def fast_gauge(self, name: str, text: str) -> FastGauge:
        """A gauge that goes up and down by one, for the hot path."""
        return FastGauge(f"tidewire_{name}", text, self.registry)

    def fast_histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> FastHistogram:
        """A histogram without labels, for the hot path."""
        return FastHistogram(f"tidewire_{name}", text, buckets, self.registry)


def start_at_zero(counter: FastCounterFamily, values: Iterable[str], *before: str) -> None:
    """Exports the counter with each value of its last label from the start, so that an alert on it does not get an
    empty vector.

    `before` are the values of the labels before the last.
    """
    for value in values:
        counter.labels(*before, value)
