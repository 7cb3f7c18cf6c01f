"""The runner of the benchmarks: its arithmetic, its order, what it writes, and one small run of all of it."""

from __future__ import annotations

import io
import json
import os
import platform
import signal
import subprocess
import sys
import sysconfig
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import machine, report
from benchmarks.__main__ import arguments, main, obtained, workloads
from benchmarks.cases import QUICK, WORKLOADS, Case, Workload, quick
from benchmarks.chart import Bar, chart
from benchmarks.compare import AFTER, BEFORE, UnknownRevisionError, between, checked_out, compared, table, verdict
from benchmarks.figures import Counts, Figures, Sample, Spread, longest
from benchmarks.load import render
from benchmarks.measuring import Stage
from benchmarks.peers import Command, Peer, UnavailableError, centrifugo, everyone
from benchmarks.peers.tidewire import Tidewire, counts
from benchmarks.processes import Cores, FailedError, Program, free_port
from benchmarks.progress import Progress
from benchmarks.rounds import Plan, Rounds
from benchmarks.targets import TARGETS, Target

CHECKOUT = Path(__file__).parents[2]
CORES = Cores.of_this_machine()
DEADLINE = 60.0
SVG = "{http://www.w3.org/2000/svg}"


def delivered(
    peer: str, round_: int, cpu: float, workload: str = "fanout1", case: str | None = None, **more: Any
) -> Sample:
    """A sample of a million deliveries, so that processor seconds are microseconds a delivery."""
    told = {
        "deliveries": 1_000_000,
        "frames_in": 250_000,
        "lost": 0,
        "seconds": 2.0,
        "deliveries_per_second": 500_000.0,
        "latency_us": {"p50": 4_000, "p99": 9_000},
        "slow": {"connections": 0, "deliveries": 0, "closed": 0},
    } | more
    return Sample(workload, case or workload, peer, round_, 1_000, cpu=cpu, report=told)


def figures(*samples: Sample) -> Figures:
    return Figures(samples, {name: workload.unit for name, workload in WORKLOADS.items()})


class Named(Peer):
    """One that is never started."""

    def __init__(self, name: str, reason: str | None = None, cure: str | None = None) -> None:
        self.name = name  # type: ignore[misc]  # a class variable in earnest; here one class stands for several
        self.title = name.title()
        self._reason, self._cure = reason, cure

    def available(self) -> str | None:
        return self._reason

    def install(self) -> None:
        if self._cure is not None:
            raise UnavailableError(self._cure)
        self._reason = None

    def version(self) -> str:
        return "1"

    def command(self, case: Case, port: int, folder: Path) -> Command:
        raise AssertionError("it is never started")

    def dialogue(self, case: Case) -> list[tuple[str, str]]:
        raise AssertionError("it is never started")


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_a_cost_is_processor_time_for_one_unit() -> None:
    assert delivered("ws", 0, 2.5).cost("delivery") == 2.5
    assert Sample("connect", "connect", "ws", 0, 2_000, cpu=0.5, report={"seconds": 1.0}).cost("connection") == 250
    assert Sample("idle", "idle", "ws", 0, 1_000, cpu=0.5, report={"seconds": 5.0}).cost("connection-second") == 100


def test_a_sample_without_figures_has_no_cost() -> None:
    assert replace(delivered("ws", 0, 2.5), failure="it ended").cost("delivery") is None
    assert delivered("ws", 0, 2.5, deliveries=0).cost("delivery") is None


@pytest.mark.parametrize(
    ("rounds", "interval"), [(1, None), (5, None), (6, (0, 5)), (8, (0, 7)), (9, (1, 7)), (10, (1, 8)), (20, (5, 14))]
)
def test_an_interval_holds_the_median_in_95_of_100_runs(rounds: int, interval: tuple[int, int] | None) -> None:
    """The ranks are those of the sign test's tables."""
    spread = Spread.of(range(rounds))
    assert spread is not None
    assert spread.interval == interval


@pytest.mark.parametrize(
    ("values", "spread"),
    [
        ([3.0], Spread(3.0, 3.0, 3.0, 1)),
        ([5.0, 1.0], Spread(3.0, 1.0, 5.0, 2)),
        ([9.0, 1.0, 2.0], Spread(2.0, 1.0, 9.0, 3)),
        ([], None),
    ],
)
def test_a_spread_is_the_median_between_the_extremes(values: list[float], spread: Spread | None) -> None:
    assert Spread.of(values) == spread


def test_ratios_are_of_pairs_in_the_same_round() -> None:
    # The machine is three times slower in round 1, for both; round 2 has only one of them, round 3 a failure.
    found = figures(
        delivered("limit", 0, 1.0),
        delivered("tidewire", 0, 2.0),
        delivered("tidewire", 1, 5.0),
        delivered("limit", 1, 3.0),
        delivered("tidewire", 2, 100.0),
        delivered("limit", 3, 100.0),
        replace(delivered("tidewire", 3, 1.0), failure="it ended"),
    ).ratio("fanout1", "tidewire", "limit")
    assert found is not None
    assert (found.low, found.high, found.rounds) == (0.5, 0.6, 2)
    assert found.median == pytest.approx(0.55)


