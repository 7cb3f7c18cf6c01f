"""Compares two revisions of Tidewire in one run, to judge a change to the hot path."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.cases import Workload
from benchmarks.figures import Figures, Spread, digits
from benchmarks.peers.peer import CHECKOUT, TOOLS
from benchmarks.peers.tidewire import Tidewire

AFTER, BEFORE = "tidewire", "before"
NOTICEABLE = 0.02
"""Smaller changes of the median count as no difference."""


class Before(Tidewire):
    """Another revision, run with this Python and these libraries."""

    name = BEFORE
    title = "Tidewire before"


class UnknownRevisionError(Exception):
    """Git does not know the revision; the text has Git's message."""


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Yields a temporary worktree of the revision below build/. Raises UnknownRevisionError."""
    commit = _git("rev-parse", "--verify", "--short", f"{revision}^{{commit}}").strip()
    folder = TOOLS / "compare" / commit
    _git("worktree", "prune")
    if not folder.exists():
        _git("worktree", "add", "--detach", "--quiet", str(folder), commit)
    if (folder / "hatch_build.py").exists():  # its native sender, which no install makes there
        build = "import hatch_build, pathlib, sys; sys.exit(hatch_build.build(pathlib.Path.cwd()))"
        subprocess.run([sys.executable, "-c", build], cwd=folder, check=True)
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*words: str) -> str:
    done = subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnknownRevisionError(f"git {words[0]}: {done.stderr.strip()}")
    return done.stdout


def between(workload: Workload) -> Workload:
    """Returns the workload for the two revisions."""
    cases = tuple(replace(case, peers=()) for case in workload.cases)
    return replace(workload, cases=cases, peers=(BEFORE, AFTER))


def verdict(gain: Spread) -> str:
    """Judges the ratio before ÷ after. Only an interval without 1 is a change; with few rounds, all must agree."""
    if gain.rounds < 2:
        return "one round says nothing"
    low, high = gain.interval or (gain.low, gain.high)
    if low > 1 and gain.median >= 1 + NOTICEABLE:
        return "cheaper"
    if high < 1 and gain.median <= 1 - NOTICEABLE:
        return "dearer"
    return "no difference"


def compared(figures: Figures, workloads: Sequence[Workload]) -> list[dict[str, Any]]:
    """Returns the change of each workload and case: cost, latency, memory."""
    found = []
    for workload in workloads:
        for case in workload.cases:
            at: dict[str, Any] = {"workload": workload.name, "case": case.name, "label": case.label(workload.name)}
            gain = figures.ratio(workload.name, AFTER, BEFORE, case.name)
            if gain is None:
                failures = [f for peer in (AFTER, BEFORE) for f in figures.failures(workload.name, peer, case.name)]
                found.append(at | {"verdict": "not measured", "failures": failures})
                continue
            at |= {"before_over_after": gain.json(), "verdict": verdict(gain)}
            for name, peer in (("before", BEFORE), ("after", AFTER)):
                cost = figures.cost(workload.name, peer, case.name)
                at[f"cost_us_{name}"] = None if cost is None else digits(cost.median)
                if workload.unit == "connection-second":
                    memory = figures.memory(workload.name, peer, case.name)
                    at[f"bytes_per_connection_{name}"] = None if memory is None else digits(memory.median)
                if workload.unit == "delivery":
                    p99 = figures.latency(workload.name, peer, "p99", case.name)
                    at[f"p99_us_{name}"] = None if p99 is None else digits(p99.median)
            at["lost"] = {peer: figures.lost(workload.name, peer, case.name) for peer in (BEFORE, AFTER)}
            found.append(at)
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """Formats the result for a terminal."""
    rows = ["before ÷ after of the processor time (above 1: cheaper now)", ""]
    for one in found:
        name = one["label"]
        gain = one.get("before_over_after")
        if gain is None:
            rows.append(f"{name:22} not measured: {'; '.join(one['failures'])}")
            continue
        low, high = gain.get("interval", (gain["low"], gain["high"]))
        spread = f"{gain['median']:.3f}  ({low:.3f} to {high:.3f}"
        spread += f"; {gain['rounds']} rounds, {gain['low']:.3f} to {gain['high']:.3f})"
        cost = f"{one['cost_us_before']} → {one['cost_us_after']} µs"
        memory = "bytes_per_connection_before" in one
        more = (
            f", {one['bytes_per_connection_before']:.0f} → {one['bytes_per_connection_after']:.0f} B" if memory else ""
        )
        lost = f", LOST {one['lost']}" if any(one["lost"].values()) else ""
        rows.append(f"{name:22} {spread}  {cost}{more}  {one['verdict']}{lost}")
    return "\n".join(rows)


def write(found: Sequence[dict[str, Any]], versions: dict[str, str], samples: list[dict[str, Any]], file: Path) -> None:
    """Writes the result as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"versions": versions, "compared": list(found), "samples": samples}, indent=1) + "\n")
