"""The order of measurements: round after round, everybody in each, so that what the machine does meanwhile meets all alike."""

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
"""Peers that take part only in workloads that name them."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, how often, and in how much time."""

    workloads: Sequence[Workload]
    peers: Sequence[Peer]
    rounds: int
    minutes: float
    """After the first round, nothing is begun that would not end in this time."""
    sparing: bool = False
    """From the second round on only what `Workload.often` and `Workload.rounds` name; else everything each time."""

    def taking_part(self, workload: Workload) -> list[Peer]:
        """In the order of the tables."""
        if workload.peers:
            return [peer for peer in self.peers if peer.name in workload.peers]
        return [peer for peer in self.peers if peer.name not in WHERE_NAMED]

    @property
    def steps(self) -> int:
        """Measurements, if there is time for all of them."""
        return sum(len(self.order(workload, round_)) for round_ in range(self.rounds) for workload in self.workloads)

    def order(self, workload: Workload, round_: int) -> list[tuple[Peer, Case]]:
        """Who is put through what; backwards in every other round, so that nobody always follows the same one."""
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
    """Carries a plan out."""

    plan: Plan
    stage: Stage
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    samples: list[Sample] = field(default_factory=list)
    _took: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Seconds of the last measurement, by workload, case and peer."""

    async def run(self) -> list[Sample]:
        """All samples, as far as time allows; those of failed measurements too."""
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
