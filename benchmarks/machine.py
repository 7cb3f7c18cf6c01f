"""What must be known of a machine to read its figures."""

from __future__ import annotations

import os
import platform
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
        "python": platform.python_version(),
        "server_core": cores.server,
        "client_core": cores.client,
        "load_average": round(os.getloadavg()[0], 2),
    }
