"""Counters, gauges and histograms for what happens with every message, on one thread.

prometheus_client's own take a lock and search their buckets one by one: half a microsecond to two each, several times a
message. These add, and are read when somebody scrapes (docs/adr/0016-own-transport.md).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

MAX_CHILDREN = 1_000
"""Numbers of one counter. Labels are of small closed sets; should one grow all the same, the others are not to pay for it."""
OTHER = "other"
"""The value of every label of what comes beyond."""


class FastCounter:
    """One number."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Adds."""
        self.value += amount


class FastCounterFamily:
    """A counter by labels: a collector for a registry. Of the names no two may be the same in a registry."""

    kind: ClassVar = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self.name = name
        self.text = text
        self.label_names = tuple(labels)
        self.children: dict[tuple[str, ...], FastCounter] = {}
        """What there is, by the values of its labels."""
        registry.register(self)

    def labels(self, *values: str, **named: str) -> FastCounter:
        """The number with these labels, given in their order or by name; made if there is none. Where it is needed for every
        message it is kept."""
        if named:
            values = tuple(named.pop(label) for label in self.label_names)
        if named or len(values) != len(self.label_names):
            raise ValueError(f"{self.name} has the labels {', '.join(self.label_names)}")
        child = self.children.get(values)
        if child is None:
            if len(self.children) >= MAX_CHILDREN:
                values = (OTHER,) * len(values)
            child = self.children.setdefault(values, FastCounter())
        return child

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self.name, self.text, labels=self.label_names)
        for values, child in self.children.items():
            family.add_metric(values, child.value)
        yield family


class Mirror:
    """A counter with one label, of numbers that somebody else counts, from other threads too: a collector for a registry."""

    kind: ClassVar = "counter"

    def __init__(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]], registry: CollectorRegistry
    ) -> None:
        """`read` gives the numbers by the label's value."""
        self.name = name
        self.text = text
        self.label_names = (label,)
        self._read = read
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self.name, self.text, labels=self.label_names)
        for value, number in self._read().items():
            family.add_metric((value,), number)
        yield family


class FastGauge(FastCounter):
    """A gauge without labels: a collector for a registry."""

    __slots__ = ("name", "text")

    kind: ClassVar = "gauge"
    label_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        super().__init__()
        self.name = name
        self.text = text
        registry.register(self)

    def dec(self, amount: float = 1.0) -> None:
        """Takes away."""
        self.value -= amount

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield GaugeMetricFamily(self.name, self.text, self.value)


class FastHistogram:
    """A histogram without labels: a collector for a registry. `buckets` are upper bounds, rising."""

    __slots__ = ("_bounds", "_counts", "_sum", "name", "text")

    kind: ClassVar = "histogram"
    label_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, name: str, text: str, buckets: Iterable[float], registry: CollectorRegistry) -> None:
        self.name = name
        self.text = text
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, amount: float) -> None:
        """Enters one value: it counts for the first bucket whose bound is not below it."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        so_far, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        yield HistogramMetricFamily(self.name, self.text, buckets=buckets, sum_value=self._sum)
