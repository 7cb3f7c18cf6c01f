"""docs/protocol.md and the JavaScript client hold what CloseCode and ErrorCode say."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/protocol.md"
MODULE = "clients/js/src/codes.js"


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/generate_codes.py"), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in (PAGE, MODULE):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_the_generated_files_are_up_to_date() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (PAGE, "| 4401 | UNAUTHORIZED | *refresh* |", "| 4401 | UNAUTHORIZED | *stop* |"),
        (PAGE, "| `forbidden` | 403 |", "| `forbidden` | 404 |"),
        (MODULE, 'name: "SLOW_CONSUMER", action: "reconnect"', 'name: "SLOW_CONSUMER", action: "stop"'),
    ],
)
def test_drift_is_named_and_repaired(checkout: Path, name: str, old: str, new: str) -> None:
    file = checkout / name
    right = file.read_text(encoding="utf-8")
    assert right.count(old) == 1
    file.write_text(right.replace(old, new), encoding="utf-8")

    checked = generate("--check", "--root", str(checkout))
    assert checked.returncode == 1
    assert name in checked.stdout
    assert file.read_text(encoding="utf-8") != right, "--check writes nothing"

    assert generate("--root", str(checkout)).returncode == 0
    assert file.read_text(encoding="utf-8") == right


def test_a_page_without_its_marks_is_refused(checkout: Path) -> None:
    page = checkout / PAGE
    page.write_text(page.read_text(encoding="utf-8").replace("<!-- generated: close-codes -->", ""), encoding="utf-8")
    done = generate("--root", str(checkout))
    assert done.returncode != 0
    assert "close-codes" in done.stderr
