"""The arithmetic: from samples to medians, pairs and targets. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from benchmarks.cases import Unit

UNSURE = 0.05
"""How likely an interval may be to miss what it is of."""


@dataclass(slots=True)
class Sample:
    """One measurement, as it was made."""

    workload: str
    case: str
    peer: str
    round: int
    connections: int
    cpu: float = 0.0
    """Seconds of processor time of the server in the measured phase."""
    rss_alone: int = 0
    """Bytes of the server before the first connection."""
    rss: int = 0
    """Bytes of the server with all connections, at the end of the phase."""
    report: dict[str, Any] = field(default_factory=dict)
    """What the load client says (`c/JOB.md`)."""
    vitals: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """What the server says of itself, `before` the measured phase and `during` it, as `longest` does. If any are `active`."""
    failure: str | None = None
    """Why there are no figures."""
    took: float = 0.0
    """Seconds, all in all."""

    @property
    def lost(self) -> int:
        """Deliveries that did not come."""
        return int(self.report.get("lost", 0))

    def units(self, unit: Unit) -> float:
        """What its processor time is divided by."""
        if unit == "delivery":
            return float(self.report.get("deliveries", 0))
        if unit == "publish":
            return float(self.report.get("publishes", 0))
        if unit == "connection":
            return float(self.connections)
        return self.connections * float(self.report.get("seconds", 0.0))

    def cost(self, unit: Unit) -> float | None:
        """Microseconds of the server's processor time for one; None where nothing was measured."""
        units = self.units(unit)
        if self.failure is not None or units <= 0:
            return None
        return self.cpu * 1e6 / units


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    low: float
    high: float
    rounds: int
    interval: tuple[float, float] | None = field(default=None, compare=False)
    """What the median lies between in 95 of 100 runs, or more; None with too few rounds to tell."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None of no values."""
        found = sorted(values)
        if not found:
            return None
        return cls(statistics.median(found), found[0], found[-1], len(found), _interval(found))

    def over(self, unit: float) -> Spread:
        """The same, counted in another unit."""
        return Spread(self.median / unit, self.low / unit, self.high / unit, self.rounds)

    def json(self) -> dict[str, Any]:
        """With as many digits as mean something."""
        return {
            "median": digits(self.median),
            "low": digits(self.low),
            "high": digits(self.high),
            "rounds": self.rounds,
            **({} if self.interval is None else {"interval": [digits(end) for end in self.interval]}),
        }


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Of the median, by order statistics: whatever the values are distributed like. `values` are in order."""
    count = len(values)
    left_out, chance = -1, 0.0
    while 2 * (chance := chance + math.comb(count, left_out + 1) / 2**count) <= UNSURE:
        left_out += 1
    return None if left_out < 0 else (values[left_out], values[count - 1 - left_out])


Counts: TypeAlias = Mapping[str, Mapping[float, float]]
"""By name of what is watched: how often it has lasted at most so many seconds, since the server started."""


def longest(earlier: Counts, later: Counts) -> dict[str, float | None]:
    """By name: a bound in seconds that nothing between the two looks has exceeded; 0 if there was nothing, None if no bound is
    great enough."""
    found: dict[str, float | None] = {}
    for name, counts in later.items():
        # Counts include those of all lower bounds: what has lasted longer than a bound is what the last count has more.
        since = {bound: count - earlier.get(name, {}).get(bound, 0.0) for bound, count in sorted(counts.items())}
        every = max(since.values(), default=0.0)
        bound = next((bound for bound, count in since.items() if count == every), 0.0) if every else 0.0
        found[name] = None if math.isinf(bound) else bound
    return found


def digits(value: float) -> float:
    """Four of them."""
    return float(f"{value:.4g}")


class Figures:
    """All samples of a run, asked for what they say."""

    def __init__(self, samples: Sequence[Sample], units: Mapping[str, Unit]) -> None:
        self.samples = samples
        self._units = units

    def of(self, workload: str, peer: str, case: str | None = None) -> list[Sample]:
        """Of one peer in one case (the workload's only one, if none is named), by round."""
        found = [s for s in self.samples if (s.workload, s.peer) == (workload, peer) and s.case == (case or workload)]
        return sorted(found, key=lambda sample: sample.round)

    def cost(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Microseconds a unit."""
        return Spread.of(self._costs(workload, peer, case).values())

    def ratio(
        self, workload: str, peer: str, other: str, case: str | None = None, other_case: str | None = None
    ) -> Spread | None:
        """How many times cheaper `peer` is than `other`: the other's cost ÷ the peer's, each in the same round."""
        ours, theirs = self._costs(workload, peer, case), self._costs(workload, other, other_case or case)
        return Spread.of(theirs[r] / ours[r] for r in ours.keys() & theirs.keys() if ours[r] > 0)

    def extra(self, workload: str, peer: str, case: str, over: str) -> Spread | None:
        """Microseconds that a unit costs more in `case` than in the case `over`, in the same round each."""
        more, less = self._costs(workload, peer, case), self._costs(workload, peer, over)
        return Spread.of(more[r] - less[r] for r in more.keys() & less.keys())

    def latency(self, workload: str, peer: str, percentile: str, case: str | None = None) -> Spread | None:
        """Microseconds; `percentile` as the load client names it."""
        return self._each(workload, peer, case, lambda sample: sample.report["latency_us"][percentile])

    def throughput(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Deliveries a second of wall time."""
        return self._each(workload, peer, case, lambda sample: sample.report["deliveries_per_second"])

    def joined(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Events in one frame."""
        return self._each(
            workload,
            peer,
            case,
            lambda sample: (
                sample.report["deliveries"] / sample.report["frames_in"] if sample.report["frames_in"] else 0
            ),
        )

    def memory(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Bytes a connection: what the server has grown by with all of them."""
        return self._each(workload, peer, case, lambda sample: (sample.rss - sample.rss_alone) / sample.connections)

    def seconds(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Of wall time, of the measured phase."""
        return self._each(workload, peer, case, lambda sample: sample.report["seconds"])

    def share(self, workload: str, peer: str, case: str | None = None) -> Spread | None:
        """Per cent of a core that it took in the measured phase."""
        return self._each(
            workload, peer, case, lambda sample: 100 * sample.cpu / (sample.report["seconds"] or math.inf)
        )

    def lost(self, workload: str, peer: str, case: str | None = None) -> int:
        """Deliveries that did not come, over all rounds."""
        return sum(sample.lost for sample in self.of(workload, peer, case))

    def slow_closed(self, workload: str, peer: str, case: str | None = None) -> int:
        """Connections that had stopped reading and that the server closed, over all rounds."""
        return sum(s.report["slow"]["closed"] for s in self.of(workload, peer, case) if s.failure is None)

    def failures(self, workload: str, peer: str, case: str | None = None) -> list[str]:
        """Why rounds have no figures, each reason once."""
        return list(dict.fromkeys(s.failure for s in self.of(workload, peer, case) if s.failure is not None))

    def _costs(self, workload: str, peer: str, case: str | None) -> dict[int, float]:
        costs = ((sample.round, sample.cost(self._units[workload])) for sample in self.of(workload, peer, case))
        return {number: cost for number, cost in costs if cost is not None}

    def _each(self, workload: str, peer: str, case: str | None, figure: Callable[[Sample], float]) -> Spread | None:
        return Spread.of(figure(s) for s in self.of(workload, peer, case) if s.failure is None)
