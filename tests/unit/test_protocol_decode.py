"""Whatever arrives gives commands or a refusal that can be sent; no other exception."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.errors import ErrorCode, ServiceError
from service.protocol.codec import decode, message_id, split
from service.protocol.messages import MAX_ID, Command, Error, Ping, Publish, encode

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
VALID: list[dict[str, Any]] = [vector["message"] for vector in json.loads((VECTORS / "client.json").read_text("utf-8"))]

any_text = st.text(st.characters(exclude_categories=()))  # lone surrogates too
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)
field_names = st.sampled_from(sorted({name for message in VALID for name in message})) | st.text(max_size=8)


@st.composite
def almost_valid(draw: st.DrawFn) -> dict[str, Any]:
    """A valid message of which some fields are gone, replaced or made up."""
    message = dict(draw(st.sampled_from(VALID)))
    for name in draw(st.lists(st.sampled_from(sorted(message)), max_size=2)):
        message.pop(name, None)
    message.update(draw(st.dictionaries(field_names, anything, max_size=2)))
    return message


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """The bytes of a valid message or batch, some of them cut out or overwritten."""
    batch = draw(st.lists(st.sampled_from(VALID), min_size=1, max_size=3))
    frame = bytearray(json.dumps(batch if draw(st.booleans()) else batch[0]).encode())
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(frame)))
        frame[start : start + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(frame)


def check(frame: str | bytes) -> None:
    """Decodes the frame as a connection would."""
    try:
        for message in split(frame):
            found = message_id(message)
            assert found is None or len(found) <= MAX_ID
            try:
                command = decode(message)
            except ServiceError as refusal:
                check_refusal(refusal, found)
            else:
                assert isinstance(command, get_args(Command))
                if isinstance(command, Publish):
                    json.loads(bytes(command.data).decode("utf-8"), parse_constant=pytest.fail)
    except ServiceError as refusal:
        check_refusal(refusal, None)


def check_refusal(refusal: ServiceError, id_: str | None) -> None:
    assert refusal.details["path"].startswith("$")
    reply = Error(refusal.code.code, refusal.message, refusal.retryable, dict(refusal.details), id_)
    json.loads(encode(reply).decode("utf-8"))


@given(st.binary())
@example(b"")
@example(b"\xff\xfe")
@example(b'{"type":"chat.message","channel":"room:1","data":"\xff"}')
@example(b'{"type":"ping","id":"\xed\xa0\x80"}')
@example(b"[" * 60_000)
@example(b'{"type":"ping","x":' + b"[" * 60_000)
def test_decode_any_bytes_returns_command_or_service_error(frame: bytes) -> None:
    check(frame)
    message_id(frame)


@given(any_text)
@example("\ud800")
@example('{"type":"ping","id":"\udfff"}')
@example("[\udfff]")
@example('{"type":"\\ud800.x"}')
def test_decode_any_text_returns_command_or_service_error(frame: str) -> None:
    check(frame)
    message_id(frame)


@given(damaged())
def test_decode_damaged_message_returns_command_or_service_error(frame: bytes) -> None:
    check(frame)


@given(almost_valid())
def test_decode_message_with_wrong_fields_returns_command_or_service_error(message: dict[str, Any]) -> None:
    check(json.dumps(message))
    check(json.dumps(message).encode())


@given(st.lists(almost_valid() | anything, max_size=5))
def test_split_any_batch_returns_messages_or_service_error(batch: list[Any]) -> None:
    check(json.dumps(batch))


@given(st.lists(st.sampled_from(VALID), max_size=5), st.text(" \t\r\n", max_size=3))
def test_split_batch_yields_messages_in_order(batch: list[dict[str, Any]], spaces: str) -> None:
    commands = [decode(message) for message in split(spaces + json.dumps(batch) + spaces)]
    assert [getattr(command, "id", None) for command in commands] == [message.get("id") for message in batch]


def test_batch_with_bad_message_fails_only_that_message() -> None:
    outcomes: list[object] = []
    for message in split('[{"type":"ping","id":"1"},{"type":"nope","id":"2"},7,{"type":"ping","id":"4"}]'):
        try:
            outcomes.append(decode(message))
        except ServiceError as refusal:
            outcomes.append((refusal.code.code, message_id(message)))
    assert outcomes == [Ping(id="1"), ("unknown_type", "2"), ("invalid_message", None), Ping(id="4")]


@pytest.mark.parametrize(
    ("frame", "id_"),
    [
        ('{"type":"nope","id":"m-1"}', "m-1"),
        ('{"id":"m-1"}', "m-1"),
        ('{"id":7}', None),
        ('{"type":"ping"}', None),
        ('{"id":"' + "x" * MAX_ID + '"}', "x" * MAX_ID),
        ('{"id":"' + "x" * (MAX_ID + 1) + '"}', None),
        ("not json", None),
        ("[]", None),
    ],
)
def test_message_id_of_bad_message_is_found(frame: str, id_: str | None) -> None:
    assert message_id(frame) == id_


def test_decode_data_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ServiceError, match="not UTF-8"):
        decode(b'{"type":"chat.message","channel":"room:1","data":"\xff"}')


def test_decode_refusal_shortens_its_reason() -> None:
    with pytest.raises(ServiceError) as caught:
        decode(json.dumps({"type": "ping", "k" * 60_000: 1}))
    assert len(json.dumps([caught.value.message, dict(caught.value.details)])) < 1000


@pytest.mark.parametrize("bad", [" ", "a b", "a\\n", "a\\u0000", "\\u007f", "\u00e9", "\\u00e9", ""])
@pytest.mark.parametrize(
    "form", ['{"type":"a.b","channel":"c","id":"%s","data":1}', '{"data":1,"id":"%s","channel":"c","type":"a.b"}']
)
def test_publish_id_outside_printable_ascii_is_refused(form: str, bad: str) -> None:
    with pytest.raises(ServiceError) as refused:
        decode(form % bad)
    assert refused.value.code is ErrorCode.INVALID_MESSAGE
    assert refused.value.details["path"] == "$.id"


@pytest.mark.parametrize("name", ["!", "~", "m-1", "x" * MAX_ID])
def test_publish_id_of_printable_ascii_is_decoded(name: str) -> None:
    for form in (
        '{"type":"a.b","channel":"c","id":"%s","data":1}',
        '{"data":1, "id":"%s", "channel":"c", "type":"a.b"}',
    ):
        command = decode(form % name)
        assert isinstance(command, Publish)
        assert command.id == name
