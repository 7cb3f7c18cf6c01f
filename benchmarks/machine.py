"""Facts about the machine that a report needs."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.processes import Cores


def facts(cores: Cores) -> dict[str, Any]:
    """Returns cores, kernel, Python, date, and the load average at the start."""
    models = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": next(models, ": unknown").partition(":")[2].strip(),
        "kernel": platform.release(),
        "python": python(),
        "server_core": cores.server,
        "client_core": cores.client,
        "load_average": round(os.getloadavg()[0], 2),
    }


def python() -> str:
    """Returns version and build of the interpreter, which also runs the service and the Python peers.

    A build without profile-guided optimisation can be half as fast. No interpreter reports it reliably: the configure flag is
    recorded, but Debian's optimised build does not use that flag.
    """
    flags = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    asked = "" if "--enable-optimizations" in flags else " not on record"
    build = ", ".join((sys.version.partition("(")[2].partition(")")[0], platform.python_compiler()))
    return f"{platform.python_version()} ({build}, --enable-optimizations{asked})"
