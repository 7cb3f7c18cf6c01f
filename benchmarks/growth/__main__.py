"""`python -m benchmarks.growth`: measures how the cost of one delivery, subscribe, join … grows with the size of a site."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import uvloop

from benchmarks import machine
from benchmarks.growth import channels, history, nodes, presence, report, tenants
from benchmarks.growth.figures import Part
from benchmarks.growth.ground import Ground
from benchmarks.interrupts import cancelled_by, terminated_as_interrupted
from benchmarks.peers.peer import TOOLS
from benchmarks.processes import Cores, FailedError
from benchmarks.progress import Progress

PARTS = {
    "nodes": nodes.measure,
    "channels": channels.measure,
    "presence": presence.measure,
    "history": history.measure,
    "tenants": tenants.measure,
}
_STEPS = {"nodes": (4, 2), "channels": (4, 2), "presence": (5, 2), "history": (5, 2), "tenants": (4, 2)}
"""Sizes of a full and of a quick run."""


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"parts: {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="two small sizes and one round: it works, no figures")
    parser.add_argument("--output", type=Path, default=TOOLS / "growth", help="folder for the results (%(default)s)")
    asked = parser.parse_args(words)
    asked.only = list(PARTS) if asked.only is None else asked.only.split(",")
    if unknown := [name for name in asked.only if name not in PARTS]:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return asked


async def measured(asked: argparse.Namespace) -> Path:
    """Measures the parts, and returns the report, which is written after each part. Raises FailedError."""
    cores = Cores.of_this_machine()
    facts = machine.facts(cores)
    progress = Progress(sys.stderr, sum(_STEPS[name][asked.quick] for name in asked.only))
    ground = Ground(cores, asked.output / "run", progress, asked.quick)
    parts: list[Part] = []
    written: Path = asked.output
    try:
        with cancelled_by(signal.SIGTERM):
            for name in asked.only:
                parts.append(await PARTS[name](ground))
                written = report.write(parts, facts, asked.output)
    finally:
        progress.over()
    return written


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit status."""
    asked = arguments(words)
    try:
        with terminated_as_interrupted(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            written = runner.run(measured(asked))
    except FailedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"{written.read_text()}\nreport: {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
