"""The programs of these tests: those that scripts/setup.sh takes out of wheels, or the system's."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.chart.tools import ROOT, Helm, helms
from tests.stores.process import MissingProgramError

WHOLE = os.environ.get("E2E") == "whole"
"""Whether `make test-e2e` asks: then nothing may be missing."""
PROGRAMS = ROOT / ".venv" / "programs"
_SYSTEM = (os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin")


def program(name: str) -> Path:
    """The path of a program. Raises MissingProgramError."""
    own = PROGRAMS / name
    if own.exists():
        return own
    found = shutil.which(name, path=os.pathsep.join(_SYSTEM))
    if found is None:
        raise MissingProgramError(f"these tests need the program {name}: run scripts/setup.sh e2e")
    return Path(found)


def helm() -> Helm:
    """The newest Helm there is. Raises MissingProgramError."""
    if not helms():
        raise MissingProgramError("these tests need Helm: run scripts/setup.sh chart")
    return helms()[max(helms())]


def need(*names: str) -> None:
    """Fails the test for a program that is not here; in a plain `make test`, where it may be no machine for it, skips it."""
    try:
        helm()
        for name in names:
            program(name)
    except MissingProgramError as error:
        (pytest.fail if WHOLE else pytest.skip)(str(error))
