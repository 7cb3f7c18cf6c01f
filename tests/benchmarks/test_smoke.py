"""Smoke tests of the benchmarks: counts are right, ratios are of pairs, a run writes its results and ends its children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import idle_memory
from benchmarks.__main__ import main
from benchmarks.build import build
from benchmarks.cases import WORKLOADS
from benchmarks.figures import Figures, Sample
from benchmarks.processes import Cores

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[2]
DEADLINE = 60.0


@pytest.fixture
def _cores_again() -> Iterator[None]:
    """A run moves its children to cores, never the test process."""
    before = os.sched_getaffinity(0)
    yield
    assert os.sched_getaffinity(0) == before


def test_load_client_fan_out_counts_every_delivery_once(tmp_path: Path) -> None:
    programs = build(sanitize=False)
    limit = subprocess.Popen([programs / "limit", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert limit.stdout is not None
        port = limit.stdout.readline().split()[1]
        lines = (
            f"port {port}", 'marker "t":', 'message {"t":%t,"p":"%p"}', "workload fanout", "connections 100", "sources 3",
            "outstanding 16", "seconds 0.3", "warmup 0.1", "payload 128",
        )  # fmt: skip
        (tmp_path / "job").write_text("".join(f"{line}\n" for line in lines))
        done = subprocess.run(
            [programs / "load", tmp_path / "job"], capture_output=True, text=True, timeout=DEADLINE, check=False
        )
    finally:
        limit.kill()
        limit.communicate()
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["published"] > 16
    assert report["deliveries"] == report["expected"] == report["published"] * 100 == report["latency_us"]["count"]
    assert report["lost"] == report["duplicated"] == report["strayed"] == 0
    assert report["bytes_in"] == report["deliveries"] * (128 + 4)
    assert 0 < report["latency_us"]["p50"] <= report["latency_us"]["p99"] <= report["latency_us"]["max"]


def test_ratio_compares_samples_of_the_same_round() -> None:
    def sample(peer: str, round_: int, cpu: float) -> Sample:
        told: dict[str, Any] = {"deliveries": 1_000_000, "lost": 0, "seconds": 2.0}
        return Sample("fanout1", "fanout1", peer, round_, 1_000, cpu=cpu, report=told)

    # The machine is three times slower in round 1, for both; round 2 has only one of them, round 3 a failure.
    samples = [
        sample("limit", 0, 1.0),
        sample("tidewire", 0, 2.0),
        sample("tidewire", 1, 5.0),
        sample("limit", 1, 3.0),
        sample("tidewire", 2, 100.0),
        sample("limit", 3, 100.0),
        replace(sample("tidewire", 3, 1.0), failure="it ended"),
    ]
    units = {name: workload.unit for name, workload in WORKLOADS.items()}
    ratio = Figures(samples, units).ratio("fanout1", "tidewire", "limit")
    assert ratio is not None
    assert (ratio.low, ratio.high, ratio.rounds) == (0.5, 0.6, 2)
    assert ratio.median == pytest.approx(0.55)


@pytest.mark.usefixtures("_cores_again")
def test_quick_run_measures_the_service_beside_the_limit_server(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--quick", "--only", "fanout1,idle", "--connections", "200", "--seconds", "0.2", "--rounds", "1"]
    code = main([*words, "--output", str(tmp_path)])
    out, err = capsys.readouterr()
    assert code == 0, err
    fan_out, idle = (json.loads(line) for line in out.splitlines())
    assert (fan_out["workload"], idle["workload"]) == ("fanout1", "idle")
    assert fan_out["lost"] == 0
    assert fan_out["deliveries_per_second"] > 0
    assert idle["bytes_per_connection"] > 0
    samples = json.loads((tmp_path / "quick" / "results.json").read_text())["samples"]
    assert {sample["peer"] for sample in samples} == {"limit", "tidewire"}
    assert all(sample["failure"] is None for sample in samples)
    assert children_of(tmp_path) == []


def test_interrupted_run_ends_all_that_it_started(tmp_path: Path) -> None:
    words = ("--quick", "--only", "idle", "--peers", "tidewire", "--connections", "5", "--seconds", "50")
    command = [sys.executable, "-m", "benchmarks", *words, "--output", str(tmp_path)]
    process = subprocess.Popen(command, cwd=CHECKOUT, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            until(lambda: any("job" in words for words in children_of(tmp_path / "run")), process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 130
        finally:
            process.kill()
    assert children_of(tmp_path) == []


def until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Polls until it holds: there is no event to wait for in another process's children."""
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children_of(folder: Path) -> list[str]:
    """Command lines of other processes that name a file in that folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if f"{folder}/" in words and " -m benchmarks" not in words:
                found.append(words)
    return found


async def test_idle_memory_adds_up_to_the_growth_of_the_rss(tmp_path: Path) -> None:
    found = await idle_memory.measure(200, tmp_path, Cores.of_this_machine(), traced=False)
    rows = [float(row.split("|")[2]) for row in idle_memory.process_table(found)[2:]]
    assert sum(rows[:-1]) == pytest.approx(rows[-1], abs=len(rows)), "each row is rounded"
    before, after = found.before[0], found.after[0]
    assert after.objects - before.objects > 200 * 1_000, "a connection has Python objects"
    tcp = {name: objects for name, (objects, *_) in found.kernel_after.caches.items()}.get("TCP")
    assert tcp is None or tcp >= 2 * 200, "both ends are on this machine"


async def test_idle_memory_names_the_lines_that_hold_it(tmp_path: Path) -> None:
    found = await idle_memory.measure(100, tmp_path, Cores.of_this_machine(), traced=True)
    table = "\n".join(idle_memory.line_table(found))
    assert "service/web/ws/" in table
    assert "uvloop" in table
