"""The workflows call make targets that exist, trust nothing that can change under its name, and may do only what they have to."""

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
USES = re.compile(r"uses: (?P<action>[^@\s]+)@(?P<commit>\S+)(?: # (?P<version>v\d+\.\d+\.\d+))?$")
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


def actions() -> Iterator[tuple[str, str, str]]:
    """Every use of somebody else's action: action, commit, version."""
    for file in FILES:
        for line in file.read_text().splitlines():
            if "uses: " not in line or "uses: ./" in line:
                continue
            found = USES.search(line)
            assert found, f"{file.name}: {line.strip()!r} names no commit and version"
            yield found["action"], found["commit"], found["version"]


@each_file
def test_only_make_targets_that_there_are_are_called(file: Path) -> None:
    assert set(called(file)) <= TARGETS


def test_ci_calls_what_a_developer_calls() -> None:
    found = set(called(ROOT / ".github/workflows/ci.yml"))
    assert found >= {"check", "test", "test-quick", "test-chart", "test-e2e", "test-faults", "lint-deploy"}


def test_slow_suites_run_each_night() -> None:
    nightly = ROOT / ".github/workflows/nightly.yml"
    assert list(called(nightly)) == ["test-faults", "test-cluster"]
    faults = dict(jobs(nightly))["faults"]
    assert "" in [entry["soak"] for entry in faults["strategy"]["matrix"]["include"]], (
        "all faults, and not only random ones"
    )


def test_every_action_is_named_by_its_commit_and_each_by_one_alone() -> None:
    found = {(action.split("/")[0], action.split("/")[1], commit, version) for action, commit, version in actions()}
    assert len(found) > 5
    assert all(re.fullmatch("[0-9a-f]{40}", commit) and version for _, _, commit, version in found)
    assert len(found) == len({names[:2] for names in found}), "one commit for each action"


@each_file
def test_a_workflow_may_nothing_and_each_job_what_it_says(file: Path) -> None:
    assert yaml.safe_load(file.read_text())["permissions"] == {}
    for name, job in jobs(file):
        assert isinstance(job["permissions"], dict), name
        assert "uses" in job or "timeout-minutes" in job, name


@each_file
def test_no_checkout_leaves_a_token_behind(file: Path) -> None:
    for _, job in jobs(file):
        for step in job.get("steps", ()):
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False


def test_all_that_a_release_publishes_comes_after_the_whole_of_ci() -> None:
    found = dict(jobs(ROOT / ".github/workflows/release.yml"))

    def before(name: str) -> set[str]:
        needs = found[name].get("needs", [])
        needs = [needs] if isinstance(needs, str) else needs
        return set(needs).union(*map(before, needs))

    for name in ("image", "chart", "pypi", "npm", "release"):
        assert {"version", "ci"} <= before(name), name
