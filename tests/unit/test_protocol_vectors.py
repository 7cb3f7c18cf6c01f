"""docs/protocol.md, tests/vectors and the message structs say the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.errors import ErrorCode, ServiceError
from service.protocol import messages
from service.protocol.codec import decode, split
from service.protocol.messages import ClientMessage, Event, Publish, Remove, RemovedValue, ServerMessage

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/protocol.md").read_text(encoding="utf-8")
MARKED = re.compile(
    r"<!-- vector: (?P<side>client|server)/(?P<name>[a-z-]+) -->\n```json\n(?P<example>.*?)\n```\n", re.DOTALL
)


def vectors(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((ROOT / f"tests/vectors/{name}.json").read_text(encoding="utf-8"))
    return found


def tags(base: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    return {str(kind.__struct_config__.tag): kind for kind in base.__subclasses__() if kind.__struct_config__.tag}


CLIENT = tags(ClientMessage)
SERVER = tags(ServerMessage)


@pytest.mark.parametrize("side", ["client", "server"])
def test_page_examples_equal_the_vectors(side: str) -> None:
    page = [
        {"name": found["name"], "message": json.loads(found["example"])}
        for found in MARKED.finditer(PAGE)
        if found["side"] == side
    ]
    # As text: the order of the fields counts too.
    assert json.dumps(page, indent=1) == json.dumps(vectors(side), indent=1)


def test_page_marks_are_known() -> None:
    assert len(re.findall(r"<!-- *vector", PAGE)) == len(list(MARKED.finditer(PAGE)))
    assert PAGE.count("```json") == len(list(MARKED.finditer(PAGE))), "an example without a vector"


def test_every_message_has_a_vector() -> None:
    shown = {vector["message"]["type"] for vector in vectors("client")}
    assert CLIENT.keys() <= shown
    assert any("." in kind for kind in shown), "an application event"
    shown = {vector["message"]["type"] for vector in vectors("server")}
    assert SERVER.keys() <= shown
    assert {"presence.joined", "presence.left", "presence.count"} <= shown


def test_every_struct_has_a_vector() -> None:
    tagged = {
        kind
        for kind in vars(messages).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_config__.tag
    }
    assert tagged == {*CLIENT.values(), *SERVER.values()}
    of_the_service = {"presence.joined", "presence.left", "presence.count", "event.removed"}
    assert {*CLIENT, *SERVER, *of_the_service} == messages.SYSTEM_TYPES


@pytest.mark.parametrize("vector", vectors("client"), ids=lambda vector: vector["name"])
def test_client_vector_decodes_to_its_message(vector: dict[str, Any]) -> None:
    example = vector["message"]
    (message,) = split(json.dumps(example))
    command = decode(message)
    assert type(command) is CLIENT.get(example["type"], Remove if "removed" in example else Publish)
    # What is not in the example has its default, so encoding without defaults gives the example back.
    encoded = json.loads(messages.encode(command))
    assert encoded.items() >= example.items()
    defaults = {name: value for name, value in encoded.items() if name not in example}
    assert all(value is None or (name, value) == ("limit", 50) for name, value in defaults.items())


@pytest.mark.parametrize("vector", vectors("server"), ids=lambda vector: vector["name"])
def test_server_vector_equals_the_encoded_struct(vector: dict[str, Any]) -> None:
    example = vector["message"]
    kind = SERVER.get(example["type"], RemovedValue if "removed" in example else Event)
    message = msgspec.json.decode(json.dumps(example), type=kind)
    assert json.dumps(json.loads(messages.encode(message))) == json.dumps(example)


@pytest.mark.parametrize("vector", vectors("refused"), ids=lambda vector: vector["name"])
@pytest.mark.parametrize("form", [str, str.encode])
def test_bad_frame_vector_is_refused_with_code_and_path(vector: dict[str, Any], form: Any) -> None:
    with pytest.raises(ServiceError) as refused:
        list(map(decode, split(form(vector["frame"]))))
    assert refused.value.code.code == vector["code"]
    assert refused.value.details["path"] == vector["path"]
    assert refused.value.code in {ErrorCode.MALFORMED, ErrorCode.UNKNOWN_TYPE, ErrorCode.INVALID_MESSAGE}


def test_vectors_have_unique_names() -> None:
    for side in ("client", "server", "refused"):
        names = [vector["name"] for vector in vectors(side)]
        assert len(names) == len(set(names))
