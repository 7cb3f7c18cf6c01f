"""The examples of docs/contract.md, docs/types.md, docs/settings.md and docs/contribute work as the pages show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.__main__ import main
from service.contract.gate import Gate
from service.contract.load import ContractFaults, load
from service.core.identity import backend
from service.settings import load_settings

DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(r"<!-- (?P<kind>[a-z]+)(?:: (?P<name>\S+))? -->\n```\w*\n(?P<text>.*?)```", re.DOTALL)
BLOCKS = [
    (found["kind"], found["name"], found["text"])
    for found in _BLOCK.finditer((DOCS / "contract.md").read_text(encoding="utf-8"))
]
SETTINGS = dict(
    re.findall(
        r"<!-- settings: (\w+) -->\n```yaml\n(.*?)```", (DOCS / "settings.md").read_text(encoding="utf-8"), re.DOTALL
    )
)


def write(folder: Path, kind: str) -> Path:
    for found, name, text in BLOCKS:
        if found == kind:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
    return folder / "contract.yaml"


def test_contract_example_loads_and_validates_its_event(tmp_path: Path) -> None:
    contract = load(write(tmp_path, "file"))
    assert len(contract.channels) == 3
    published = Gate(contract).validate(
        backend("t"), channel="board:main", type="ticker.price", data=b'{"symbol":"ACME","price":1}', id="1", key=None,
        sender=None, at=1,
    )  # fmt: skip
    assert published.key == "ACME"


def test_faulty_contract_example_has_the_faults_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "faulty")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ContractFaults) as caught:
        load(Path("contract.yaml"))
    [shown] = [text for kind, _, text in BLOCKS if kind == "faults"]
    assert str(caught.value) == shown.rstrip("\n")


def test_diff_example_prints_what_the_page_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (DOCS / "types.md").read_text(encoding="utf-8")
    for found in _BLOCK.finditer(page):
        if found["kind"] == "file":
            (tmp_path / found["name"]).write_text(found["text"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["diff", "contract.yaml", "new.yaml"]) == 1
    [shown] = [found["text"] for found in _BLOCK.finditer(page) if found["kind"] == "diff"]
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("name", ["smallest", "issuers", "keys"])
def test_settings_example_loads(name: str, tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text(SETTINGS[name].replace("…", "x" * 32))
    settings = load_settings(tmp_path / "settings.yaml", {})
    assert settings.contract == tmp_path / "contract.yaml"


@pytest.mark.parametrize(("page", "module"), [("add-a-command", "presence"), ("add-a-setting", "history")])
def test_contributor_page_uses_the_node_as_the_command_does(page: str, module: str) -> None:
    text = (DOCS / "contribute" / f"{page}.md").read_text(encoding="utf-8")
    commands = DOCS.parent / "service" / "realtime" / "session" / "commands"
    source = (commands / f"{module}.py").read_text(encoding="utf-8")
    shown = {
        use
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        for use in re.findall(r"^from service\.(?!protocol).*|node(?:\.\w+)+\(", block, re.MULTILINE)
    }
    assert shown
    assert [use for use in shown if use not in source] == []
