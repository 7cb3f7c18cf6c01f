"""Tests of the growth benchmark: a verdict follows from the figures, and a quick run measures and leaves nothing running."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.growth.__main__ import main
from benchmarks.growth.figures import Curve
from tests.benchmarks.test_smoke import children_of


def curve(*costs: float, target: float | None = None, is_total: bool = False) -> Curve:
    """Returns a curve at the sizes 1, 10, 100, …"""
    found = Curve("delivery", "µs", target, is_total=is_total)
    for power, cost in enumerate(costs):
        found.add(10**power, [cost * 0.9, cost, cost * 1.2])
    return found


def test_growth_constant_cost_is_linear() -> None:
    assert curve(5.0, 5.2, 4.9, 5.1).verdict == "linear or better"


def test_growth_rising_cost_is_worse_than_linear() -> None:
    rising = curve(5.0, 10.0, 20.0)
    assert rising.verdict == "worse than linear"
    assert rising.ratio == pytest.approx(4.0)
    assert rising.exponent == pytest.approx(0.301, abs=0.001)


def test_growth_total_may_rise_as_the_size_does() -> None:
    assert curve(1.0, 10.0, 100.0, is_total=True).is_linear
    assert not curve(1.0, 20.0, 400.0, is_total=True).is_linear


def test_growth_target_decides_over_the_exponent() -> None:
    assert curve(5.0, 5.4, target=1.1).is_linear
    assert not curve(5.0, 5.6, target=1.1).is_linear


@pytest.fixture
def _cores_again() -> Iterator[None]:
    """A run moves its children to cores, never the test process."""
    before = os.sched_getaffinity(0)
    yield
    assert os.sched_getaffinity(0) == before


@pytest.mark.slow
@pytest.mark.usefixtures("_cores_again")
def test_growth_quick_run_writes_table_and_charts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--quick", "--only", "channels,history", "--output", str(tmp_path)])
    out, err = capsys.readouterr()
    assert code == 0, err
    parts = json.loads((tmp_path / "growth.json").read_text())["parts"]
    assert parts.keys() == {"channels", "history"}
    for name, part in parts.items():
        ElementTree.parse(tmp_path / f"growth-{name}.svg")  # raises if it is not well-formed
        for measured in part["curves"]:
            assert all(point["median"] > 0 for point in measured["points"].values()), measured
    assert "| resubscribe after a restart of Redis: µs CPU of the node |" in out
    assert children_of(tmp_path) == []
