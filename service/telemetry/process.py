"""Reads memory, files and version of this process."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import metadata
from math import inf, nan
from pathlib import Path

_FDS = Path("/proc/self/fd")
_STATM = Path("/proc/self/statm")


def resident_memory() -> float:
    """Bytes of this process that are in memory; NaN if the system does not report them."""
    try:
        return float(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return nan


def open_files() -> float:
    """Descriptors in use; NaN if the system does not report them."""
    try:
        # Since Linux 6.2 the directory's size is their number; listing 15 000 of them takes milliseconds.
        return float(_FDS.stat().st_size or len(os.listdir(_FDS)))  # noqa: PTH208  # only their number is needed, no objects
    except OSError:  # not Linux, or no descriptor left to read it with
        return nan


def max_files() -> float:
    """Descriptors that this process may have: the soft limit; inf without a limit; NaN if the system does not report
    it."""
    if sys.platform == "win32":
        return nan
    import resource  # there is none on Windows

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return inf if soft == resource.RLIM_INFINITY else float(soft)


@cache  # reads the disk, and every heartbeat needs the version
def version() -> str:
    """The version of the installed distribution."""
    try:
        return metadata.version("tidewire-server")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