def test_ratios_between_cases_of_one_peer() -> None:
    samples = [
        delivered("tidewire", round_, cpu * factor, "compressed", case)
        for round_, factor in enumerate((1.0, 4.0))
        for case, cpu in (("plain", 1.0), ("deflate", 1.25))
    ]
    found = figures(*samples).ratio("compressed", "tidewire", "tidewire", "deflate", "plain")
    assert found == Spread(0.8, 0.8, 0.8, 2)


def test_what_a_case_costs_more_is_paired_too() -> None:
    samples = [
        replace(delivered("tidewire", round_, cpu, "validated", case), report={"publishes": 1_000_000})
        for round_, (unchecked, checked) in enumerate(((20.0, 22.0), (60.0, 61.0), (20.0, 25.0)))
        for case, cpu in (("unchecked", unchecked), ("checked", checked))
    ]
    assert figures(*samples).extra("validated", "tidewire", "checked", "unchecked") == Spread(2.0, 1.0, 5.0, 3)


def test_memory_is_what_has_been_added_for_each() -> None:
    idle = Sample("idle", "idle", "tidewire", 0, 1_000, rss_alone=50_000_000, rss=54_096_000, report={"seconds": 1.0})
    assert figures(idle).memory("idle", "tidewire") == Spread(4_096, 4_096, 4_096, 1)


def test_events_a_frame() -> None:
    assert figures(delivered("tidewire", 0, 1.0)).joined("fanout1", "tidewire") == Spread(4, 4, 4, 1)


# --- targets ----------------------------------------------------------------------------------------------------------


def target(title: str) -> Target:
    return next(target for target in TARGETS if target.title == title)


AGAINST_C = "fan-out, one under way, against C"


@pytest.mark.parametrize(
    ("cost", "state"), [(1.0, "goal met"), (1.17, "goal met"), (1.2, "floor met"), (1.42, "floor met"), (1.5, "missed")]
)
def test_a_ratio_meets_its_goal_or_its_floor_or_neither(cost: float, state: str) -> None:
    found = figures(delivered("limit", 0, 1.0), delivered("tidewire", 0, cost))
    assert target(AGAINST_C).state(found)[0] == state


WINDOWED = "500 000 deliveries/s on one core, with a window of 5 ms, p99"
AT_ONCE = "… without a window, p99"


@pytest.mark.parametrize(("p99", "state"), [(9_000, "goal met"), (15_001, "floor met"), (25_001, "missed")])
def test_of_some_figures_less_is_better(p99: int, state: str) -> None:
    sample = delivered("tidewire", 0, 1.0, "rate500", "window", latency_us={"p50": 1, "p99": p99})
    assert target(WINDOWED).state(figures(sample))[0] == state


def test_what_one_case_loses_is_not_held_against_another() -> None:
    found = figures(
        delivered("tidewire", 0, 1.0, "rate500", lost=7), delivered("tidewire", 0, 1.0, "rate500", "window")
    )
    assert target(WINDOWED).state(found)[0] == "goal met"
    assert target(AT_ONCE).state(found)[::2] == ("missed", "7 deliveries lost")


def test_work_that_was_lost_meets_no_target() -> None:
    found = figures(delivered("limit", 0, 1.0), delivered("tidewire", 0, 0.5, lost=7))
    state, spread, why = target(AGAINST_C).state(found)
    assert (state, why) == ("missed", "7 deliveries lost")
    assert spread is not None


def test_what_others_lose_is_theirs() -> None:
    found = figures(delivered("limit", 0, 1.0, lost=7), delivered("tidewire", 0, 1.0))
    assert target(AGAINST_C).state(found)[0] == "goal met"


def test_without_figures_a_target_is_not_measured() -> None:
    assert {target.state(figures())[0] for target in TARGETS} == {"not measured"}


def test_each_target_asks_for_a_workload_and_is_ordered() -> None:
    for one in TARGETS:
        assert one.workload in WORKLOADS
        assert one.case in (None, *(case.name for case in WORKLOADS[one.workload].cases))
        assert (one.goal < one.floor) is one.less_is_better, one.title


@pytest.mark.parametrize("round_", [0, 1, 2])
def test_what_a_target_asks_about_is_measured_in_each_round(round_: int) -> None:
    plan = Plan(list(WORKLOADS.values()), [Named(name) for name in everyone()], 3, 1.0, sparing=True)
    samples = [
        replace(
            one := delivered(peer.name, round_, 1.0, workload.name, case.name),
            rss=2_048 if workload.name == "idle" else 0,
            report={**one.report, "publishes": 1_000},
        )
        for workload in plan.workloads
        for peer, case in plan.order(workload, round_)
    ]
    assert [one.title for one in TARGETS if one.state(figures(*samples))[0] == "not measured"] == []


