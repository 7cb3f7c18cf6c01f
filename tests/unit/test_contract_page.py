"""docs/contract.md: its examples are what they claim to be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.contract.gate import MAX_DEPTH, MAX_ERRORS, Gate
from service.contract.load import MAX_ENTRIES, MAX_TTL, MAX_TYPE, MAX_WINDOW, ContractFaults, load
from service.core.access import PublishRule, SubscribeRule
from service.core.identity import backend

PAGE = (Path(__file__).resolve().parents[2] / "docs/contract.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"<!-- (?P<kind>[a-z]+)(?:: (?P<name>\S+))? -->\n```\w*\n(?P<text>.*?)```", re.DOTALL)
BLOCKS = [(found["kind"], found["name"], found["text"]) for found in _BLOCK.finditer(PAGE)]


def write(folder: Path, kind: str) -> Path:
    for found, name, text in BLOCKS:
        if found == kind:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    return folder / "contract.yaml"


def test_every_marked_block_is_found() -> None:
    assert [(kind, name) for kind, name, _ in BLOCKS] == [
        ("file", "contract.yaml"), ("file", "schemas/chat.message.json"), ("faulty", "contract.yaml"), ("faults", None),
    ]  # fmt: skip


def test_the_example_loads_and_admits_what_it_is_about(tmp_path: Path) -> None:
    contract = load(write(tmp_path, "file"))
    assert len(contract.channels) == 3
    published = Gate(contract).validate(
        backend("t"), channel="board:main", type="ticker.price", data=b'{"symbol":"ACME","price":1}', id="1", key=None,
        sender=None, at=1, subscribed=False,
    )  # fmt: skip
    assert published.key == "ACME"


def test_the_faulty_example_has_the_faults_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "faulty")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ContractFaults) as caught:
        load(Path("contract.yaml"))
    [shown] = [text for kind, _, text in BLOCKS if kind == "faults"]
    assert str(caught.value) == shown.rstrip("\n")


def test_the_page_names_every_rule_and_the_true_bounds() -> None:
    for rule in (*SubscribeRule, *PublishRule):
        assert f"| `{rule.value}` |" in PAGE
    assert f"1…{MAX_ENTRIES}, ttl: 1s…{MAX_TTL / 86_400:g}d" in PAGE
    assert f"`0` to `{MAX_WINDOW:g}s`" in PAGE
    assert f"at most {MAX_TYPE} characters" in PAGE
    assert f"nests at most {MAX_DEPTH} deep" in PAGE
    assert f"up to {MAX_ERRORS} faults" in PAGE
