"""How much slower the suite runs because the machine does other work: by what the kernel counts, not by how long a step took."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_SCHEDSTAT = Path("/proc/self/schedstat")
LEAST_RUN = 200_000_000
"""Nanoseconds of CPU time below which the ratio says little."""
USUAL = 2.0
"""The ratio that the suite's own processes may cause on two cores."""


class CpuTimes(NamedTuple):
    """Nanoseconds in which the main thread of this process ran, and in which it waited for a core."""

    run: int = 0
    waited: int = 0


def cpu_times() -> CpuTimes:
    """Returns the times since the start of the process; zeros where the kernel does not count them."""
    try:
        run, waited, _ = _SCHEDSTAT.read_text().split()
    except OSError:
        return CpuTimes()
    return CpuTimes(int(run), int(waited))


def slowdown(since: CpuTimes, until: CpuTimes) -> float:
    """Returns the factor by which waiting for a core has prolonged the work of this process; 1 up to `USUAL`."""
    run, waited = until.run - since.run, until.waited - since.waited
    if run < LEAST_RUN or waited <= (USUAL - 1.0) * run:
        return 1.0
    return (run + waited) / run
