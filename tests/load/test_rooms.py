"""Rooms in which everybody talks: what a broker across the network costs a node, in one run with none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.cases import WORKLOADS
from benchmarks.figures import Figures, Sample, Spread
from benchmarks.measuring import Stage
from benchmarks.peers import everyone
from benchmarks.processes import Cores

pytestmark = pytest.mark.load

ROUNDS, MOST = 3, 15
"""Pairs of measurements: at least, and at most where the first show too little. A neighbour on the machine can spoil a few."""
SECONDS = 2.0
FLOOR = 0.8
"""Deliveries a second of the node's processor time through Redis, against those without."""


async def test_a_redis_between_the_nodes_costs_little(tmp_path: Path) -> None:
    """1 000 connections in rooms of 10 publish durable events, each the next when its own has come back; `make bench` has the
    same workload. The machine has its faster and slower moments, so each measurement is compared with its neighbour."""
    workload, peers = WORKLOADS["rooms_redis"], everyone()
    case = replace(workload.cases[0], seconds=SECONDS)
    stage = Stage(Cores.of_this_machine(), tmp_path)
    samples: list[Sample] = []
    ratio: Spread | None = None
    for number in range(MOST):
        for name in ("tidewire", "tidewire-redis") if number % 2 else ("tidewire-redis", "tidewire"):
            samples.append(await stage.measure(workload, case, peers[name], number))  # noqa: PERF401  # one after the other
        figures = Figures(samples, {workload.name: workload.unit})
        ratio = figures.ratio(workload.name, "tidewire-redis", "tidewire")
        if number + 1 >= ROUNDS and ratio is not None and ratio.median >= FLOOR:
            break
    figures = Figures(samples, {workload.name: workload.unit})
    costs = {name: figures.cost(workload.name, name) for name in ("tidewire", "tidewire-redis")}
    print(f"\nprocessor time a delivery in µs: {costs}, ratio={ratio}")
    assert [sample.failure for sample in samples if sample.failure] == []
    assert [sample.lost for sample in samples] == [0] * len(samples)
    assert ratio is not None
    assert ratio.median >= FLOOR, ratio
