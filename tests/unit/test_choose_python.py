"""A smoke test of scripts/choose_python.py: which Python of the machine becomes the environment's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/choose_python.py"

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a program that answers as an interpreter of this speed would."""

    def make(name: str, seconds: str, version: str = "3.11") -> Path:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\nprintf '%s\\n' '{path}' '{version}' '{seconds}'\n")
        path.chmod(0o755)
        return path

    return make


def order(*paths: Path | str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        input="\n".join(map(str, paths)), capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return [Path(line).name for line in done.stdout.splitlines()]


def test_much_faster_build_comes_first_and_others_keep_their_order(make: Make) -> None:
    assert order(make("a", "0.0020"), make("b", "0.0019"), make("c", "0.0010")) == ["c", "a", "b"]


def test_program_that_does_not_answer_is_skipped(make: Make, tmp_path: Path) -> None:
    nonsense = make("nonsense", "fast")
    assert order("/bin/false", tmp_path / "missing", nonsense, make("a", "0.002")) == ["a"]