# --- what a run consists of -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name not in ("idle", "connect", "storm")])
def test_the_data_of_an_event_has_its_size(name: str) -> None:
    for case in WORKLOADS[name].cases:
        data = case.data().replace("%t", "1" * 16).replace("%p", "x" * case.padding)
        assert len(data) == case.bytes
        assert set(json.loads(data)) == {"t", "p"}


def test_fewer_connections_keep_their_proportions() -> None:
    case = WORKLOADS["active15k"].cases[0].at_most(150)
    assert (case.connections, case.rooms, case.active) == (150, 15, 15)
    assert WORKLOADS["echo"].cases[0].at_most(10_000).connections == 100


def test_every_peer_publishes_what_the_client_can_find() -> None:
    for peer in everyone().values():
        for workload in WORKLOADS.values():
            for case in workload.cases:
                if not case.joins or case.kind == "gate":
                    continue  # nothing is published to anybody
                lines = dict(peer.dialogue(case))
                assert case.data() in lines["message"], peer.name
                assert "%r" in "".join(value for key, value in peer.dialogue(case) if key != "message"), peer.name


def test_a_job_file_is_escaped_but_for_the_tab_of_an_answer() -> None:
    written = render([("message", 'a\\"b\n'), ("answer", "2\t3\t\\"), ("host", "127.0.0.1")])
    assert written == 'message a\\\\"b\\n\nanswer 2\t3\\t\\\\\nhost 127.0.0.1\n'


def test_a_plan_leaves_out_who_takes_part_only_where_named() -> None:
    peers = [Named("limit"), Named("tidewire"), Named("tidewire-redis")]
    plan = Plan([WORKLOADS["fanout1"], WORKLOADS["rooms_redis"]], peers, 1, 1.0)
    assert [peer.name for peer in plan.taking_part(WORKLOADS["fanout1"])] == ["limit", "tidewire"]
    assert [peer.name for peer in plan.taking_part(WORKLOADS["rooms_redis"])] == ["tidewire", "tidewire-redis"]
    assert plan.steps == 4


class Watched(Stage):
    """Measures nothing, and takes `minutes` of a clock for it."""

    def __init__(self, minutes: float) -> None:
        super().__init__(CORES)
        self.minutes, self.now = minutes, 0.0
        self.done: list[tuple[str, str, str, int]] = []

    async def measure(self, workload: Workload, case: Case, peer: Peer, round_: int) -> Sample:
        self.now += self.minutes * 60
        self.done.append((workload.name, case.name, peer.name, round_))
        return delivered(peer.name, round_, 1.0, workload.name, case.name)


async def watched(
    minutes: float, budget: float, rounds: int = 3, *, sparing: bool = False
) -> list[tuple[str, str, str, int]]:
    stage = Watched(minutes)
    peers = [Named("tidewire"), Named("ws")]
    plan = Plan([WORKLOADS["fanout1"], WORKLOADS["compressed"]], peers, rounds, budget, sparing=sparing)
    await Rounds(plan, stage, Progress(io.StringIO(), plan.steps), clock=lambda: stage.now).run()
    return stage.done


async def test_everybody_is_measured_in_each_round_and_backwards_in_every_other() -> None:
    there = [
        ("fanout1", "fanout1", "tidewire"),
        ("fanout1", "fanout1", "ws"),
        ("compressed", "plain", "tidewire"),
        ("compressed", "deflate", "tidewire"),
        ("compressed", "plain", "ws"),
        ("compressed", "deflate", "ws"),
    ]
    back = [*there[:2][::-1], *there[2:][::-1]]
    assert await watched(0, 1) == [(*step, 0) for step in there] + [(*s, 1) for s in back] + [(*s, 2) for s in there]


async def test_the_first_round_is_whole_and_nothing_is_begun_that_would_not_end_in_time() -> None:
    assert len(await watched(1, 0.5)) == 6  # of itself too long
    assert len(await watched(1, 7.9)) == 6  # the next workload takes two minutes
    assert len(await watched(1, 8.0)) == 8  # and the one after it four
    assert len(await watched(1, 100)) == 18


async def test_a_sparing_run_measures_others_once_and_counts_only_what_is_left() -> None:
    first = await watched(1, 0.5, sparing=True)
    assert len(first) == 6
    second = [
        ("fanout1", "fanout1", "ws", 1),
        ("fanout1", "fanout1", "tidewire", 1),
        ("compressed", "deflate", "tidewire", 1),
        ("compressed", "plain", "tidewire", 1),  # Node's compression is in no target
    ]
    assert await watched(1, 10, rounds=2, sparing=True) == first + second


