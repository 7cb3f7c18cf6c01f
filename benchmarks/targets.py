"""Tidewire's performance targets, and how a run is judged by them.

Ratios are paired within one run. Absolute targets are only what users notice (p99) or pay for (memory, a connection).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from benchmarks.figures import Figures, Spread

State: TypeAlias = Literal["goal met", "floor met", "missed", "not measured"]
Figure: TypeAlias = Callable[[Figures], Spread | None]

KIB = 1_024
_US = "tidewire"


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the table."""

    title: str
    floor: float
    goal: float
    figure: Figure
    workload: str
    unit: str = "×"
    less_is_better: bool = False
    case: str | None = None
    """The case whose lost deliveries count; None: all cases."""

    def state(self, figures: Figures) -> tuple[State, Spread | None, str]:
        """Returns the state of the target by the median, with a reason if needed."""
        found = self.figure(figures)
        if found is None:
            return "not measured", None, ""
        if lost := self._lost(figures):
            return "missed", found, f"{lost} deliveries lost"
        if self._reaches(found.median, self.goal):
            return "goal met", found, ""
        return ("floor met" if self._reaches(found.median, self.floor) else "missed"), found, ""

    def _reaches(self, value: float, limit: float) -> bool:
        return value <= limit if self.less_is_better else value >= limit

    def _lost(self, figures: Figures) -> int:
        """Returns Tidewire's lost deliveries, because lost work has no cost."""
        return sum(
            sample.lost
            for sample in figures.samples
            if sample.workload == self.workload and sample.peer.startswith(_US) and self.case in (None, sample.case)
        )


def _against(workload: str, peer: str) -> Figure:
    return lambda figures: figures.ratio(workload, _US, peer)


def _in(unit: float, spread: Spread | None) -> Spread | None:
    return None if spread is None else spread.over(unit)


def _rate500_against_uws(figures: Figures) -> Spread | None:
    """Returns Tidewire's p99 ÷ that of uWebSockets, which is measured in one round."""
    ours, theirs = (
        figures.latency("rate500", _US, "p99", "rate500"),
        figures.latency("rate500", "uws", "p99", "rate500"),
    )
    return None if ours is None or theirs is None else ours.over(theirs.median)


TARGETS = (
    Target("fan-out, one under way, against C", 0.85, 1.0, _against("fanout1", "limit"), "fanout1"),
    Target("… against Node ws", 1.15, 1.4, _against("fanout1", "ws"), "fanout1"),
    Target("… against Socket.IO", 1.6, 1.8, _against("fanout1", "socketio"), "fanout1"),
    Target("… against Nchan", 1.1, 1.2, _against("fanout1", "nchan"), "fanout1"),
    Target("… against Centrifugo", 1.0, 1.3, _against("fanout1", "centrifugo"), "fanout1"),
    Target("fan-out, 16 under way, against C", 8, 10, _against("fanout16", "limit"), "fanout16"),
    Target("… against Node ws", 10, 15, _against("fanout16", "ws"), "fanout16"),
    Target("… against uWebSockets", 0.9, 1.1, _against("fanout16", "uws"), "fanout16"),
    Target(
        "p99 at 500 000 deliveries/s on one core, against uWebSockets",
        1.0,
        0.75,
        _rate500_against_uws,
        "rate500",
        less_is_better=True,
        case="rate500",
    ),
    Target(
        "… in milliseconds",
        25,
        20,
        lambda figures: _in(1_000, figures.latency("rate500", _US, "p99", "rate500")),
        "rate500",
        "ms",
        less_is_better=True,
        case="rate500",
    ),
    Target("rooms, all publish, against C", 2.0, 3.0, _against("rooms", "limit"), "rooms"),
    Target("echo, a client's message, event and ack, against C", 0.17, 0.35, _against("echo", "limit"), "echo"),
    Target(
        "rooms through Redis, against without",
        0.95,
        1.0,
        lambda figures: figures.ratio("rooms_redis", "tidewire-redis", _US),
        "rooms_redis",
    ),
    Target(
        "RSS an idle authenticated connection with one subscription",
        2.5,
        1.6,
        lambda figures: _in(KIB, figures.memory("idle", _US)),
        "idle",
        "KiB",
        less_is_better=True,
    ),
    Target(
        "a connection up to its live subscription, against Centrifugo",
        1.3,
        2.5,
        lambda figures: figures.ratio("connect", _US, "centrifugo", "connect"),
        "connect",
        case="connect",
    ),
    Target("a connection in a storm, against Centrifugo", 1.0, 2.0, _against("storm", "centrifugo"), "storm"),
    Target(
        "compressed broadcast against plain",
        0.9,
        1.0,
        lambda figures: figures.ratio("compressed", _US, _US, "deflate", "plain"),
        "compressed",
    ),
    Target(
        "schema-validated publish, extra",
        3,
        1.5,
        lambda figures: figures.extra("validated", _US, "checked", "unchecked"),
        "validated",
        "µs",
        less_is_better=True,
    ),
)
"""Targets in report order."""
