"""Orders measurements in rounds with all peers, so that other load on the machine affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.cases import Case, Workload
from benchmarks.figures import Sample
from benchmarks.measuring import Stage
from benchmarks.peers import Peer
from benchmarks.progress import Progress

WHERE_NAMED = frozenset({"tidewire-redis"})
"""Peers that run only in workloads that name them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, how often, and for how long."""

    workloads: Sequence[Workload]
    peers: Sequence[Peer]
    rounds: int
    minutes: float
    """Time limit. After the first round, no measurement starts that would exceed it."""
    sparing: bool = False
    """Whether later rounds measure only what `Workload.often` and `Workload.rounds` name."""

    def taking_part(self, workload: Workload) -> list[Peer]:
        """Returns the peers in table order."""
        if workload.peers:
            return [peer for peer in self.peers if peer.name in workload.peers]
        return [peer for peer in self.peers if peer.name not in WHERE_NAMED]

    @property
    def steps(self) -> int:
        """Returns the number of measurements without a time limit."""
        return sum(len(self.order(workload, round_)) for round_ in range(self.rounds) for workload in self.workloads)

    def order(self, workload: Workload, round_: int) -> list[tuple[Peer, Case]]:
        """Returns the measurements of a round; every second round is reversed, so that no peer always follows the same one."""
        spared = self.sparing and round_ > 0
        if spared and workload.rounds is not None and round_ >= workload.rounds:
            return []
        pairs = [
            (peer, case)
            for peer in self.taking_part(workload)
            for case in workload.cases
            if not (case.peers and peer.name not in case.peers) and not (spared and peer.name not in workload.often)
        ]
        return pairs if round_ % 2 == 0 else pairs[::-1]


@dataclass(slots=True)
class Rounds:
    """Runs a plan."""

    plan: Plan
    stage: Stage
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    samples: list[Sample] = field(default_factory=list)
    _took: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Seconds of the last measurement, by workload, case and peer."""

    async def run(self) -> list[Sample]:
        """Measures within the time limit; returns all samples, including failed ones."""
        began = self.clock()
        for round_ in range(self.plan.rounds):
            for workload in self.plan.workloads:
                order = self.plan.order(workload, round_)
                will_take = sum(self._took.get((workload.name, case.name, peer.name), 0.0) for peer, case in order)
                if round_ and self.clock() - began + will_take > self.plan.minutes * 60:
                    self.progress.says(f"no time for more in round {round_ + 1}: it ends here")
                    return self.samples
                for peer, case in order:
                    await self._one(workload, case, peer, round_)
        return self.samples

    async def _one(self, workload: Workload, case: Case, peer: Peer, round_: int) -> None:
        self.progress.begins(f"round {round_ + 1}/{self.plan.rounds} · {case.label(workload.name)} · {peer.title}")
        began = self.clock()
        sample = await self.stage.measure(workload, case, peer, round_)
        self._took[workload.name, case.name, peer.name] = self.clock() - began
        self.samples.append(sample)
        self.progress.ends(
            None if sample.failure is None else f"{peer.title}, {case.label(workload.name)}: {sample.failure}"
        )
