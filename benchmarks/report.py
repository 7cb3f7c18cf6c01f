"""Writes results as Markdown, SVG and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, Workload
from benchmarks.chart import Bar, chart
from benchmarks.figures import Figures, Sample, Spread, digits
from benchmarks.targets import KIB, TARGETS, Target

LIMIT = "limit"
_OURS = ("tidewire", "tidewire-redis")


@dataclass(frozen=True, slots=True)
class Results:
    """The results of a run."""

    machine: Mapping[str, Any]
    titles: Mapping[str, str]
    """Titles of the measured peers by name, in table order."""
    versions: Mapping[str, str]
    unavailable: Mapping[str, str]
    """Reasons of unmeasured peers, by title."""
    workloads: Sequence[Workload]
    samples: Sequence[Sample]

    @property
    def figures(self) -> Figures:
        """The statistics of the samples."""
        return Figures(self.samples, {workload.name: workload.unit for workload in self.workloads})


def write(results: Results, folder: Path) -> Path:
    """Writes results.json, report.md and charts into `folder`; returns the report."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document(results), indent=1) + "\n")
    for name, svg in charts(results).items():
        (folder / f"{name}.svg").write_text(svg)
    report = folder / "report.md"
    report.write_text(markdown(results))
    return report


def summary(results: Results, workload: Workload, case: Case, peer: str) -> dict[str, Any]:
    """Returns the relevant figures of one peer in one case."""
    figures = results.figures
    at = (workload.name, peer, case.name)
    found: dict[str, Any] = {"cost_us": figures.cost(*at)}
    if workload.unit != "connection-second":  # the loop in C pings nobody: its idling costs nothing
        found["ratio_to_limit"] = figures.ratio(workload.name, peer, LIMIT, case.name)
    if workload.unit == "delivery":
        found |= {
            "deliveries_per_second": figures.throughput(*at),
            "p50_us": figures.latency(workload.name, peer, "p50", case.name),
            "p99_us": figures.latency(workload.name, peer, "p99", case.name),
            "events_per_frame": figures.joined(*at),
        }
        if case.kind == "rate":  # the others take all they can get
            found["core_percent"] = figures.share(*at)
    elif workload.unit == "connection":
        found["seconds"] = figures.seconds(*at)
    elif workload.unit == "connection-second":
        found["bytes_per_connection"] = figures.memory(*at)
    written: dict[str, Any] = {key: spread.json() for key, spread in found.items() if spread is not None}
    written["lost"] = figures.lost(*at)
    if case.slow:
        written["slow_closed"] = figures.slow_closed(*at)
    if failures := figures.failures(*at):
        written["failures"] = failures
    return written


def document(results: Results) -> dict[str, Any]:
    """Returns results.json: the summary and every sample."""
    return {
        "machine": dict(results.machine),
        "versions": dict(results.versions),
        "unavailable": dict(results.unavailable),
        "targets": [
            {
                "target": target.title,
                "workload": target.workload,
                "floor": target.floor,
                "goal": target.goal,
                "unit": target.unit,
                "state": state,
                "found": None if spread is None else spread.json(),
                **({"why": why} if why else {}),
            }
            for target in _asked(results)
            for state, spread, why in [target.state(results.figures)]
        ],
        "workloads": {
            workload.name: {
                "title": workload.title,
                "unit": workload.unit,
                "cases": {
                    case.name: {
                        "figures": asdict(case),
                        "peers": {
                            peer: summary(results, workload, case, peer) for peer in _measured(results, workload, case)
                        },
                    }
                    for case in workload.cases
                },
            }
            for workload in results.workloads
        },
        "samples": [asdict(sample) for sample in results.samples],
    }


def lines(results: Results, kept: Path | None = None) -> list[str]:
    """Returns one JSON object for each workload and case: Tidewire compared with C, and the same of the kept run in the file."""
    written = []
    before: dict[str, Any] = {} if kept is None else json.loads(kept.read_text())["workloads"]
    for workload in results.workloads:
        for case in workload.cases:
            found = summary(results, workload, case, _OURS[0])
            medians = {key: value["median"] if isinstance(value, dict) else value for key, value in found.items()}
            rounds = found["cost_us"]["rounds"] if "cost_us" in found else 0
            earlier = (
                before.get(workload.name, {}).get("cases", {}).get(case.name, {}).get("peers", {}).get(_OURS[0], {})
            )
            compared = {
                f"kept_{key}": earlier[key]["median"]
                for key in ("ratio_to_limit", "cost_us", "p99_us", "seconds", "bytes_per_connection")
                if key in earlier and key in found
            }
            written.append(json.dumps({"workload": case.label(workload.name), **medians, **compared, "rounds": rounds}))
    return written