def test_a_sparing_run_repeats_a_workload_only_as_often_as_it_asks_for() -> None:
    plan = Plan([WORKLOADS["slow"]], [Named("tidewire")], 9, 1.0, sparing=True)
    assert [len(plan.order(WORKLOADS["slow"], round_)) for round_ in range(5)] == [2, 2, 2, 0, 0]
    assert plan.steps == 6
    assert replace(plan, sparing=False).steps == 18


def test_only_tidewire_has_a_window() -> None:
    plan = Plan([WORKLOADS["rate500"]], [Named("tidewire"), Named("ws")], 1, 1.0)
    order = [(peer.name, case.name) for peer, case in plan.order(WORKLOADS["rate500"], 0)]
    assert order == [("tidewire", "rate500"), ("tidewire", "window"), ("ws", "rate500")]


def test_a_quick_run_is_smaller_and_long_enough_for_the_clock() -> None:
    for name in QUICK:
        for case in quick(WORKLOADS[name]).cases:
            assert case.kind in ("idle", "connect") or 1.5 <= case.seconds <= 2.0
            assert case.connections <= 2_000


def test_what_is_asked_for_is_what_is_measured() -> None:
    asked = arguments(["--only", "rooms,fanout1", "--seconds", "0.5", "--connections", "50"])
    assert [(w.name, w.cases[0].seconds, w.cases[0].connections) for w in workloads(asked)] == [
        ("fanout1", 0.5, 50),
        ("rooms", 0.5, 50),
    ]
    assert [w.name for w in workloads(arguments(["--quick"]))] == [name for name in WORKLOADS if name in QUICK]
    assert [w.name for w in workloads(arguments([]))] == list(WORKLOADS)


@pytest.mark.parametrize(
    "words",
    [["--only", "fanout2"], ["--peers", "limit,nobody"], ["--rounds", "0"], ["--seconds", "0"], ["--connections", "0"]],
)
def test_what_cannot_be_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(words)
    assert words[0] in capsys.readouterr().err


def test_who_is_not_to_be_had_is_left_out_with_the_reason() -> None:
    peers = [Named("there"), Named("curable", "not yet"), Named("gone", "not yet", "no such package")]
    said = io.StringIO()
    found, missing = obtained(peers, Progress(said, 0), install=True)
    assert ([peer.name for peer in found], missing) == (["there", "curable"], {"Gone": "no such package"})
    assert "not available: Gone: no such package" in said.getvalue()


def test_nothing_is_installed_unasked() -> None:
    found, missing = obtained([Named("curable", "not yet")], Progress(io.StringIO(), 0), install=False)
    assert (found, missing) == ([], {"Curable": "not yet"})


def centrifugo_without_go(tools: Path, monkeypatch: pytest.MonkeyPatch, builds: Callable[[Path], None]) -> Peer:
    """Centrifugo's peer where nothing is installed, Go gets no Centrifugo, and `builds` is what it makes of the engine."""

    def absent(module: str, version: str) -> None:
        raise UnavailableError(f"{module}@{version}: no such version")

    monkeypatch.setattr(centrifugo, "TOOLS", tools)
    monkeypatch.setattr(centrifugo, "go_install", absent)
    monkeypatch.setattr(centrifugo, "go_build", lambda folder, program: builds(program))
    monkeypatch.setenv("PATH", str(tools))
    return centrifugo.Centrifugo()


