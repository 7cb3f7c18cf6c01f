"""docs/settings.md: the table is the settings', and the examples are good ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import load_settings
from service.settings.model import all_settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- settings: (\w+) -->\n```yaml\n(.*?)```", PAGE, re.DOTALL))


def test_the_table_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/settings_reference.py"), "--check"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_drift_is_told(tmp_path: Path) -> None:
    for name in ("scripts/settings_reference.py", "docs/settings.md"):
        (tmp_path / name).parent.mkdir()
        text = (ROOT / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(
            text.replace("| `port` | `TIDEWIRE_PORT` | `8080` |", "| `port` | `TIDEWIRE_PORT` | `80` |")
        )
    (tmp_path / "service").symlink_to(ROOT / "service")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "scripts/settings_reference.py"), "--check"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, "docs/settings.md" in done.stdout, done.stderr) == (1, True, "")


def test_every_setting_says_what_it_means() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| `(TIDEWIRE_[A-Z_]+)` \| .+ \| (.+) \|$", PAGE, re.MULTILINE)
    assert [(name, variable) for name, variable, _ in rows] == [(one.name, one.variable) for one in all_settings()]
    assert all(meaning.strip().endswith(".") for _, _, meaning in rows)


@pytest.mark.parametrize("name", ["smallest", "issuers", "keys"])
def test_the_examples_are_good(name: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(EXAMPLES[name].replace("…", "x" * 32))
    settings = load_settings(tmp_path / "settings.yaml", {})
    assert settings.contract == tmp_path / "contract.yaml"


def test_every_secret_s_file_variable_is_named() -> None:
    for setting in all_settings():
        assert (f"`{setting.variable}_FILE`" in PAGE) == setting.is_secret
