"""The guard in tests/conftest.py catches what it is there for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ("keep.append(asyncio.create_task(asyncio.Event().wait()))", 1),
        ("task = asyncio.create_task(asyncio.Event().wait()); task.cancel()", 0),
        ("await asyncio.create_task(asyncio.sleep(0))", 0),
    ],
)
def test_a_task_left_behind_fails_its_test(tmp_path: Path, body: str, outcome: int) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(f"import asyncio\nkeep = []\n\nasync def test_it():\n    {body}\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            ROOT / "pyproject.toml",
            "--rootdir",
            tmp_path,
            "-p",
            "no:cacheprovider",
            ".",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == outcome, done.stdout
    assert ("left asyncio tasks behind" in done.stdout) == bool(outcome)
