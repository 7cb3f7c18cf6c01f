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


def _connecting(title: str, case: str) -> tuple[Target, Target]:
    """Returns the absolute target and one relative to Node ws (182 µs on the first machine), less dependent on the machine."""
    return (
        Target(title, 120, 80, lambda figures: figures.cost("connect", _US, case), "connect", "µs", True, case),
        Target(
            "… against Node ws",
            1.5,
            2.2,
            lambda figures: figures.ratio("connect", _US, "ws", case, "connect"),
            "connect",
            case=case,
        ),
    )


TARGETS = (
    Target("fan-out, one under way, against C", 0.70, 0.85, _against("fanout1", "limit"), "fanout1"),
    Target("… against Node ws", 1.15, 1.4, _against("fanout1", "ws"), "fanout1"),
    Target("… against Socket.IO", 1.6, 1.8, _against("fanout1", "socketio"), "fanout1"),
    Target("… against Nchan", 1.1, 1.2, _against("fanout1", "nchan"), "fanout1"),
    Target("… against Centrifugo", 1.0, 1.3, _against("fanout1", "centrifugo"), "fanout1"),
    Target("fan-out, 16 under way, against C", 8, 10, _against("fanout16", "limit"), "fanout16"),
    Target("… against Node ws", 10, 15, _against("fanout16", "ws"), "fanout16"),
    Target("… against uWebSockets", 0.9, 1.1, _against("fanout16", "uws"), "fanout16"),
    Target(
        "500 000 deliveries/s on one core, with a window of 5 ms, p99",
        25,
        15,
        lambda figures: _in(1_000, figures.latency("rate500", _US, "p99", "window")),
        "rate500",
        "ms",
        less_is_better=True,
        case="window",
    ),
    Target(
        "… without a window, p99",
        25,
        15,
        lambda figures: _in(1_000, figures.latency("rate500", _US, "p99")),
        "rate500",
        "ms",
        less_is_better=True,
        case="rate500",
    ),
    Target("rooms, all publish, against C", 0.65, 0.8, _against("rooms", "limit"), "rooms"),
    Target(
        "… through Redis, against without",
        0.9,
        1.0,
        lambda figures: figures.ratio("rooms_redis", "tidewire-redis", _US),
        "rooms_redis",
    ),
    Target(
        "RSS an idle authenticated connection with one subscription",
        5,
        3,
        lambda figures: _in(KIB, figures.memory("idle", _US)),
        "idle",
        "KiB",
        less_is_better=True,
    ),
    # The design measured upgrades, of servers that ask for no token and where the address is all that it takes to join. Both are
    # shown: what is like that, with a token, and all that a client of ours does until events come.
    *_connecting("processor time a connection, with its token checked and welcomed", "upgrade"),
    *_connecting("… with a subscription that is live", "connect"),
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
