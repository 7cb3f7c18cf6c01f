"""`tidewire-types` reads a contract file as the service does: same hash, same types as from the service's description."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from service.contract.export.asyncapi import describe
from service.contract.load import load
from tests.support.contracts import ROOT, SCHEMAS, contract_files, contract_of, write_documented_contract
from tests.support.examples import examples

pytestmark = pytest.mark.slow

GENERATOR = ROOT / "clients" / "js" / "generator" / "main.js"
_SCRIPT = f"""
import {{ main }} from {json.dumps(GENERATOR.as_uri())};
for (const words of JSON.parse(process.argv[1])) if (await main(words, '0.0.0')) process.exitCode = 1;
"""


def generate(folder: Path, *sources: Path) -> list[str]:
    """Returns the types of each contract or description."""
    outputs = [folder / f"{number}.d.ts" for number in range(len(sources))]
    calls = [["--out", str(out), str(source)] for source, out in zip(sources, outputs, strict=True)]
    command = ["node", "--input-type=module", "-e", _SCRIPT, json.dumps(calls)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return [out.read_text(encoding="utf-8") for out in outputs]


def write_description(contract: Path, folder: Path) -> Path:
    path = folder / f"{abs(hash(contract))}.json"
    path.write_text(json.dumps(describe(load(contract))), encoding="utf-8")
    return path


def test_types_of_a_file_are_those_of_its_description(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    contracts = [*contract_files(), write_documented_contract(tmp_path / "docs")]
    descriptions = [write_description(contract, tmp_path) for contract in contracts]
    types = generate(tmp_path, *contracts, *descriptions)
    for contract, of_file, of_description in zip(contracts, types, types[len(contracts) :], strict=False):
        assert f"from the contract {load(contract).hash}." in of_file
        if contract.name not in {
            "hostile.yaml",
            "good.yaml",
        }:  # their descriptions leave out what readers would mistake
            assert of_description == of_file, contract


def test_types_example_is_what_the_command_prints(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "types.md").read_text(encoding="utf-8")
    [contract] = re.findall(r"<!-- file: contract.yaml -->\n```yaml\n(.*?)```", page, re.DOTALL)
    [shown] = re.findall(r"<!-- types -->\n```ts\n(.*?)```", page, re.DOTALL)
    (tmp_path / "contract.yaml").write_text(contract, encoding="utf-8")
    version = json.loads((GENERATOR.parents[1] / "package.json").read_text(encoding="utf-8"))["version"]
    assert generate(tmp_path, tmp_path / "contract.yaml") == [shown.replace(f"-types {version} ", "-types 0.0.0 ")]


@settings(max_examples=examples(3), phases=[Phase.generate])
@given(
    schemas=st.lists(SCHEMAS, min_size=15, max_size=15),
    floats=st.lists(st.floats(allow_nan=False, allow_infinity=False)),
)
def test_hash_of_a_random_contract_is_that_of_the_service(
    schemas: list[Any], floats: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("random")
    contract = folder / "contract.json"
    contract.write_text(contract_of(*schemas, {"examples": floats, "default": [10**20, -(10**20), 1, -0.0]}))
    [types] = generate(folder, contract)
    assert f"from the contract {load(contract).hash}." in types


SCALARS = r"""
      - [yes, on, ~, null, 0x1F, 0o17, 017, 1_000, +5, -0, 1e3, .5, 5., .inf, .nan, 1.0, '1', 2026-11-22, 12345678901234567890123]
      - =
      - <<
      - !!str 5
      - |
          a
          b
      - "\ud83d\ude00 \u00e9 \/"
      - é😀"""


def test_yaml_is_read_as_the_service_reads_it(tmp_path: Path) -> None:
    contract = tmp_path / "contract.yaml"
    contract.write_text(
        "# a comment\nchannels:\n 1:\n  subscribe: grant\n  events:\n   a.b:\n    publish: server\n    delivery: ephemeral\n"
        f"    schema:\n     examples: &shared{SCALARS}\n     default: *shared\n"
        "     properties: {true: {}, 0x10: {}, '': {}}\n",
        encoding="utf-8",
    )
    [types] = generate(tmp_path, contract)
    assert f"from the contract {load(contract).hash}." in types
    assert all(f"{name}?: unknown" in types for name in ("true", '"0x10"', '""'))
