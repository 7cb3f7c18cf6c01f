"""A smoke test of the guard in tests/conftest.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

TESTS = """
import asyncio

keep = []

async def test_leaves_a_task_behind():
    keep.append(asyncio.create_task(asyncio.Event().wait()))

async def test_cancels_its_task():
    task = asyncio.create_task(asyncio.Event().wait())
    task.cancel()

async def test_awaits_its_task():
    await asyncio.create_task(asyncio.sleep(0))
"""


def test_task_left_behind_fails_its_test(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
        "-rA",
        ".",
    ]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-p", "no:randomly"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("PASSED", "FAILED", "ERROR"))]
    assert done.returncode == 1, done.stdout
    assert [line.partition(" - ")[0] for line in said] == [
        "PASSED test_it.py::test_leaves_a_task_behind",
        "PASSED test_it.py::test_cancels_its_task",
        "PASSED test_it.py::test_awaits_its_task",
        "ERROR test_it.py::test_leaves_a_task_behind",
    ]
    assert done.stdout.count("left asyncio tasks behind") >= 1
