"""Calls in a contract: what a good one means, every fault with its line, and what the gate refuses."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

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
