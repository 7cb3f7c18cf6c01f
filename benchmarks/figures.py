"""Statistics: medians, paired ratios and intervals of samples. No I/O."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.cases import Unit

UNSURE = 0.05
"""Maximum probability that an interval misses the median."""


@dataclass(slots=True)
class Sample:
    """One measurement."""

    workload: str
    case: str
    peer: str
    round: int
    connections: int
    cpu: float = 0.0
    """CPU seconds of the server in the measured phase."""
    rss_alone: int = 0
    """Resident bytes of the server before the first connection."""
    rss: int = 0
    """Resident bytes of the server with all connections, at the end of the phase."""
    report: dict[str, Any] = field(default_factory=dict)
    """The report of the load client (`c/JOB.md`)."""
    vitals: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """The server's own metrics `before` and `during` the measured phase, as from `longest`."""
    failure: str | None = None
    """The reason why there are no figures."""
    took: float = 0.0
    """Total seconds."""

    @property
    def lost(self) -> int:
        """Lost deliveries."""
        return int(self.report.get("lost", 0))

    def units(self, unit: Unit) -> float:
        """The unit of which the cost is measured."""
        if unit == "delivery":
            return float(self.report.get("deliveries", 0))
        if unit == "publish":
            return float(self.report.get("publishes", 0))
        if unit == "connection":
            return float(self.connections)
        return self.connections * float(self.report.get("seconds", 0.0))

    def cost(self, unit: Unit) -> float | None:
        """CPU microseconds of the server for one unit; None if nothing was measured."""
        units = self.units(unit)
        if self.failure is not None or units <= 0:
            return None
        return self.cpu * 1e6 / units


@dataclass(frozen=True, slots=True)
class Spread:
    """A value over all rounds: median, lowest, highest."""

    median: float
    low: float
    high: float
    rounds: int
    interval: tuple[float, float] | None = field(default=None, compare=False)
    """The 95 % confidence interval of the median; None with too few rounds."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Returns None without values."""
        found = sorted(values)
        if not found:
            return None
        return cls(statistics.median(found), found[0], found[-1], len(found), _interval(found))

    def over(self, unit: float) -> Spread:
        """Returns the spread divided by a unit."""
        return Spread(self.median / unit, self.low / unit, self.high / unit, self.rounds)

    def json(self) -> dict[str, Any]:
        """Returns the values with significant digits only."""
        return {
            "median": digits(self.median),
            "low": digits(self.low),
            "high": digits(self.high),
            "rounds": self.rounds,
            **({} if self.interval is None else {"interval": [digits(end) for end in self.interval]}),
        }


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns the interval of the median by order statistics, for any distribution. `values` are sorted."""
    count = len(values)
    left_out, chance = -1, 0.0
    while 2 * (chance := chance + math.comb(count, left_out + 1) / 2**count) <= UNSURE:
        left_out += 1
    return None if left_out < 0 else (values[left_out], values[count - 1 - left_out])


Counts: TypeAlias = Mapping[str, Mapping[float, float]]
"""Histogram buckets by metric: the number of observations up to each bound in seconds since the server started."""


def longest(earlier: Counts, later: Counts) -> dict[str, float | None]:
    """Returns by name the smallest bound in seconds above all observations between two samples.

    0 without observations; None if no bound is large enough.
    """
    found: dict[str, float | None] = {}
    for name, counts in later.items():
        # Counts include those of all lower bounds: what has lasted longer than a bound is what the last count has more.
        since = {bound: count - earlier.get(name, {}).get(bound, 0.0) for bound, count in sorted(counts.items())}
        every = max(since.values(), default=0.0)
        bound = next((bound for bound, count in since.items() if count == every), 0.0) if every else 0.0
        found[name] = None if math.isinf(bound) else bound
    return found


def digits(value: float) -> float:
    """Rounds to four significant digits."""
    return float(f"{value:.4g}")


class Figures:
    """The statistics of all samples of a run."""

    def __init__(self, samples: Sequence[Sample], units: Mapping[str, Unit]) -> None:
        self.samples = samples
        self._units = units

    def of(self, workload: str, peer: str, case: str | None = None) -> list[Sample]:
        """Returns the samples of a peer in a case (default: the only one), by round."""
        found = [s for s in self.samples if (s.workload, s.peer) == (workload, peer) and s.case == (case or workload)]
        return sorted(found, key=lambda sample: sample.round)

    def cost(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """CPU microseconds of a unit."""
        return Spread.of(self._costs(workload, peer, case).values())

    def ratio(
        self, workload: str, peer: str, other: str, case: str | None = None, other_case: str | None = None
    ) -> Spread | None:
        """Returns the cost of `other` ÷ the cost of `peer`, each pair in the same round."""
        ours, theirs = self._costs(workload, peer, case), self._costs(workload, other, other_case or case)
        return Spread.of(theirs[r] / ours[r] for r in ours.keys() & theirs.keys() if ours[r] > 0)

    def extra(self, workload: str, peer: str, case: str, over: str) -> Spread | None:
        """Returns the extra microseconds of a unit in `case` compared with the case `over`, each pair in the same round."""
        more, less = self._costs(workload, peer, case), self._costs(workload, peer, over)
        return Spread.of(more[r] - less[r] for r in more.keys() & less.keys())

    def latency(self, workload: str, peer: str, percentile: str, case: str | None = None) -> Spread | None:
        """Returns the latency in microseconds; `percentile` as the load client names it."""
        return self._each(workload, peer, case, lambda sample: sample.report["latency_us"][percentile])

    def throughput(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Deliveries a second of wall time."""
        return self._each(workload, peer, case, lambda sample: sample.report["deliveries_per_second"])

    def joined(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Events in a frame."""
        return self._each(
            workload,
            peer,
            case,
            lambda sample: (
                sample.report["deliveries"] / sample.report["frames_in"] if sample.report["frames_in"] else 0
            ),
        )

    def memory(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Bytes of a connection: the growth of the server divided by all connections."""
        return self._each(workload, peer, case, lambda sample: (sample.rss - sample.rss_alone) / sample.connections)

    def seconds(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Wall seconds of the measured phase."""
        return self._each(workload, peer, case, lambda sample: sample.report["seconds"])

    def share(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Per cent of a core in the measured phase."""
        return self._each(
            workload, peer, case, lambda sample: 100 * sample.cpu / (sample.report["seconds"] or math.inf)
        )

    def lost(self, workload: str, peer: str, case: str | None = None) -> int:
        """Lost deliveries of all rounds."""
        return sum(sample.lost for sample in self.of(workload, peer, case))

    def slow_closed(self, workload: str, peer: str, case: str | None = None) -> int:
        """Slow readers that the server closed, in all rounds."""
        return sum(s.report["slow"]["closed"] for s in self.of(workload, peer, case) if s.failure is None)

    def failures(self, workload: str, peer: str, case: str | None = None) -> list[str]:
        """The reasons of failed rounds, each once."""
        return list(dict.fromkeys(s.failure for s in self.of(workload, peer, case) if s.failure is not None))

    def _costs(self, workload: str, peer: str, case: str | None) -> dict[int, float]:
        costs = ((sample.round, sample.cost(self._units[workload])) for sample in self.of(workload, peer, case))
        return {number: cost for number, cost in costs if cost is not None}

    def _each(self, workload: str, peer: str, case: str | None, figure: Callable[[Sample], float]) -> Spread | None:
        return Spread.of(figure(s) for s in self.of(workload, peer, case) if s.failure is None)