def program(path: Path, says: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\necho "{says} $*"\n')
    path.chmod(0o755)


def test_where_centrifugo_is_not_to_be_had_its_engine_is_measured_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = centrifugo_without_go(tmp_path, monkeypatch, lambda path: program(path, "engine"))
    found, missing = obtained([peer], Progress(io.StringIO(), 0), install=True)
    assert (found, missing) == ([peer], {})
    assert peer.title == "Centrifuge (Centrifugo's engine)"
    assert peer.version() == "engine -version, under a server of ours: Centrifugo itself is not installed"
    command = peer.command(WORKLOADS["idle"].cases[0], 4000, tmp_path)
    assert list(command.line)[1:] == ["-port", "4000", "-ping", "5s", "-pong", "4s"]
    assert command.env["GOMAXPROCS"] == "1"


def test_centrifugo_goes_before_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    centrifugo_without_go(tmp_path, monkeypatch, lambda path: program(path, "engine")).install()
    program(tmp_path / "bin" / "centrifugo", "itself")
    peer = centrifugo.Centrifugo()
    assert (peer.title, peer.version()) == ("Centrifugo", "itself version")
    assert "--config" in peer.command(WORKLOADS["idle"].cases[0], 4000, tmp_path).line


def test_with_neither_centrifugo_nor_its_engine_both_reasons_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> None:
        raise UnavailableError("needs Go")

    peer = centrifugo_without_go(tmp_path, monkeypatch, fails)
    assert peer.title == "Centrifugo"
    _, missing = obtained([peer], Progress(io.StringIO(), 0), install=True)
    assert missing["Centrifugo"].endswith("no such version; its engine: needs Go")


# --- what is written --------------------------------------------------------------------------------------------------


def results(*samples: Sample, names: tuple[str, ...] = ("fanout1",)) -> report.Results:
    facts = {"date": "2026-11-23", "cores": 2, "processor": "P|Q", "kernel": "6", "python": "3", "load_average": 0.1}
    titles = {"limit": "bare C loop", "tidewire": "Tidewire", "ws": "Node ws"}
    versions = {"limit": "1", "tidewire": "2", "ws": "3"}
    return report.Results(
        facts, titles, versions, {"Centrifugo": "no Go"}, [WORKLOADS[name] for name in names], samples
    )


SAMPLES = (
    delivered("limit", 0, 1.0),
    delivered("tidewire", 0, 1.25),
    delivered("limit", 1, 1.0),
    delivered("tidewire", 1, 1.0),
    replace(delivered("ws", 0, 0.0), failure="it\nended"),
)


def test_the_report_shows_targets_figures_failures_and_who_was_not_there() -> None:
    written = report.markdown(results(*SAMPLES))
    assert "| fan-out, one under way, against C | ≥ 0.7 × | ≥ 0.85 × | 0.9 (0.8–1) | 2 | goal met |" in written
    assert "| … against Centrifugo | ≥ 1 × | ≥ 1.3 × | – |  | not measured |" in written
    assert "| Tidewire | 0.9 (0.8–1) | 1.12 (1–1.25) | 500 000 | 4 | 9 | 4 | 2 |  |" in written
    assert "| Node ws |  |  |  |  |  |  |  | it ended |" in written
    assert "- Centrifugo: no Go" in written
    assert "rooms" not in written.split("## Who")[0].split("## fanout1")[0]  # no target of what was not part of the run


def test_at_a_fixed_rate_the_share_of_a_core_is_shown_of_each_case_apart() -> None:
    samples = (
        delivered("limit", 0, 2.0, "rate500"),
        delivered("tidewire", 0, 1.98, "rate500"),
        delivered("tidewire", 0, 1.2, "rate500", "window"),
    )
    written = report.markdown(results(*samples, names=("rate500",)))
    assert "| p99 ms | events a frame | % of a core | rounds |  |" in written
    assert "| Tidewire | 1.01 | 1.98 | 500 000 | 4 | 9 | 4 | 99 | 1 |  |" in written
    assert "| Tidewire, window |  | 1.2 | 500 000 | 4 | 9 | 4 | 60 | 1 |  |" in written
    assert "bare C loop, window" not in written


def test_a_row_says_when_its_ratio_is_of_fewer_rounds() -> None:
    written = report.markdown(results(*SAMPLES, delivered("tidewire", 2, 1.0)))
    assert "| Tidewire | 0.9 (0.8–1) | 1 (1–1.25) | 500 000 | 4 | 9 | 4 | 3, ratio 2 |  |" in written


METRICS = """
# TYPE tidewire_loop_lag_seconds histogram
tidewire_loop_lag_seconds_bucket{{le="0.01"}} {lag[0]}
tidewire_loop_lag_seconds_bucket{{le="0.25"}} {lag[1]}
tidewire_loop_lag_seconds_bucket{{le="+Inf"}} {lag[2]}
# TYPE tidewire_gc_pause_seconds histogram
tidewire_gc_pause_seconds_bucket{{generation="0",le="0.0001"}} {young}
tidewire_gc_pause_seconds_bucket{{generation="0",le="0.05"}} {young}
tidewire_gc_pause_seconds_bucket{{generation="0",le="+Inf"}} {young}
tidewire_gc_pause_seconds_bucket{{generation="2",le="0.0001"}} 0
tidewire_gc_pause_seconds_bucket{{generation="2",le="0.05"}} {full}
tidewire_gc_pause_seconds_bucket{{generation="2",le="+Inf"}} {full}
"""


def exported(lag: tuple[int, int, int], young: int, full: int) -> Counts:
    return counts(METRICS.format(lag=lag, young=young, full=full))


def test_what_was_longest_is_told_of_each_phase_apart() -> None:
    start, begin, end = exported((1, 1, 1), 0, 0), exported((8, 9, 9), 3, 1), exported((20, 21, 21), 5, 1)
    assert longest(start, begin) == {"stall": 0.25, "pause": 0.05}
    assert longest(begin, end) == {"stall": 0.01, "pause": 0.0001}
    assert longest(end, end) == {"stall": 0.0, "pause": 0.0}
    assert longest(end, exported((20, 21, 22), 5, 1)) == {"stall": None, "pause": 0.0}


def test_the_report_tells_the_longest_stall_while_running_and_while_connecting() -> None:
    def said(stall: float | None) -> Sample:
        vitals: dict[str, dict[str, float | None]] = {
            "before": {"stall": stall, "pause": 0.05},
            "during": {"stall": 0.01, "pause": 0.0},
        }
        return replace(delivered("tidewire", 0, 1.0, "active15k"), vitals=vitals, rss=1_024_000)

    written = report.markdown(results(said(0.25), names=("active15k",)))
    assert (
        "longest stall ≤ 10 ms (while connecting ≤ 250 ms), longest collection none (while connecting ≤ 50 ms)"
        in written
    )
    assert "stall ≤ 10 ms (while connecting beyond measure)" in report.markdown(
        results(said(None), names=("active15k",))
    )


def test_the_report_says_how_the_interpreter_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    configured = {"CONFIG_ARGS": "'--enable-shared' '--enable-optimizations'"}
    monkeypatch.setattr(sysconfig, "get_config_var", configured.get)
    assert machine.python().endswith(", --enable-optimizations)")
    configured.clear()
    assert machine.python().endswith(", --enable-optimizations not on record)")
    assert machine.python().startswith(platform.python_version())
    assert f"Python {machine.facts(CORES)['python']}" in report.markdown(
        replace(results(*SAMPLES), machine=machine.facts(CORES))
    )


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    tables: list[list[str]] = [[]]
    for line in report.markdown(results(*SAMPLES)).splitlines():
        if line.startswith("|"):
            tables[-1].append(line)
        elif tables[-1]:
            tables.append([])
    for rows in filter(None, tables):
        assert len({row.replace("\\|", "").count("|") for row in rows}) == 1, rows


def test_a_quick_line_holds_what_the_change_is_judged_by() -> None:
    (line,) = report.lines(results(*SAMPLES))
    assert json.loads(line) == {
        "workload": "fanout1",
        "cost_us": 1.125,
        "ratio_to_limit": 0.9,
        "deliveries_per_second": 500_000.0,
        "p50_us": 4_000,
        "p99_us": 9_000,
        "events_per_frame": 4,
        "lost": 0,
        "rounds": 2,
    }


def test_results_hold_every_sample() -> None:
    document = json.loads(json.dumps(report.document(results(*SAMPLES))))
    assert [(sample["peer"], sample["cpu"]) for sample in document["samples"]] == [(s.peer, s.cpu) for s in SAMPLES]
    assert document["workloads"]["fanout1"]["cases"]["fanout1"]["peers"]["tidewire"]["ratio_to_limit"]["low"] == 0.8
    assert document["targets"][0]["state"] == "goal met"


def test_a_chart_is_well_formed_and_its_bars_are_to_scale() -> None:
    bars = [Bar('a <b> & "c"', Spread(2, 1, 4, 3)), Bar("ours", Spread(1, 1, 1, 3), ours=True)]
    root = ET.fromstring(chart("more & <better>", bars))
    assert root.tag == f"{SVG}svg"
    first, second = root.findall(f"{SVG}rect")
    assert float(first.attrib["width"]) == pytest.approx(2 * float(second.attrib["width"]), abs=0.2)
    assert [rect.attrib["class"] for rect in (first, second)] == ["bar", "bar ours"]
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert texts == ["more & <better>", 'a <b> & "c"', "2", "ours", "1"]
    whisker = root.findall(f"{SVG}line")[0]
    right = float(whisker.attrib["x2"])
    assert right < float(root.attrib["width"])
    assert right > float(first.attrib["x"]) + float(first.attrib["width"])


def test_a_chart_of_nothing_is_one_too() -> None:
    assert ET.fromstring(chart("nobody came", [])).tag == f"{SVG}svg"


def test_there_is_a_chart_for_each_workload() -> None:
    idle = Sample("idle", "idle", "tidewire", 0, 1_000, rss=2_048_000, report={"seconds": 1.0})
    drawn = report.charts(results(*SAMPLES, idle, names=("fanout1", "idle")))
    assert set(drawn) == {"fanout1", "idle"}
    assert "Tidewire" in drawn["fanout1"]
    assert "Node ws" not in drawn["fanout1"]  # it has no figures
    assert [text.text for text in ET.fromstring(drawn["idle"]).findall(f"{SVG}text")][1:] == ["Tidewire", "2"]


def test_progress_tells_what_is_left() -> None:
    now = iter((0.0, 30.0, 60.0))
    said = io.StringIO()
    progress = Progress(said, 7, clock=lambda: next(now))
    progress.begins("one")
    progress.ends()
    progress.begins("two")
    progress.ends("it ended")
    progress.begins("three")
    assert said.getvalue().splitlines() == [
        "[1/7] one",
        "[2/7] two · 3 min left",
        "failed: it ended",
        "[3/7] three · 2 min left",
    ]


# --- two revisions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (Spread(1.10, 1.05, 1.15, 3), "cheaper"),
        (Spread(1.10, 0.99, 1.15, 3), "no difference"),
        (Spread(1.01, 1.005, 1.02, 3), "no difference"),
        (Spread(0.90, 0.85, 0.99, 3), "dearer"),
        (Spread(0.90, 0.85, 1.01, 3), "no difference"),
        (Spread(2.00, 2.00, 2.00, 1), "one round says nothing"),
        (Spread(1.10, 0.90, 1.30, 10, (1.01, 1.2)), "cheaper"),
        (Spread(0.90, 0.80, 1.10, 10, (0.85, 0.98)), "dearer"),
        (Spread(1.10, 0.90, 1.30, 10, (0.99, 1.2)), "no difference"),
    ],
)
def test_it_is_a_change_only_if_the_interval_excludes_1(gain: Spread, said: str) -> None:
    assert verdict(gain) == said


