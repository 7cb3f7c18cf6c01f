"""What actionlint and zizmor do not see: that every make target exists, and that a release waits for CI."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = frozenset(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
MAKE = re.compile(r"\bmake (\"?\$?[\w-]+)")

Json = dict[str, Any]

each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def jobs(file: Path) -> Iterator[tuple[str, Json]]:
    """The jobs of a workflow."""
    yield from yaml.safe_load(file.read_text())["jobs"].items()


def called(file: Path) -> Iterator[str]:
    """Every make target that a workflow calls, by name or by its matrix."""
    for _, job in jobs(file):
        for step in job.get("steps", ()):
            for target in MAKE.findall(step.get("run", "")):
                if target != '"$TARGET':
                    yield target
                    continue
                assert step["env"]["TARGET"] == "${{ matrix.target }}"
                for entry in job["strategy"]["matrix"]["include"]:
                    yield entry["target"]


@each_file
def test_workflow_calls_existing_make_targets(file: Path) -> None:
    assert set(called(file)) <= TARGETS


def test_release_publishes_after_ci() -> None:
    found = dict(jobs(ROOT / ".github/workflows/release.yml"))

    def before(name: str) -> set[str]:
        needs = found[name].get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        return set(needs).union(*map(before, needs))

    for name in ("image", "chart", "pypi", "npm", "release"):
        assert {"version", "ci"} <= before(name), name
