"""`tidewire types --python`: Python types of the data of events, whatever the contract contains."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from pydantic import TypeAdapter

from service.__main__ import main
from service.cli import types
from service.contract.export.python_types import TypesFault, check_module
from service.contract.load import load
from tests.support.contracts import ROOT, contract_files, contract_of

HOSTILE = Path(__file__).parent / "contracts" / "hostile.yaml"


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Imports a module with types, and returns what it defines."""

    def load_module(source: str) -> dict[str, Any]:
        module = ModuleType("generated_types")
        monkeypatch.setitem(sys.modules, "generated_types", module)
        exec(compile(source, "generated_types", "exec"), vars(module))
        return vars(module)

    return load_module


@pytest.mark.parametrize("model", types.MODELS)
@pytest.mark.parametrize("path", contract_files(), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_types_of_every_contract_are_declarations_and_load(
    path: Path, model: str, loaded: Callable[[str], dict[str, Any]]
) -> None:
    contract = load(path)
    module = loaded(types.generate(contract, model))
    assert module["CONTRACT"] == contract.hash
    declared = {(one.pattern.text, event) for one in contract.channels for event in one.events}
    assert module["EVENTS"].keys() == declared


@pytest.mark.parametrize("model", types.MODELS)
def test_types_accept_data_of_the_schema_and_refuse_other_data(
    model: str, loaded: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    schema = {
        "type": "object",
        "required": ["text"],
        "properties": {
            "text": {"type": "string"},
            "mood": {"enum": ["calm", "urgent", None]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "parent": {"$ref": "#"},
            "size": {"allOf": [{"type": "integer"}, {"minimum": 1}]},
            "by": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"id": {"type": "integer"}}}]},
        },
    }
    (tmp_path / "contract.yaml").write_text(contract_of(schema))
    module = loaded(types.generate(load(tmp_path / "contract.yaml"), model))
    kind = module["EVENTS"]["room:{room}", "event.e0"]
    check = TypeAdapter(kind).validate_python if model == "pydantic" else partial(msgspec.convert, type=kind)
    check({"text": "hi"})
    check({"text": "hi", "mood": None, "tags": ["a"], "parent": {"text": "x"}, "size": 5, "by": {"id": 1}})
    for wrong in (
        {},
        {"text": 5},
        {"text": "x", "mood": "angry"},
        {"text": "x", "tags": [1]},
        {"text": "x", "parent": {}},
    ):
        with pytest.raises(ValueError, match=r"text|mood|tags|str"):
            check(wrong)


@pytest.mark.parametrize(
    "evil",
    [
        "import os",
        "from os import system",
        "print(1)",
        "x = open('f')",
        "x: int = (lambda: 5)()",
        "class A:\n    def f(self): pass",
        "class A(metaclass=open('f')): pass",
        "@print\nclass A: pass",
        "x = [y for y in z]",
        "x = f'{y}'",
        "if x: pass",
        "x = await_ if",
        "x = (y := 5)",
        "x.model_rebuild().evil",
    ],
)
def test_module_that_does_something_is_refused(evil: str) -> None:
    check_module("from __future__ import annotations\nfrom typing import Any\nx: Any = 5\n")
    with pytest.raises(TypesFault):
        check_module(f"from __future__ import annotations\n{evil}\n")


def test_generator_that_lets_text_out_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(types, "_classes", lambda *_: "import os")
    assert main(["types", "--python", str(HOSTILE)]) == 1
    assert "the generated types have a Import in line" in capsys.readouterr().err


def test_types_are_written_only_if_they_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "events.py"
    command = ["types", "--python", str(HOSTILE)]
    assert main([*command, "--out", str(out)]) == 0
    written = out.stat().st_mtime_ns
    assert main([*command, "--out", str(out)]) == 0
    assert out.stat().st_mtime_ns == written
    assert main(command) == 0
    assert capsys.readouterr().out == out.read_text()


def test_types_without_the_generator_name_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "datamodel_code_generator", None)
    assert main(["types", "--python", str(HOSTILE)]) == 1
    assert "tidewire-server[types]" in capsys.readouterr().err


def test_types_example_of_the_docs_is_what_the_command_prints(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "types.md").read_text(encoding="utf-8")
    [contract] = re.findall(r"<!-- file: contract.yaml -->\n```yaml\n(.*?)```", page, re.DOTALL)
    [shown] = re.findall(r"<!-- python types -->\n```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "contract.yaml").write_text(contract, encoding="utf-8")
    printed = types.generate(load(tmp_path / "contract.yaml"), "typeddict")

    def meaning(text: str) -> list[str]:
        return [ast.unparse(node) for node in ast.parse(text).body]

    assert meaning(printed) == meaning(shown), "but for its format"