def test_a_comparison_is_before_over_after() -> None:
    samples = [
        delivered(peer, round_, cpu * factor)
        for round_, factor in enumerate((1.0, 3.0))
        for peer, cpu in ((BEFORE, 2.0), (AFTER, 1.0))
    ]
    (found,) = compared(figures(*samples), [WORKLOADS["fanout1"]])
    assert found["before_over_after"]["median"] == 2
    assert (found["cost_us_before"], found["cost_us_after"], found["verdict"]) == (4.0, 2.0, "cheaper")
    assert "2.000" in table([found])


def test_both_revisions_are_put_through_every_case() -> None:
    workload = between(WORKLOADS["rate500"])
    order = Plan([workload], [Named(BEFORE), Named(AFTER)], 1, 1.0).order(workload, 0)
    assert [(peer.name, case.name) for peer, case in order] == [
        (name, case) for name in (BEFORE, AFTER) for case in ("rate500", "window")
    ]


def test_what_could_not_be_compared_says_why() -> None:
    failed = replace(delivered(BEFORE, 0, 1.0), failure="unknown setting")
    (found,) = compared(figures(failed, delivered(AFTER, 0, 1.0)), [WORKLOADS["fanout1"]])
    assert found["verdict"] == "not measured"
    assert "unknown setting" in table([found])


