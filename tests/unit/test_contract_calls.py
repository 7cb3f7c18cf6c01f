"""Calls in a contract: what a good one means, every fault with its line, what the gate refuses, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from service.cli import types
from service.contract.compare.change import Effect
from service.contract.compare.contracts import compare
from service.contract.export.asyncapi import describe
from service.contract.gate import Gate
from service.contract.load import ContractFaults, load
from service.core.access import CallRule
from service.core.hooks import Hook
from service.core.identity import Identity, anonymous
from service.errors import ErrorCode, ServiceError

CALLS = """\
calls:
  order.quote:
    endpoint: shop
    who: everyone
    timeout: 30s
    request: {$ref: quote.json}
    reply: {type: object, required: [price], properties: {price: {type: integer}}}
  order.place: {endpoint: orders}
"""
QUOTE = '{"type": "object", "required": ["item"], "properties": {"item": {"type": "string"}}}'
CONTRACT = Path(__file__).parent / "contracts" / "calls.yaml"
ANN, NOBODY = Identity(tenant="acme", user="ann"), anonymous("acme")


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(load(written(tmp_path, CALLS)))


def written(folder: Path, text: str) -> Path:
    (folder / "quote.json").write_text(QUOTE)
    contract = folder / "contract.yaml"
    contract.write_text(dedent(text))
    return contract


def test_contract_loads_every_key_of_a_call(tmp_path: Path) -> None:
    contract = load(written(tmp_path, CALLS))
    quote, place = contract.calls["order.quote"], contract.calls["order.place"]
    assert (quote.name, quote.who, quote.hook) == ("order.quote", CallRule.EVERYONE, Hook("shop", timeout=30.0))
    assert (place.who, place.hook) == (CallRule.AUTHENTICATED, Hook("orders"))
    assert (place.request.check, place.reply.schema) == (None, None)
    assert quote.request.schema == {"$ref": "quote.json"}
    assert {name: fault.line for name, fault in contract.endpoints.items()} == {"shop": 3, "orders": 8}


def test_calls_change_the_hash(tmp_path: Path) -> None:
    hashes = {load(written(tmp_path, text)).hash for text in (CALLS, CALLS.replace("30s", "29s"))}
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("call", "line", "reason"),
    [
        ("quote: {endpoint: shop}", 2, "the call 'quote' is not words of a-z"),
        ("order.Quote: {endpoint: shop}", 2, "the call 'order.Quote' is not words of a-z"),
        (f"order.{'x' * 59}: {{endpoint: shop}}", 2, "at most 64 characters"),
        ("order.quote: {}", 2, "endpoint is the name of one of hooks.endpoints"),
        ("order.quote: {endpoint: ''}", 2, "endpoint is the name of one of hooks.endpoints"),
        ("order.quote:\n    endpoint: shop\n    who: users", 4, "who is one of everyone, authenticated"),
        ("order.quote:\n    endpoint: shop\n    timeout: 31s", 4, "timeout is from 100ms to 30s"),
        ("order.quote:\n    endpoint: shop\n    timeout: 50ms", 4, "timeout is from 100ms to 30s"),
        ("order.quote:\n    endpoint: shop\n    timeout: 5", 4, "is not a duration"),
        ("order.quote:\n    endpoint: shop\n    request:\n      type: objekt", 5, "did you mean 'object'"),
        ("order.quote:\n    endpoint: shop\n    reply: {$ref: none.json}", 4, "there is no file"),
        ("order.quote:\n    endpoint: shop\n    replies: {}", 4, "unknown key 'replies'; did you mean 'reply'"),
        ("order.quote: shop", 2, "order.quote is a mapping"),
    ],
)
def test_fault_of_a_call_is_reported_with_its_line(tmp_path: Path, call: str, line: int, reason: str) -> None:
    with pytest.raises(ContractFaults) as caught:
        load(written(tmp_path, f"calls:\n  {call}\n"))
    [fault] = caught.value.faults
    assert Path(fault.file).name == "contract.yaml"
    assert fault.line == line
    assert reason in fault.reason


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("calls: []", "calls is a mapping"),
        ("calls: {}", "declares no channels"),
        ("call: {}", "unknown key 'call'; did you mean 'calls'"),
    ],
)
def test_fault_around_the_calls_is_reported(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(ContractFaults) as caught:
        load(written(tmp_path, text))
    assert any(reason in fault.reason for fault in caught.value.faults), caught.value.faults


def refused(gate: Gate, identity: Identity, name: str, data: bytes) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        gate.validate_call(identity, name, data)
    return caught.value


def test_gate_accepts_a_call_of_the_contract(gate: Gate) -> None:
    assert gate.validate_call(NOBODY, "order.quote", b'{"item":"tea"}').name == "order.quote"
    assert gate.validate_call(ANN, "order.place", b"null").name == "order.place"


@pytest.mark.parametrize(
    ("identity", "name", "data", "code", "details"),
    [
        (ANN, "order.qoute", b"{}", ErrorCode.UNKNOWN_CALL, {"path": "$.call"}),
        (ANN, "order.quote\n", b"{}", ErrorCode.UNKNOWN_CALL, {"path": "$.call"}),
        (NOBODY, "order.place", b"{}", ErrorCode.FORBIDDEN, {"path": "$.call"}),
        (ANN, "order.quote", b'{"item":1}', ErrorCode.INVALID_DATA, {"path": "$.data.item"}),
        (ANN, "order.quote", b'{"item":"a","item":"b"}', ErrorCode.MALFORMED, {"path": "$.data.item"}),
        (ANN, "order.place", b"[" * 200 + b"]" * 200, ErrorCode.INVALID_DATA, {"path": "$.data"}),
        (ANN, "order.place", b'"\xff"', ErrorCode.INVALID_DATA, {"path": "$.data"}),
    ],
)
def test_gate_refuses_a_call_with_code_and_path(
    gate: Gate, identity: Identity, name: str, data: bytes, code: ErrorCode, details: dict[str, Any]
) -> None:
    error = refused(gate, identity, name, data)
    assert error.code is code
    assert error.details.items() >= details.items()


def test_gate_suggests_the_nearest_call(gate: Gate) -> None:
    assert "did you mean 'order.quote'" in refused(gate, ANN, "order.qoute", b"{}").message


def test_gate_refuses_a_reply_against_its_schema(gate: Gate) -> None:
    spec = gate.validate_call(ANN, "order.quote", b'{"item":"tea"}')
    gate.validate_reply(spec, b'{"price":5}')
    with pytest.raises(ServiceError) as caught:
        gate.validate_reply(spec, b'{"price":"5"}')
    assert (caught.value.code, caught.value.details["path"]) == (ErrorCode.INVALID_DATA, "$.data.price")


# --- what is made of them ---------------------------------------------------------------------------------------------


def test_description_shows_each_call_as_a_request_with_a_reply() -> None:
    document = describe(load(CONTRACT))
    operation = document["operations"]["call.order.quote"]
    assert operation == {
        "action": "send",
        "channel": {"$ref": "#/channels/call.order.quote"},
        "summary": "Everyone may call order.quote",
        "messages": [{"$ref": "#/channels/call.order.quote/messages/request"}],
        "reply": {
            "channel": {"$ref": "#/channels/call.order.quote"},
            "messages": [{"$ref": "#/channels/call.order.quote/messages/reply"}],
        },
        "x-tidewire": {"call": "order.quote", "who": "everyone"},
    }
    channel = document["channels"]["call.order.quote"]
    assert channel["address"] is None
    assert channel["x-tidewire"] == {"call": "order.quote", "who": "everyone", "endpoint": "shop", "timeout": 2.0}
    messages = document["components"]["messages"]
    assert messages["call.order.quote.request"]["payload"] == {"$ref": "#/components/schemas/order"}
    assert messages["call.order.quote.reply"]["title"] == "A quote"
    assert messages["call.order.place.reply"]["payload"] == {}
    assert document["operations"]["call.order.place"]["security"] == [{"$ref": "#/components/securitySchemes/token"}]


def test_python_types_have_both_sides_of_each_call() -> None:
    module: dict[str, Any] = {}
    exec(types.generate(load(CONTRACT), "typeddict"), module)
    assert module["CALLS"] == {
        "order.quote": (module["Order"], module["OrderQuoteReply"]),
        "order.place": (module["OrderDefsLine"], Any),
        "order.anything": (Any, Any),
    }


def test_python_types_without_calls_have_no_table(tmp_path: Path) -> None:
    contract = load(written(tmp_path, "channels:\n  a: {subscribe: everyone}\n"))
    assert "CALLS" not in types.generate(contract, "typeddict")


STRICT = "{type: object, additionalProperties: false, required: [a], properties: {a: {type: string}}}"
WIDER = "{type: object, additionalProperties: false, required: [a], properties: {a: {type: [string, integer]}}}"
MORE = (
    "{type: object, additionalProperties: false, required: [a, b], properties: {a: {type: string}, b: {type: string}}}"
)
NONE, POSSIBLE, BREAKING = Effect.NONE, Effect.POSSIBLE, Effect.BREAKING


def changed(folder: Path, old: str, new: str) -> list[tuple[str, Effect, Effect, bool]]:
    """The changes of one call: path, what they mean for senders and readers, whether they widen."""
    contracts = []
    for name, call in (("old", old), ("new", new)):
        path = folder / f"{name}.yaml"
        path.write_text(f"channels:\n  a: {{subscribe: everyone}}\ncalls:\n  x.y: {{endpoint: e, {call}}}\n")
        contracts.append(load(path))
    return [
        (change.path.removeprefix('$.calls["x.y"]'), change.publishers, change.subscribers, change.widens)
        for change in compare(*contracts)
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("who: everyone", "who: everyone", []),
        ("who: everyone", "who: authenticated", [(".who", BREAKING, NONE, False)]),
        ("who: authenticated", "who: everyone", [(".who", NONE, NONE, True)]),
        ("timeout: 2s", "timeout: 3s", [(".timeout", NONE, NONE, False)]),
        ("timeout: 2s", "timeout: 1s", [(".timeout", POSSIBLE, NONE, False)]),
        (f"request: {STRICT}", f"request: {WIDER}", [(".request", NONE, NONE, False)]),
        (f"request: {WIDER}", f"request: {STRICT}", [(".request.properties.a.type", BREAKING, NONE, False)]),
        (f"request: {STRICT}", f"request: {MORE}", [(".request.required", BREAKING, NONE, False)]),
        (f"reply: {WIDER}", f"reply: {STRICT}", [(".reply", NONE, NONE, False)]),
        (f"reply: {STRICT}", f"reply: {WIDER}", [(".reply.properties.a.type", NONE, BREAKING, False)]),
        (f"reply: {MORE}", f"reply: {STRICT}", [(".reply.required", NONE, BREAKING, False)]),
        (f"reply: {STRICT}", f"reply: {MORE}", [(".reply", NONE, NONE, False)]),
    ],
)
def test_change_of_a_call_says_whom_it_breaks(
    tmp_path: Path, old: str, new: str, expected: list[tuple[str, Effect, Effect, bool]]
) -> None:
    assert changed(tmp_path, old, new) == expected


def test_removed_call_breaks_and_a_new_one_does_not(tmp_path: Path) -> None:
    without, with_ = load(written(tmp_path, "channels:\n  a: {subscribe: everyone}\n")), load(CONTRACT)
    removed = [change for change in compare(with_, without) if change.place[0] == "calls"]
    assert [(change.place[1], change.publishers) for change in removed] == [
        ("order.anything", BREAKING),
        ("order.place", BREAKING),
        ("order.quote", BREAKING),
    ]
    added = [change for change in compare(without, with_) if change.place[0] == "calls"]
    assert all(change.is_compatible for change in added)
    assert added[-1].text == "is new; everyone may call it"
