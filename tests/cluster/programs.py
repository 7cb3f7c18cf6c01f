"""The programs of these tests, which `scripts/setup.sh cluster` builds or takes out of wheels."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.chart.tools import ROOT, TOOLS
from tests.stores.process import MissingProgramError

BUILT = ROOT / "build" / "cluster"


def _existing(path: Path) -> Path:
    if not path.exists():
        raise MissingProgramError(f"these tests need {path.name}: run `make test-cluster` or scripts/setup.sh cluster")
    return path


def control_plane() -> Path:
    """etcd, API server, controller manager and scheduler in one program. Raises MissingProgramError."""
    return _existing(BUILT / "control-plane")


def keda_webhooks() -> Path:
    """KEDA's admission webhook. Raises MissingProgramError."""
    return _existing(BUILT / "keda-webhooks")


def kubectl() -> Path:
    """kubectl. Raises MissingProgramError."""
    return _existing(TOOLS / "kubectl")


def go() -> Path:
    """The go command that `scripts/setup.sh cluster` builds with. Raises MissingProgramError."""
    own = ROOT / ".venv" / "go" / "bin" / "go"
    found = shutil.which("go")
    return Path(found) if found is not None and not own.exists() else _existing(own)
