"""What must be known of a machine to read its figures."""

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
    """Cores, kernel, Python, the date, and how busy it was when the run began."""
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
    """Version and build of the interpreter that runs us, the service and the peers in Python.

    One that was built without profile-guided optimisation can be half as fast, and no interpreter says reliably whether it was:
    the configure flag that asks for it is recorded, but Debian's optimised build does without that flag.
    """
    flags = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    asked = "" if "--enable-optimizations" in flags else " not on record"
    build = ", ".join((sys.version.partition("(")[2].partition(")")[0], platform.python_compiler()))
    return f"{platform.python_version()} ({build}, --enable-optimizations{asked})"
