"""Counters, gauges and histograms for the hot path, on one thread.

Those of prometheus_client take a lock and search buckets one by one: 0.5 to 2 µs each, several times a message. These only add;
a scrape reads them (docs/adr/0016-own-transport.md).
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
"""Label combinations of one counter. Labels come from small sets; this limits a set that grows unexpectedly."""
OTHER = "other"
"""The value of every label above that bound."""


class FastCounter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0  # an int while all amounts are, because two ints are added faster than a float and an int

    def inc(self, amount: float = 1) -> None:
        """Adds an amount."""
        self.value += amount


class FastCounterFamily:
    """A counter with labels: a collector for a registry."""

    kind: ClassVar = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self.name = name
        self.text = text
        self.label_names = tuple(labels)
        self.children: dict[tuple[str, ...], FastCounter] = {}
        """The counters by their label values."""
        registry.register(self)

    def labels(self, *values: str, **named: str) -> FastCounter:
        """The counter with these label values, in their order or by name. Callers on the hot path keep it."""
        child = self.children.get(values)
        if child is None:
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
        """The samples for a scrape."""
        family = CounterMetricFamily(self.name, self.text, labels=self.label_names)
        for values, child in self.children.items():
            family.add_metric(values, child.value)
        yield family


class Mirror:
    """A counter with one label whose numbers are counted elsewhere, in other threads too: a collector for a registry."""

    kind: ClassVar = "counter"

    def __init__(
        self, name: str, text: str, label: str, read: Callable[[], Mapping[str, float]], registry: CollectorRegistry
    ) -> None:
        """`read` returns the numbers by label value."""
        self.name = name
        self.text = text
        self.label_names = (label,)
        self._read = read
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The samples for a scrape."""
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

    def dec(self, amount: float = 1) -> None:
        """Subtracts an amount."""
        self.value -= amount

    def collect(self) -> Iterator[Metric]:
        """The samples for a scrape."""
        yield GaugeMetricFamily(self.name, self.text, self.value)


class FastHistogram:
    """A histogram without labels: a collector for a registry. `buckets` are upper bounds in ascending order."""

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
        """Counts a value in the first bucket whose bound is not below it."""
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def observe_repeated(self, amount: float, times: int) -> None:
        """Does the same as so many calls of `observe`."""
        self._counts[bisect_left(self._bounds, amount)] += times
        self._sum += times * amount

    def collect(self) -> Iterator[Metric]:
        """The samples for a scrape."""
        cumulative, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            cumulative += count
            buckets.append((bound, float(cumulative)))
        yield HistogramMetricFamily(self.name, self.text, buckets=buckets, sum_value=self._sum)
