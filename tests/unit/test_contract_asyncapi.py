"""The AsyncAPI document of a contract: who may do what, references, and that its order does not depend on the file's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract import pointer
from service.contract.export.asyncapi import Server, describe
from service.contract.load import load
from tests.support.contracts import SCHEMAS, contract_files, contract_of

CONTRACT = Path(__file__).parent / "contracts" / "described.yaml"
HOSTILE = Path(__file__).parent / "contracts" / "hostile.yaml"
DOCUMENT = describe(load(CONTRACT))


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        value = list(value.values())
    for child in value if isinstance(value, list) else ():
        yield from references(child)


def operations(action: str) -> dict[str, Any]:
    found = DOCUMENT["operations"].values()
    return {
        operation["messages"][0]["$ref"].rpartition("/")[2]: operation
        for operation in found
        if operation["action"] == action
    }


def test_description_names_its_contract() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT["info"]["version"] == load(CONTRACT).hash


def test_clients_send_what_they_may_publish_and_nothing_else() -> None:
    rules = {type_: operation["x-tidewire"]["publish"] for type_, operation in operations("send").items()}
    assert rules == {"chat.message": "subscriber", "map.cursor": "grant", "presence.update": "subscriber"}


def test_open_channel_needs_no_token() -> None:
    received = operations("receive")
    assert "security" not in received["news.item"]
    assert received["chat.message"]["security"] == [{"$ref": "#/components/securitySchemes/token"}]
    assert received["chat.message"]["x-tidewire"] == {"subscribe": "grant", "right": "subscribe"}


def test_channel_shows_its_parameters_and_limits() -> None:
    channel = DOCUMENT["channels"]["room.room"]
    assert (channel["address"], list(channel["parameters"])) == ("room:{room}", ["room"])
    assert channel["x-tidewire"] == {
        "subscribe": "grant",
        "presence": {"update": {"publish": "subscriber", "schema": {"$ref": "#/components/schemas/presence.update"}}},
        "history": {"events": 500, "ttl": 86400.0},
        "state": {"keys": 20, "ttl": 3600.0},
    }


def test_message_shows_its_delivery() -> None:
    messages = DOCUMENT["components"]["messages"]
    assert messages["room.room.map.cursor"]["x-tidewire"] == {
        "publish": "grant", "delivery": "latest", "key": "/user~1id", "ttl": 30.0, "window": 0.05, "compress": False,
        "removable": True, "echo": False,
    }  # fmt: skip
    message = messages["room.room.chat.message"]
    assert (message["title"], message["description"]) == ("A message", "What somebody says.")
    assert message["x-tidewire"]["deprecated"] is True
    assert message["payload"] == {"$ref": "#/components/schemas/shared"}


@pytest.mark.parametrize("path", contract_files(), ids=lambda path: "/".join(path.parts[-3:]))
def test_every_reference_of_a_description_has_a_target(path: Path) -> None:
    document = describe(load(path))
    for reference in references(document):
        pointer.find(document, pointer.parse(reference.removeprefix("#").replace("%24", "$").replace("%25", "%")))


def test_hostile_contract_refers_to_nothing_outside() -> None:
    text = json.dumps(describe(load(HOSTILE)))
    assert "file:///" not in text
    assert "passwd" not in text
    assert "127.0.0.1:1/" not in text
    assert '"__proto__"' not in text.replace('"required": ["__proto__"', "")


@given(schemas=st.lists(SCHEMAS, min_size=2, max_size=4))
def test_description_does_not_depend_on_the_order_of_keys(
    schemas: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("order")
    (folder / "a.json").write_text(contract_of(*schemas))
    (folder / "b.json").write_text(json.dumps(json.loads(contract_of(*schemas)), sort_keys=True))
    first, second = load(folder / "a.json"), load(folder / "b.json")
    assert first.hash == second.hash
    assert json.dumps(describe(first), sort_keys=True) == json.dumps(describe(second), sort_keys=True)


def test_server_of_a_description() -> None:
    document = describe(load(CONTRACT), Server.parse("wss://example.com/live/ws"))
    server = document["servers"]["tidewire"]
    assert (server["protocol"], server["host"], server["pathname"]) == ("wss", "example.com", "/live/ws")


@pytest.mark.parametrize(
    "url", ["https://example.com", "example.com", "ws:///x", "wss://user:secret@example.com/ws", "ws://h/?a"]
)
def test_wrong_server_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"such as wss://example\.com/ws"):
        Server.parse(url)
