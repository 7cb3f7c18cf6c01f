"""Rooms in which everybody talks: what a broker across the network costs a node, in one run with none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cases import WORKLOADS
from benchmarks.figures import Figures, Sample
from benchmarks.measuring import Stage
from benchmarks.peers import everyone
from benchmarks.processes import Cores

pytestmark = pytest.mark.load

DIRECT, REDIS = "tidewire", "tidewire-redis"
ROUNDS, MAX_ROUNDS = 4, 16
"""Pairs of measurements: at least, and at most where the first show too little."""
SECONDS = 1.0
FLOOR = 0.8
"""Deliveries a second of the node's processor time through Redis, against those without."""


async def test_redis_between_nodes_costs_at_most_a_quarter_more(tmp_path: Path) -> None:
    """1 000 connections in rooms of 10 publish durable events, each the next when its own has come back; `make bench` has the
    same workload. The least costs of each are compared, not their medians: whatever else the machine does, and its slower
    moments, only add to the processor time that the same work takes, so the least of many short, alternating measurements is
    the nearest to what it costs. A node that needs more for its Redis needs it in its best moment, too."""
    workload, peers = WORKLOADS["rooms_redis"], everyone()
    case = replace(workload.cases[0], seconds=SECONDS)
    stage = Stage(Cores.of_this_machine(), tmp_path)
    samples: list[Sample] = []
    ratio = 0.0
    for number in range(MAX_ROUNDS):
        for name in (DIRECT, REDIS) if number % 2 else (REDIS, DIRECT):
            samples.append(await stage.measure(workload, case, peers[name], number))  # noqa: PERF401  # one after the other
        figures = Figures(samples, {workload.name: workload.unit})
        costs = {name: figures.cost(workload.name, name) for name in (DIRECT, REDIS)}
        direct, through = (cost.low if cost else 0.0 for cost in costs.values())
        ratio = direct / through if through else 0.0
        print(f"{number + 1} pairs: {direct:.2f} µs a delivery, {through:.2f} µs through Redis, ratio {ratio:.3f}")
        if number + 1 >= ROUNDS and ratio >= FLOOR:
            break
    assert [sample.failure for sample in samples if sample.failure] == []
    assert [sample.lost for sample in samples] == [0] * len(samples)
    assert ratio >= FLOOR
