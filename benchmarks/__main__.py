"""`python -m benchmarks`: compares Tidewire with other servers, with a plain C loop, or with another revision."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks import compare, machine, report
from benchmarks.build import BuildError, build
from benchmarks.cases import QUICK, WORKLOADS, Workload, quick
from benchmarks.figures import Figures, Sample
from benchmarks.interrupts import cancelled_by, terminated_as_interrupted
from benchmarks.measuring import Stage
from benchmarks.peers import Peer, UnavailableError, everyone
from benchmarks.peers.peer import CHECKOUT, TOOLS
from benchmarks.peers.tidewire import Tidewire
from benchmarks.processes import Cores
from benchmarks.progress import Progress
from benchmarks.rounds import WHERE_NAMED, Plan, Rounds

_BESIDE_C = ("limit", "tidewire")
_ROUNDS = {"full": 6, "quick": 3, "compare": 3}
_MINUTES = {"full": 18.5, "quick": 0.8, "compare": 10.0}
"""Minutes after which a full or a quick run starts no further measurement."""


KEPT = CHECKOUT / "docs/performance/results.json"
"""The run that docs/performance.md shows. Its machine may differ: compare the ratios."""


class ChangedError(Exception):
    """The measured code changed during the run."""


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tidewire and C only, small; a JSON line a workload")
    parser.add_argument("--compare", metavar="REVISION", help="this checkout against another revision of it")
    parser.add_argument("--only", metavar="NAMES", help=f"workloads: {', '.join(WORKLOADS)}")
    parser.add_argument("--peers", metavar="NAMES", help=f"peers: {', '.join(everyone())}")
    parser.add_argument(
        "--rounds",
        type=int,
        help="how often what a target asks about is measured, if there is time "
        f"({', '.join(f'{kind}: {rounds}' for kind, rounds in _ROUNDS.items())}); other peers once, unless --peers names them",
    )
    parser.add_argument(
        "--seconds", type=float, help="of a measured phase; below 1.5 the 10 ms of the kernel's clock show"
    )
    parser.add_argument("--connections", type=int, help="at most so many, for a small machine")
    parser.add_argument(
        "--minutes", type=float, help="after the first round nothing is begun that would not end in this time"
    )
    parser.add_argument("--output", type=Path, default=TOOLS, help="folder for the results (%(default)s)")
    parser.add_argument("--no-install", action="store_true", help="leave out peers that are not installed")
    asked = parser.parse_args(words)
    for option, known in (("only", WORKLOADS), ("peers", everyone())):
        unknown = set(_names(getattr(asked, option))) - set(known)
        if unknown:
            parser.error(f"--{option}: no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for option in ("rounds", "seconds", "connections", "minutes"):
        if (figure := getattr(asked, option)) is not None and figure <= 0:
            parser.error(f"--{option}: {figure:g} is not more than 0")
    return asked


def _names(written: str | None) -> list[str]:
    return [name.strip() for name in written.split(",")] if written else []


def workloads(asked: argparse.Namespace) -> list[Workload]:
    """Returns the selected workloads with the requested parameters."""
    small = asked.quick or asked.compare is not None
    names = _names(asked.only) or (QUICK if small else list(WORKLOADS))
    found = [quick(WORKLOADS[name]) if small else WORKLOADS[name] for name in WORKLOADS if name in names]
    return [_resized(workload, asked.seconds, asked.connections) for workload in found]


def _resized(workload: Workload, seconds: float | None, connections: int | None) -> Workload:
    cases = workload.cases
    if connections is not None:
        cases = tuple(case.at_most(connections) for case in cases)
    if seconds is not None:
        cases = tuple(replace(case, seconds=seconds if case.seconds else 0) for case in cases)
    return replace(workload, cases=cases)


def obtained(peers: Iterable[Peer], progress: Progress, *, install: bool) -> tuple[list[Peer], dict[str, str]]:
    """Installs peers; returns the usable ones, and by title the reasons why others are not."""
    found, missing = [], {}
    for peer in peers:
        try:
            if (reason := peer.available()) is not None:
                if not install:
                    raise UnavailableError(reason)
                progress.says(f"installing {peer.title}")
                peer.install()
                if (reason := peer.available()) is not None:
                    raise UnavailableError(reason)
            found.append(peer)
        except UnavailableError as error:
            missing[peer.title] = str(error)
            progress.says(f"not available: {peer.title}: {error}")
    return found, missing


async def measured(asked: argparse.Namespace) -> int:
    """Measures peers and writes the report; with `--quick` prints one JSON line for each workload."""
    chosen = workloads(asked)
    every = everyone()
    named = WHERE_NAMED & {name for workload in chosen for name in workload.peers}
    wanted = _names(asked.peers) or ({*_BESIDE_C, *named} if asked.quick else set(every) - WHERE_NAMED | named)
    talk = Progress(sys.stderr, 0)
    peers, missing = obtained(
        (peer for name, peer in every.items() if name in wanted), talk, install=not asked.no_install
    )
    cores = Cores.of_this_machine()
    before = machine.facts(cores)
    samples = await _run(asked, "quick" if asked.quick else "full", chosen, peers, cores)
    results = report.Results(
        before,
        {peer.name: peer.title for peer in peers},
        {peer.name: peer.version() for peer in peers},
        missing,
        chosen,
        samples,
    )
    written = report.write(results, asked.output / "quick" if asked.quick else asked.output)
    if asked.quick:
        print("\n".join(report.lines(results, KEPT if KEPT.exists() else None)))
    else:
        print("\n".join((*report.told(results), "", f"report: {written}")))
    return _judged(samples)


async def compared(asked: argparse.Namespace) -> int:
    """Compares this checkout with another revision."""
    chosen = [compare.between(workload) for workload in workloads(asked)]
    with compare.checked_out(asked.compare) as folder:
        peers = [compare.Before(folder), everyone()[compare.AFTER]]
        versions = {peer.name: peer.version() for peer in peers}
        samples = await _run(asked, "compare", chosen, peers, Cores.of_this_machine())
    found = compare.compared(Figures(samples, {workload.name: workload.unit for workload in chosen}), chosen)
    compare.write(found, versions, [asdict(sample) for sample in samples], asked.output / "compare.json")
    print(f"before: {versions[compare.BEFORE]}\nafter:  {versions[compare.AFTER]}\n\n{compare.table(found)}")
    return _judged(samples)


async def _run(
    asked: argparse.Namespace, kind: str, chosen: Sequence[Workload], peers: Sequence[Peer], cores: Cores
) -> list[Sample]:
    # Whoever names peers wants to know about these.
    plan = Plan(
        chosen,
        peers,
        _ROUNDS[kind] if asked.rounds is None else asked.rounds,
        _MINUTES[kind] if asked.minutes is None else asked.minutes,
        sparing=kind == "full" and not asked.peers,
    )
    progress = Progress(sys.stderr, plan.steps)
    if not cores.apart:
        progress.says("there is one core: server and client share it, and latencies mean little")
    build()
    tidewire = Tidewire()
    before = tidewire.fingerprint()
    try:
        with cancelled_by(signal.SIGTERM):
            samples = await Rounds(plan, Stage(cores, asked.output / "run"), progress).run()
    finally:
        progress.over()
    if tidewire.fingerprint() != before:
        raise ChangedError(
            "files of service/ were changed during the run: its rounds are not of one and the same; run it again"
        )
    return samples


def _judged(samples: Sequence[Sample]) -> int:
    """Returns 1 if Tidewire or the C loop could not be measured; failures of other peers do not count."""
    ours = (*_BESIDE_C, "tidewire-redis", compare.BEFORE)
    return 1 if not samples or any(sample.failure is not None and sample.peer in ours for sample in samples) else 0


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit status."""
    asked = arguments(words)
    try:
        with terminated_as_interrupted():
            return asyncio.run(compared(asked) if asked.compare is not None else measured(asked))
    except (BuildError, ChangedError, compare.UnknownRevisionError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