def test_a_checkout_that_changes_is_another(tmp_path: Path) -> None:
    source = tmp_path / "service" / "web" / "a.py"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    before = Tidewire(tmp_path).fingerprint()
    (source.parent / "a.pyc").write_text("made by running it")
    assert Tidewire(tmp_path).fingerprint() == before
    source.write_text("two")
    assert Tidewire(tmp_path).fingerprint() != before


def test_a_run_in_which_the_checkout_changes_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fingerprints = iter(("one", "two"))
    monkeypatch.setattr(Tidewire, "fingerprint", lambda _: next(fingerprints))
    words = ["--only", "connect", "--peers", "limit", "--connections", "3", "--rounds", "1", "--output", str(tmp_path)]
    assert main(words) == 1
    assert "were changed during the run" in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


def test_an_unknown_revision_is_refused() -> None:
    with pytest.raises(UnknownRevisionError, match="git rev-parse"), checked_out("no-such-revision"):
        raise AssertionError("there is nothing to check out")


# --- real processes ---------------------------------------------------------------------------------------------------


BURN = 0.35
CHILD = f"import time\nwhile time.process_time() < {BURN}: pass\nprint('burnt', flush=True)\ntime.sleep(100)"
PARENT = """
import socket, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "burnt\\n"
print(child.pid, flush=True)
socket.create_server(("127.0.0.1", int(sys.argv[1]))).accept()
time.sleep(100)
"""


async def test_a_program_is_counted_with_its_children_and_ended_with_them(tmp_path: Path) -> None:
    port = free_port()
    line = (sys.executable, "-c", PARENT, str(port), CHILD)
    program = await Program.start("a parent", line, core=CORES.server, log=tmp_path / "log")
    try:
        await program.listening(port)
        child = int((tmp_path / "log").read_text())
        assert program.usage().cpu >= _cpu(program.process.pid) + BURN - 0.02
        assert program.usage().rss > 2 * 4_000_000  # two interpreters
    finally:
        await program.end()
    assert not _lives(child)
    with pytest.raises(FailedError, match="a parent ended"):
        program.usage()


def _cpu(pid: int) -> float:
    """Seconds of one process alone."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _lives(pid: int) -> bool:
    """Not yet reaped by its new parent is dead all the same."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


async def test_a_server_that_ends_at_once_is_told_with_its_words(tmp_path: Path) -> None:
    line = (sys.executable, "-c", "import sys; sys.exit('no such setting')")
    program = await Program.start("a server", line, core=CORES.server, log=tmp_path / "log")
    try:
        with pytest.raises(FailedError, match=r"(?s)a server ended with 1 before it listened.*no such setting"):
            await program.listening(free_port())
    finally:
        await program.end()