def told(results: Results) -> list[str]:
    """Formats the targets for a terminal."""
    written = []
    for target in _asked(results):
        state, found, why = target.state(results.figures)
        figure = "–" if found is None else f"{found.median:.3g}"
        sign = "≤" if target.less_is_better else "≥"
        bounds = f"floor {sign} {target.floor:g}, goal {sign} {target.goal:g}"
        written.append(f"{state:13} {target.title:60} {figure:>8} {target.unit:4} {bounds}{'; ' + why if why else ''}")
    return written


def charts(results: Results) -> dict[str, str]:
    """Returns an SVG for each workload, by name."""
    figures = results.figures
    drawn = {}
    for workload in results.workloads:
        bars = []
        for case in workload.cases:
            for peer in _measured(results, workload, case):
                value, _ = _headline(figures, workload, case.name, peer)
                if value is not None:
                    bars.append(Bar(_label(results, workload, case, peer), value, peer in _OURS))
        _, what = _headline(figures, workload, workload.cases[0].name, "")
        drawn[workload.name] = chart(f"{workload.title}: {what}", bars)
    return drawn


def _headline(figures: Figures, workload: Workload, case: str, peer: str) -> tuple[Spread | None, str]:
    """Returns the main figure of a workload."""
    if workload.unit == "connection-second":
        found = figures.memory(workload.name, peer, case)
        return None if found is None else found.over(KIB), "KiB of memory a connection (less is better)"
    if workload.unit == "connection":
        return figures.cost(workload.name, peer, case), "µs of processor time a connection (less is better)"
    if not workload.peers or LIMIT in workload.peers:
        return figures.ratio(workload.name, peer, LIMIT, case), "C's processor time ÷ the server's (more is better)"
    return figures.cost(workload.name, peer, case), "µs of processor time a delivery (less is better)"


def markdown(results: Results) -> str:
    """Returns the Markdown report."""
    machine = results.machine
    parts = [
        "# Benchmark\n",
        f"{machine['date']} · {machine['cores']} × {machine['processor']} · Linux {machine['kernel']} · "
        f"Python {machine['python']} · load average before it {machine['load_average']}\n",
        "Ratio: processor time of a bare C loop with one `send()` a delivery, divided by the server's, in the same round. "
        "More is better; above 1 is possible, because several events can go in one write. "
        "Figures are medians over the rounds, in brackets the lowest and the highest.\n",
        "## Targets\n",
        table(("target", "floor", "goal", "measured", "rounds", ""), _target_rows(results)),
    ]
    for workload in results.workloads:
        parts += [
            f"## {workload.name}: {workload.title}\n",
            f"![{workload.title}]({workload.name}.svg)\n",
            _workload_table(results, workload),
        ]
    parts += [
        "## Who was measured\n",
        table(("peer", "version"), [(results.titles[name], version) for name, version in results.versions.items()]),
    ]
    if results.unavailable:
        parts += ["Not available, and therefore not measured:\n"]
        parts += [f"- {title}: {_one_line(reason)}" for title, reason in results.unavailable.items()]
        parts += [""]
    return "\n".join(parts)


def _asked(results: Results) -> list[Target]:
    """Returns the targets whose workload was in the run."""
    names = {workload.name for workload in results.workloads}
    return [target for target in TARGETS if target.workload in names]


def _target_rows(results: Results) -> Sequence[Sequence[str]]:
    rows = []
    for target in _asked(results):
        state, spread, why = target.state(results.figures)
        sign = "≤" if target.less_is_better else "≥"
        rows.append(
            (
                target.title,
                f"{sign} {target.floor:g} {target.unit}",
                f"{sign} {target.goal:g} {target.unit}",
                _spread(spread),
                "" if spread is None else str(spread.rounds),
                f"{state}: {why}" if why else state,
            )
        )
    return rows


