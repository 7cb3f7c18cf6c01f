"""`python -m tests.faults`: plays scenarios, prints the table, writes build/faults.json; exits with 1 if anything failed."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from random import Random

from tests.faults import everything
from tests.faults.clients.transports import TRANSPORTS
from tests.faults.publishers import PUBLISHERS
from tests.faults.report import Report, table
from tests.faults.scenario import SCENARIOS, STORES, Mix, Scenario, run

RESULTS = Path("build/faults.json")


def main() -> int:
    """Does it."""
    given = _arguments()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    assert soft <= hard
    reports: list[Report] = []
    try:
        for scenario, seed in _schedule(given):
            for store in (store for store in given.store if store in scenario.stores):
                print(f"{scenario.name} on {store}, seed {seed} …", file=sys.stderr, flush=True)
                with asyncio.Runner(debug=False) as runner:
                    played = run(scenario, seed, store, quick=given.quick, mix=given.mix, patience=given.patience)
                    report = runner.run(played)
                print(f"  {report.verdict} in {report.seconds:g} s", file=sys.stderr, flush=True)
                reports.append(report)
    except KeyboardInterrupt:
        print("stopped; so far:", file=sys.stderr)
    print(table(reports))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([report.as_json() for report in reports], indent=1))
    failed = sum(bool(report.failures) for report in reports)
    skipped = sum(bool(report.skipped) for report in reports)
    print(f"\n{len(reports)} scenarios, {failed} failed, {skipped} skipped; details: {RESULTS}")
    return 1 if failed or not reports else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the schedule and the traffic (default: 1)")
    parser.add_argument("--only", default="", help="names of scenarios, joined by commas")
    parser.add_argument("--store", default="redis,valkey,nats", help="of redis, valkey, nats, memory; joined by commas")
    parser.add_argument(
        "--transports",
        default=",".join(Mix().transports),
        help=f"of clients, each as often as named: {', '.join(TRANSPORTS)}",
    )
    parser.add_argument(
        "--publishers", default=",".join(Mix().publishers), help=f"each as often as named: {', '.join(PUBLISHERS)}"
    )
    parser.add_argument("--soak", type=float, default=0.0, metavar="MINUTES", help="random faults for so long")
    parser.add_argument(
        "--patience", type=float, default=1.0, help="what bounds on seconds are multiplied by: a busy machine"
    )
    parser.add_argument("--quick", action="store_true", help="little traffic, and only the scenarios of the quick form")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    given = parser.parse_args()
    if given.list:
        for scenario in everything():
            print(f"{scenario.name:22} {' '.join((scenario.play.__doc__ or '').split())}")
        sys.exit(0)
    given.store = [name for name in given.store.split(",") if name]
    for name in given.store:
        if name not in STORES:
            parser.error(f"{name!r} is none of {', '.join(STORES)}")
    given.mix = Mix(_names(parser, given.transports, TRANSPORTS), _names(parser, given.publishers, PUBLISHERS))
    given.only = [name for name in given.only.split(",") if name]
    known = {scenario.name for scenario in everything()}
    for name in given.only:
        if name not in known:
            parser.error(f"there is no scenario {name!r}; --list names them")
    return given


def _names(parser: argparse.ArgumentParser, text: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(name for name in text.split(",") if name)
    if not names or not set(names) <= set(known):
        parser.error(f"{text!r} has others than {', '.join(known)}")
    return names


def _schedule(given: argparse.Namespace) -> Iterator[tuple[Scenario, int]]:
    everything()
    chosen = [SCENARIOS[name] for name in given.only] or [
        scenario for scenario in everything() if scenario.quick or not given.quick
    ]
    if not given.soak:
        yield from ((scenario, given.seed) for scenario in chosen)
        return
    end, seed = time.monotonic() + given.soak * 60, given.seed
    while time.monotonic() < end:
        yield Random(seed).choice(chosen), seed
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
