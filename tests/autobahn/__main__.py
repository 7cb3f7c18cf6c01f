"""`python -m tests.autobahn`: plays every case on every event loop; exits with 1 if one does not end as it must."""

from __future__ import annotations

import argparse
import sys
import time
from itertools import groupby

from tests.autobahn.cases import DEFLATED, DEVIATIONS, LOOPS, PLAIN, chosen, faults, play

PATIENCE = 120.0
"""Seconds for a case, on average."""


def main() -> int:
    """Does it."""
    parser = argparse.ArgumentParser(prog="python -m tests.autobahn", description=__doc__)
    parser.add_argument("--only", default="*", help="ids of cases or globs, joined by commas (default: all)")
    parser.add_argument("--loop", default=",".join(LOOPS), help="of asyncio, uvloop; joined by commas")
    given = parser.parse_args()
    loops = given.loop.split(",")
    if not set(loops) <= set(LOOPS):
        parser.error(f"there is no loop but {', '.join(LOOPS)}")
    played, found = 0, []
    for loop in loops:
        for compresses, patterns in ((False, PLAIN), (True, DEFLATED)):
            wanted = set(chosen(given.only.split(",")))
            mine = [case for case in chosen(patterns) if case in wanted]
            for group, members in groupby(mine, lambda case: case.partition(".")[0]):
                cases = list(members)
                begun = time.monotonic()
                results = play(loop, cases, compresses=compresses, at_once=2, within=PATIENCE * len(cases))
                faulty = faults(cases, results)
                played += len(cases)
                found += [f"{loop}: {fault}" for fault in faulty]
                took = time.monotonic() - begun
                print(f"{loop:8} {group:>2}.*  {len(cases):3} cases, {len(faulty)} faults, {took:.0f} s", flush=True)
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{played} cases played, {len(found)} faults; {len(DEVIATIONS)} of the suite's are known to end otherwise")
    return 1 if found or not played else 0


if __name__ == "__main__":
    sys.exit(main())