_COLUMNS = {
    "delivery": (
        ("ratio_to_limit", "ratio to C", 1),
        ("cost_us", "µs CPU a delivery", 1),
        ("deliveries_per_second", "deliveries/s", 1),
        ("p50_us", "p50 ms", 1_000),
        ("p99_us", "p99 ms", 1_000),
        ("events_per_frame", "events a frame", 1),
    ),
    "publish": (("cost_us", "µs CPU a publish", 1),),
    "connection": (("cost_us", "µs CPU a connection", 1), ("seconds", "all there after s", 1)),
    "connection-second": (
        ("bytes_per_connection", "KiB a connection", KIB),
        ("cost_us", "µs CPU a connection and second", 1),
    ),
}


def _workload_table(results: Results, workload: Workload) -> str:
    columns = _COLUMNS[workload.unit]
    if any(case.kind == "rate" for case in workload.cases):
        columns = (*columns, ("core_percent", "% of a core", 1))
    if workload.unit == "delivery" and LIMIT not in _measured(results, workload, workload.cases[0]):
        columns = columns[1:]
    rows = []
    for case in workload.cases:
        for peer in _measured(results, workload, case):
            found = summary(results, workload, case, peer)
            cells = [_cell(found.get(key), by) for key, _, by in columns]
            cells += [_rounds(found)]
            notes = [f"{found['lost']} lost"] if found["lost"] else []
            notes += [f"{found['slow_closed']} slow readers closed"] if case.slow else []
            notes += _vitals(results, workload, case, peer)
            notes += [_one_line(failure) for failure in found.get("failures", [])]
            rows.append((_label(results, workload, case, peer), *cells, "; ".join(notes)))
    return table(("", *(title for _, title, _ in columns), "rounds", ""), rows)


def _vitals(results: Results, workload: Workload, case: Case, peer: str) -> list[str]:
    """Returns the server's metrics of the worst round."""
    mine = [s for s in results.samples if (s.workload, s.case, s.peer) == (workload.name, case.name, peer) and s.vitals]
    if not mine or not case.active:
        return []
    memory = max((sample.rss - sample.rss_alone) / sample.connections for sample in mine) / KIB
    told = [
        f"{what} {_longest(mine, 'during', name)} (while connecting {_longest(mine, 'before', name)})"
        for name, what in (("stall", "longest stall"), ("pause", "longest collection"))
    ]
    return [", ".join((*told, f"{number(memory)} KiB a connection"))]


def _rounds(found: Mapping[str, Any]) -> str:
    """Formats the number of rounds of a row. A ratio has fewer if C was measured less often."""
    counted = [found[key]["rounds"] for key in ("cost_us", "ratio_to_limit") if key in found]
    if len(set(counted)) == 2:
        return f"{counted[0]}, ratio {counted[1]}"
    return str(counted[0]) if counted else ""


def _longest(samples: Sequence[Sample], when: str, name: str) -> str:
    bounds = [sample.vitals[when][name] for sample in samples]
    known = [bound for bound in bounds if bound is not None]
    if len(known) < len(bounds):
        return "beyond measure"
    return f"≤ {number(max(known) * 1_000)} ms" if any(known) else "none"


def _measured(results: Results, workload: Workload, case: Case) -> list[str]:
    present = {s.peer for s in results.samples if (s.workload, s.case) == (workload.name, case.name)}
    return [name for name in results.titles if name in present]


def _label(results: Results, workload: Workload, case: Case, peer: str) -> str:
    return results.titles[peer] + ("" if case.name == workload.name else f", {case.name}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table: the first and the last column are text."""
    marks = [" --- "] + ["---:" if number < len(head) - 1 else " --- " for number in range(1, len(head))]
    written = [f"| {' | '.join(head)} |", f"|{'|'.join(marks)}|"]
    written += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(written) + "\n"


def _cell(found: Mapping[str, float] | None, by: float) -> str:
    return "" if found is None else _spread(Spread(found["median"], found["low"], found["high"], 1).over(by))


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    if spread.low == spread.high:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.low)}–{number(spread.high)})"


def number(value: float) -> str:
    """Formats a number with three significant digits, or as a whole number from 1 000 on."""
    return f"{round(digits(value)):,}".replace(",", " ") if abs(value) >= 1_000 else f"{float(f'{value:.3g}'):g}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
