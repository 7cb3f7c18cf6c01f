"""Settings of several workers: what contradicts them is told before anything is started."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from service import process
from service.__main__ import main
from service.cli import workers
from service.contract.document import Faults
from service.contract.load import load
from service.settings import SettingsFaults, load_settings

GOOD = {
    "TIDEWIRE_AUTH__SECRET": "a secret for tests, long enough for HS256",
    "TIDEWIRE_CONTRACT": str(Path(__file__).parent / "contracts/good.yaml"),
    "TIDEWIRE_BROKER__URL": "redis://127.0.0.1:6379",
    "TIDEWIRE_WORKERS": "4",
}


def faults(**changes: str) -> list[str]:
    """What is wrong with the good settings so changed; an empty value sets nothing."""
    try:
        load_settings(None, GOOD | {f"TIDEWIRE_{name}": value for name, value in changes.items()})
    except SettingsFaults as found:
        return [str(fault) for fault in found.faults]
    return []


def test_workers_unset_is_one() -> None:
    assert load_settings(None, GOOD | {"TIDEWIRE_WORKERS": ""}).workers == 1
    assert load_settings(None, GOOD).workers == 4


def test_workers_in_settings_file_are_overridden_by_environment(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("workers: 3\n")
    assert load_settings(file, GOOD | {"TIDEWIRE_WORKERS": ""}).workers == 3
    assert load_settings(file, GOOD).workers == 4, "the environment wins"
    file.write_text("port: 80\nworkers: 0\n")
    with pytest.raises(SettingsFaults, match=r"settings\.yaml:2: workers: should be greater than or equal to 1"):
        load_settings(file, GOOD | {"TIDEWIRE_WORKERS": ""})


def test_workers_with_memory_broker_are_refused_with_remedy() -> None:
    [fault] = faults(BROKER__URL="")
    assert fault == (
        "settings: 4 workers need a broker that they share, and memory:// is one process's own: start a Redis or Valkey on this "
        "machine and set broker.url (TIDEWIRE_BROKER__URL) to redis://127.0.0.1:6379, or leave workers at 1"
    )
    [fault] = faults(BROKER__URL="memory://")
    assert fault.startswith("TIDEWIRE_BROKER__URL: 4 workers need")
    assert faults(BROKER__URL="", WORKERS="1") == []


def test_unknown_broker_is_reported_once() -> None:
    [fault] = faults(BROKER__URL="kafka://h")
    assert "is none of memory://" in fault


@pytest.mark.parametrize(
    ("ports", "fault"),
    [
        ({"PORT": "9092"}, "TIDEWIRE_OPS_PORT: the 4 workers use ops ports 9090 to 9093, and port is among them"),
        ({"PORT": "9090"}, "TIDEWIRE_OPS_PORT: is the same as port; the two listeners need one each"),
        (
            {"OPS_PORT": "65533"},
            "TIDEWIRE_OPS_PORT: the 4 workers would use ops ports up to 65536; there are none above",
        ),
        ({"WORKERS": "1000"}, "TIDEWIRE_WORKERS: workers: should be less than or equal to 256"),
        ({"WORKERS": "many"}, "TIDEWIRE_WORKERS: workers: should be a valid integer"),
    ],
)
def test_ports_in_conflict_are_refused(ports: dict[str, str], fault: str) -> None:
    [found] = faults(**{"OPS_PORT": "9090", **ports})
    assert found.startswith(fault)


@pytest.mark.parametrize(
    "ports",
    [
        {"PORT": "9094"},
        {"PORT": "9089"},
        {"PORT": "9092", "HOST": "127.0.0.2"},
        {"OPS_PORT": "65532"},
        {"OPS_PORT": "0"},
    ],
)
def test_ports_without_conflict_are_accepted(ports: dict[str, str]) -> None:
    assert faults(**{"OPS_PORT": "9090", **ports}) == []


# --- the command line ---------------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many workers were asked for, by each start; 0 where the service was run in this very process."""
    starts: list[int] = []

    def one(*_: Any) -> int:
        starts.append(0)
        return 0

    def several(settings: Any, _: Any) -> int:
        starts.append(settings.workers)
        return 0

    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(process, "serve", one)
    monkeypatch.setattr(workers, "serve", several)
    return starts


def test_workers_option_overrides_environment(started: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert [main(["serve"]), main(["serve", "--workers", "2"]), main(["serve", "--workers", "1"])] == [0, 0, 0]
    monkeypatch.delenv("TIDEWIRE_WORKERS")
    assert main(["serve"]) == 0
    assert started == [4, 2, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--workers", "0"], "--workers: workers: should be greater than or equal to 1"),
        (["--workers", "two"], "--workers: workers: should be a valid integer, unable to parse string as an integer"),
        (["--demo"], "workers: the demo runs in one process; leave it at 1"),
    ],
)
def test_workers_fault_names_the_option(
    arguments: list[str], fault: str, started: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments]) == 1
    assert capsys.readouterr().err.splitlines() == [fault]
    assert started == []


def test_workers_on_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Faults, match="workers: only Linux spreads connections over several; leave it at 1"):
        workers.serve(load_settings(None, GOOD), load(Path(GOOD["TIDEWIRE_CONTRACT"])))
