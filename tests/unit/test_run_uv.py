"""A smoke test of scripts/run_uv.py: uv gets what pip is configured with, and nothing that changes what is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.run_uv import pip_options, uv_environment


class Machine:
    """A home with pip's files in it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.prefix = folder / "prefix"
        self.environment = {"HOME": str(self.home), "XDG_CONFIG_DIRS": str(folder / "xdg")}
        self.places = {
            "global": folder / "xdg/pip/pip.conf",
            "legacy": self.home / ".pip/pip.conf",
            "user": self.home / ".config/pip/pip.conf",
            "site": self.prefix / "pip.conf",
            "own": folder / "own.conf",
        }

    def write(self, place: str, text: str) -> None:
        self.places[place].parent.mkdir(parents=True, exist_ok=True)
        self.places[place].write_text(text)
        if place == "own":
            self.environment["PIP_CONFIG_FILE"] = str(self.places[place])

    def options(self, **environment: str) -> dict[str, str]:
        return pip_options({**self.environment, **environment}, self.prefix)

    def uv(self, **environment: str) -> dict[str, str]:
        return uv_environment(self.options(**environment), environment)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_environment_variable_wins_over_pip_files(machine: Machine) -> None:
    machine.write("own", "[install]\nindex-url = https://own.example\n")
    assert machine.uv()["UV_DEFAULT_INDEX"] == "https://own.example"
    assert machine.uv(PIP_INDEX_URL="https://variable.example")["UV_DEFAULT_INDEX"] == "https://variable.example"


def test_variables_that_change_what_is_installed_are_dropped(machine: Machine) -> None:
    others = {
        "UV_NO_EDITABLE": "1",
        "UV_REQUIRE_HASHES": "1",
        "UV_EXCLUDE_NEWER": "2020-01-01",
        "UV_INDEX_STRATEGY": "first-index",
    }
    found = machine.uv(UV_CACHE_DIR="/cache", HTTPS_PROXY="http://proxy.example", **others)
    assert (found["UV_CACHE_DIR"], found["HTTPS_PROXY"]) == ("/cache", "http://proxy.example")
    assert not {"UV_NO_EDITABLE", "UV_REQUIRE_HASHES", "UV_EXCLUDE_NEWER"} & set(found)
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"
