"""Counters, gauges and histograms for what happens with every message, on one thread.

prometheus_client's own take a lock and search their buckets one by one: half a microsecond to two each, several times a
message. These add, and are read when somebody scrapes (docs/adr/0016-own-transport.md).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)


class Tally:
    """One number."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1.0) -> None:
        """Adds."""
        self.value += amount


class Tallies:
    """A counter by labels: a collector for a registry. Of the names no two may be the same in a registry."""

    def __init__(self, name: str, text: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
        self._labels = tuple(labels)
        self.children: dict[tuple[str, ...], Tally] = {}
        """What there is, by the values of its labels."""
        registry.register(self)

    def labels(self, *values: str, **named: str) -> Tally:
        """The number with these labels, given in their order or by name; made if there is none. Where it is needed for every
        message it is kept."""
        if named:
            values = tuple(named.pop(label) for label in self._labels)
        if named or len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {', '.join(self._labels)}")
        child = self.children.get(values)
        if child is None:
            child = self.children[values] = Tally()
        return child

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, child in self.children.items():
            family.add_metric(values, child.value)
        yield family


class Level(Tally):
    """A gauge without labels: a collector for a registry."""

    __slots__ = ("_name", "_text")

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        super().__init__()
        self._name = name
        self._text = text
        registry.register(self)

    def dec(self, amount: float = 1.0) -> None:
        """Takes away."""
        self.value -= amount

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield GaugeMetricFamily(self._name, self._text, self.value)


class Spread:
    """A histogram without labels: a collector for a registry. `buckets` are upper bounds, rising."""

    __slots__ = ("_bounds", "_counts", "_name", "_sum", "_text")

    def __init__(self, name: str, text: str, buckets: Iterable[float], registry: CollectorRegistry) -> None:
        self._name = name
        self._text = text
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
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)