async def test_a_server_that_refuses_the_client_makes_a_sample_that_says_so(tmp_path: Path) -> None:
    limit = everyone()["limit"]
    case = replace(WORKLOADS["compressed"].cases[1].at_most(5), seconds=0.1)
    assert case.deflate  # which the loop in C does not speak
    sample = await Stage(CORES, tmp_path).measure(WORKLOADS["compressed"], case, limit, 0)
    assert sample.failure is not None
    assert "permessage-deflate" in sample.failure


async def test_where_connections_are_active_the_service_tells_of_itself_before_and_during(tmp_path: Path) -> None:
    workload = WORKLOADS["active15k"]
    case = replace(workload.cases[0].at_most(100), seconds=1.2)
    sample = await Stage(CORES, tmp_path).measure(workload, case, everyone()["tidewire"], 0)
    assert sample.failure is None
    for phase in ("before", "during"):
        assert set(sample.vitals[phase]) == {"stall", "pause"}
        assert sample.vitals[phase]["stall"] != 0, (
            phase
        )  # it is looked at each quarter of a second, and never on the dot


def test_a_service_that_does_not_answer_for_its_metrics_fails(tmp_path: Path) -> None:
    tidewire = Tidewire()
    tidewire.command(WORKLOADS["active15k"].cases[0], free_port(), tmp_path)
    with pytest.raises(FailedError, match="Tidewire does not answer for its metrics"):
        tidewire.vitals(tmp_path)


@pytest.mark.parametrize(("peer", "name"), [("tidewire", "fanout1"), ("limit", "active15k")])
async def test_who_says_nothing_and_who_is_not_asked_has_no_vitals(peer: str, name: str, tmp_path: Path) -> None:
    workload = WORKLOADS[name]
    case = replace(workload.cases[0].at_most(5), seconds=0.1, rate=100 if name == "active15k" else 0)
    sample = await Stage(CORES, tmp_path).measure(workload, case, everyone()[peer], 0)
    assert (sample.failure, sample.vitals) == (None, {})
    assert f"| {everyone()[peer].title} |" in report.markdown(results(sample, names=(name,)))


@pytest.fixture
def _cores_again() -> Iterator[None]:
    """A run moves its children, never us."""
    before = os.sched_getaffinity(0)
    yield
    assert os.sched_getaffinity(0) == before


@pytest.mark.usefixtures("_cores_again")
def test_a_quick_run_measures_tidewire_beside_c(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quick", "--only", "fanout1,idle,connect", "--connections", "400", "--seconds", "0.2", "--rounds", "2"]
    code = main([*words, "--output", str(tmp_path)])
    out, err = capsys.readouterr()
    assert code == 0, err
    fan_out, idle, connect, upgrade = (json.loads(line) for line in out.splitlines())
    named = [one["workload"] for one in (fan_out, idle, connect, upgrade)]
    assert named == ["fanout1", "idle", "connect", "connect upgrade"]
    assert fan_out["lost"] == 0
    assert fan_out["deliveries_per_second"] > 0
    assert 0 < fan_out["p50_us"] <= fan_out["p99_us"]
    assert connect["cost_us"] > 0
    assert upgrade["cost_us"] > 0
    assert "ratio_to_limit" not in idle
    assert idle["bytes_per_connection"] > 0
    document = json.loads((tmp_path / "quick" / "results.json").read_text())
    samples = document["samples"]
    assert {(s["peer"], s["round"]) for s in samples} == {(p, r) for p in ("limit", "tidewire") for r in (0, 1)}
    for sample in samples:
        assert sample["failure"] is None
        assert sample["rss"] >= sample["rss_alone"] > 0
        if sample["workload"] == "fanout1":
            assert sample["report"]["deliveries"] == sample["report"]["published"] * 400
    assert ET.parse(tmp_path / "quick" / "connect.svg").getroot().tag == f"{SVG}svg"
    assert _with_words_of(tmp_path) == []


def test_who_ends_a_run_ends_all_that_it_started(tmp_path: Path) -> None:
    words = ("--quick", "--only", "idle", "--peers", "tidewire", "--connections", "5", "--seconds", "50")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *words, "--output", str(tmp_path)],
        cwd=CHECKOUT,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            _until(lambda: any("job" in words for words in _with_words_of(tmp_path / "run")), process)
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 130
        finally:
            process.kill()
    assert _with_words_of(tmp_path) == []


def _until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Looks until it holds; there is no event to wait for in another process's children."""
    deadline = time.monotonic() + DEADLINE
    while not holds():
        assert process.poll() is None, cast("Any", process.stderr).read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _with_words_of(folder: Path) -> list[str]:
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
