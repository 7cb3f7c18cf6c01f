"""AsyncAPI documents: the official parser accepts them, and the command and the route return the same."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from service.__main__ import main
from service.contract.export.asyncapi import describe
from service.contract.load import load
from tests.support.api_client import ask, get
from tests.support.contracts import ROOT, SCHEMAS, contract_files, contract_of, write_documented_contract
from tests.support.harness import CONTRACT, OTHER_API_KEY, serving, token

pytestmark = pytest.mark.slow

PARSER = ROOT / "tests" / "asyncapi" / "validate.js"


def faults_of(documents: list[dict[str, Any]]) -> list[list[str]]:
    """Returns what the official parser reports for each document."""
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    run = subprocess.run(["node", str(PARSER)], input=lines, capture_output=True, text=True, timeout=300, check=True)
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_official_parser_accepts_every_contract_and_no_faulty_document(tmp_path: Path) -> None:
    documents = [describe(load(path)) for path in [*contract_files(), write_documented_contract(tmp_path)]]
    faulty = describe(load(CONTRACT))
    del faulty["info"]
    faulty["operations"]["receive.elsewhere"] = {"action": "take", "channel": {"$ref": "#/channels/none"}}
    *accepted, refused = faults_of([*documents, faulty])
    assert accepted == [[]] * len(documents)
    assert len(refused) >= 2


@settings(max_examples=1, phases=[Phase.generate], derandomize=True)  # the parser overflows its stack on some circles
@given(schemas=st.lists(SCHEMAS, min_size=30, max_size=30))
def test_official_parser_accepts_random_contracts(schemas: list[Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("random") / "contract.json"
    path.write_text(contract_of(*schemas))
    assert faults_of([describe(load(path))]) == [[]]


async def test_route_returns_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving() as server:
        served = await get(server, "/asyncapi.json")
        assert await get(server, "/asyncapi.json", key=OTHER_API_KEY) == served
        (await ask(server, "GET", "/asyncapi.json", key=token("ann"))).refused(401, "invalid_api_key")
    assert main(["asyncapi", str(CONTRACT)]) == 0
    assert json.loads(capsys.readouterr().out) == served


def test_command_names_the_server_and_refuses_a_wrong_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["asyncapi", str(CONTRACT), "--server", "wss://example.com/ws"]) == 0
    assert json.loads(capsys.readouterr().out)["servers"]["tidewire"]["host"] == "example.com"
    with pytest.raises(SystemExit, match="2"):
        main(["asyncapi", str(CONTRACT), "--server", "https://example.com"])
    assert "is not the address of a server" in capsys.readouterr().err


def test_command_reports_the_faults_of_a_contract(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "contract.yaml").write_text("channels: {}")
    assert main(["asyncapi", str(tmp_path / "contract.yaml")]) == 1
    assert "contract.yaml:1: declares no channels" in capsys.readouterr().err
