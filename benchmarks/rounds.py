"""The order of measurements: round after round, everybody in each, so that what the machine does meanwhile meets all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from benchmarks.cases import Workload
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

    def taking_part(self, workload: Workload) -> list[Peer]:
        """In the order of the tables."""
        if workload.peers:
            return [peer for peer in self.peers if peer.name in workload.peers]
        return [peer for peer in self.peers if peer.name not in WHERE_NAMED]

    @property
    def steps(self) -> int:
        """Measurements of a round."""
        return sum(len(self.taking_part(workload)) * len(workload.cases) for workload in self.workloads)

    def order(self, workload: Workload, round_: int) -> Iterator[tuple[Peer, int]]:
        """Peers with the number of a case; backwards in every other round, so that nobody always follows the same one."""
        pairs = [(peer, number) for peer in self.taking_part(workload) for number in range(len(workload.cases))]
        return iter(pairs if round_ % 2 == 0 else pairs[::-1])


@dataclass(slots=True)
class Rounds:
    """Carries a plan out."""

    plan: Plan
    stage: Stage
    progress: Progress
    clock: Callable[[], float] = time.monotonic
    samples: list[Sample] = field(default_factory=list)
    _took: dict[str, float] = field(default_factory=dict)

    async def run(self) -> list[Sample]:
        """All samples, as far as time allows; those of failed measurements too."""
        began = self.clock()
        for round_ in range(self.plan.rounds):
            for workload in self.plan.workloads:
                if round_ and self.clock() - began + self._took[workload.name] > self.plan.minutes * 60:
                    self.progress.says(f"no time for more in round {round_ + 1}: it ends here")
                    return self.samples
                at = self.clock()
                await self._everyone(workload, round_)
                self._took[workload.name] = self.clock() - at
        return self.samples

    async def _everyone(self, workload: Workload, round_: int) -> None:
        for peer, number in self.plan.order(workload, round_):
            case = workload.cases[number]
            self.progress.begins(f"round {round_ + 1}/{self.plan.rounds} · {case.label(workload.name)} · {peer.title}")
            sample = await self.stage.measure(workload, case, peer, round_)
            self.samples.append(sample)
            self.progress.ends(
                None if sample.failure is None else f"{peer.title}, {case.label(workload.name)}: {sample.failure}"
            )
