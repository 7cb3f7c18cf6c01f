"""The gate: what passes, what is refused with which code, and in which order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.gate import MAX_DEPTH, MAX_ERRORS, MAX_VALUES_FOR_ALL_FAULTS, Gate
from service.contract.load import load
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.core.identity import Grant, Identity, Right, anonymous, backend
from service.core.session import Subscription
from service.errors import ErrorCode, ServiceError

GATE = Gate(load(Path(__file__).parent / "contracts" / "good.yaml"))
ANN = Identity(tenant="acme", user="ann", grants=(Grant("room:*"),))
BEN = Identity(tenant="acme", user="ben")
READER = Identity(tenant="acme", user="rea", grants=(Grant("room:*", frozenset({Right.SUBSCRIBE})),))
NOBODY = anonymous("acme")
BACKEND = backend("acme")


def admit(identity: Identity = ANN, *, subscribed: bool = True, **changes: Any) -> Publication:
    event: dict[str, Any] = {
        "channel": "room:42", "type": "chat.message", "data": b'{"text":"hi"}', "id": "m-1", "key": None, "sender": identity.user,
        "at": 1_795_374_000_000,
    }  # fmt: skip
    event |= changes
    subscription = Subscription(ChannelKey(identity.tenant, event["channel"]), None) if subscribed else None
    return GATE.validate(identity, **event, subscription=subscription)


def refused(identity: Identity = ANN, **changes: Any) -> ServiceError:
    with pytest.raises(ServiceError) as caught:
        admit(identity, **changes)
    return caught.value


# --- what passes -----------------------------------------------------------------------------------------------------


def test_validate_durable_event_keeps_its_data() -> None:
    assert admit() == Publication(
        channel=ChannelKey("acme", "room:42"),
        type="chat.message",
        id="m-1",
        delivery=Delivery.DURABLE,
        data=b'{"text":"hi"}',
        sender="ann",
        at=1_795_374_000_000,
        key=None,
        retention=Retention(entries=500, ttl=86_400.0),
    )


def test_validate_latest_event_has_the_ttl_of_its_type() -> None:
    assert admit(channel="inbox:ann", type="inbox.draft", data=b'{"id":1}').ttl == 5_400_000
    assert admit().ttl is None


def remove(identity: Identity = ANN, **changes: Any) -> Publication:
    removal: dict[str, Any] = {
        "channel": "inbox:ann", "type": "inbox.draft", "id": "r-1", "key": "7", "sender": identity.user, "at": 1,
    }  # fmt: skip
    return GATE.validate_removal(identity, **removal | changes)


def test_validate_removal_has_the_key_and_no_data() -> None:
    assert remove() == Publication(
        channel=ChannelKey("acme", "inbox:ann"),
        type="inbox.draft",
        id="r-1",
        delivery=Delivery.LATEST,
        data=b"",
        sender="ann",
        at=1,
        key="7",
        retention=Retention(1000, 86_400.0),
        removed=True,
    )
    assert remove(BACKEND, sender=None).sender is None


@pytest.mark.parametrize(
    ("identity", "changes", "code", "path"),
    [
        (BEN, {}, ErrorCode.FORBIDDEN, "$.type"),
        (NOBODY, {}, ErrorCode.FORBIDDEN, "$.type"),
        (ANN, {"type": "inbox.item"}, ErrorCode.FORBIDDEN, "$.type"),
        (BACKEND, {"type": "inbox.item"}, ErrorCode.FORBIDDEN, "$.removed"),
        (BACKEND, {"channel": "board:1", "type": "ticker.price"}, ErrorCode.FORBIDDEN, "$.removed"),
        (ANN, {"type": "no.such"}, ErrorCode.UNKNOWN_EVENT, "$.type"),
        (ANN, {"channel": "nowhere"}, ErrorCode.UNKNOWN_CHANNEL, "$.channel"),
        (ANN, {"key": None}, ErrorCode.INVALID_KEY, "$.key"),
    ],
)
def test_validate_removal_refuses(identity: Identity, changes: dict[str, Any], code: ErrorCode, path: str) -> None:
    with pytest.raises(ServiceError) as caught:
        remove(identity, **changes)
    assert (caught.value.code, caught.value.details["path"]) == (code, path)


def test_require_version_makes_publish_of_latest_event_conditional() -> None:
    assert GATE.require_version(remove(), 7).if_version == 7
    with pytest.raises(ServiceError) as caught:
        GATE.require_version(admit(), 0)
    assert (caught.value.code, caught.value.details["path"]) == (ErrorCode.INVALID_MESSAGE, "$.if_rev")


def test_validate_raw_data_of_a_message_is_accepted() -> None:
    raw = msgspec.json.decode(b'{"data": {"text": "hi"}}', type=dict[str, msgspec.Raw])["data"]
    published = admit(data=raw)
    assert type(published.data) is bytes
    assert published.data == b'{"text": "hi"}'


def test_validate_latest_event_gets_the_key_from_its_data() -> None:
    published = admit(
        BACKEND, channel="board:main", type="ticker.price", data=b'{"symbol":"ACME","price":1}', sender=None
    )
    assert (published.delivery, published.key) == (Delivery.LATEST, "ACME")
    assert published.retention == Retention(entries=50, ttl=86_400.0)


def test_validate_ephemeral_event_has_no_retention() -> None:
    published = admit(type="chat.typing", data=b"{}")
    assert (published.delivery, published.key, published.retention) == (Delivery.EPHEMERAL, None, None)


@pytest.mark.parametrize(
    ("value", "key"), [('"a"', "a"), ("7", "7"), ("-7", "-7"), ("true", "true"), ("false", "false"), ('"ü"', "ü")]
)
def test_key_of_text_number_or_boolean_is_accepted(value: str, key: str) -> None:
    data = f'{{"id":{value}}}'.encode()
    assert admit(channel="inbox:ann", type="inbox.draft", data=data).key == key
    assert admit(channel="inbox:ann", type="inbox.draft", data=data, key=key).key == key


# --- who -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identity", "changes", "code"),
    [
        (BACKEND, {"subscribed": False}, None),
        (BACKEND, {"channel": "inbox:ann", "type": "inbox.item"}, None),
        (ANN, {"channel": "inbox:ann", "type": "inbox.item"}, ErrorCode.FORBIDDEN),
        (ANN, {"subscribed": False}, ErrorCode.NOT_SUBSCRIBED),
        (BEN, {"subscribed": False}, ErrorCode.FORBIDDEN),
        (NOBODY, {"subscribed": False}, ErrorCode.FORBIDDEN),
        (ANN, {"type": "chat.pin", "subscribed": False}, None),
        (READER, {"type": "chat.pin"}, ErrorCode.FORBIDDEN),
        (READER, {"subscribed": False}, ErrorCode.NOT_SUBSCRIBED),
        (BEN, {"channel": "room:lobby", "type": "lobby.wave", "subscribed": False}, None),
        (NOBODY, {"channel": "room:lobby", "type": "lobby.wave"}, ErrorCode.FORBIDDEN),
        (NOBODY, {"channel": "room:lobby", "type": "lobby.shout", "subscribed": False}, ErrorCode.NOT_SUBSCRIBED),
        (ANN, {"channel": "inbox:ann", "type": "inbox.draft", "data": b'{"id":1}', "subscribed": False}, None),
        (BEN, {"channel": "inbox:ann", "type": "inbox.draft", "data": b'{"id":1}'}, ErrorCode.FORBIDDEN),
    ],
)
def test_validate_checks_the_publish_rule(identity: Identity, changes: dict[str, Any], code: ErrorCode | None) -> None:
    if code is None:
        assert admit(identity, **changes).channel.tenant == "acme"
    else:
        error = refused(identity, **changes)
        assert error.code is code
        assert error.details["path"] in ("$.channel", "$.type")


@pytest.mark.parametrize(
    ("identity", "channel", "right", "code"),
    [
        (ANN, "room:42", Right.SUBSCRIBE, None),
        (ANN, "room:42", Right.HISTORY, None),
        (ANN, "room:42", Right.PRESENCE, None),
        (BEN, "room:42", Right.SUBSCRIBE, ErrorCode.FORBIDDEN),
        (READER, "room:42", Right.SUBSCRIBE, None),
        (READER, "room:42", Right.HISTORY, ErrorCode.FORBIDDEN),
        (READER, "room:42", Right.PRESENCE, ErrorCode.FORBIDDEN),
        (NOBODY, "room:lobby", Right.SUBSCRIBE, None),
        (NOBODY, "room:lobby", Right.HISTORY, ErrorCode.NO_HISTORY),
        (NOBODY, "room:lobby", Right.PRESENCE, ErrorCode.NO_PRESENCE),
        (NOBODY, "board:x", Right.SUBSCRIBE, ErrorCode.FORBIDDEN),
        (NOBODY, "board:x", Right.HISTORY, ErrorCode.FORBIDDEN),  # forbidden comes before none kept
        (BEN, "board:x", Right.HISTORY, ErrorCode.NO_HISTORY),
        (ANN, "inbox:ann", Right.SUBSCRIBE, None),
        (ANN, "inbox:ann", Right.HISTORY, None),
        (BEN, "inbox:ann", Right.SUBSCRIBE, ErrorCode.FORBIDDEN),
        (NOBODY, "inbox:ann", Right.SUBSCRIBE, ErrorCode.FORBIDDEN),
        (BACKEND, "inbox:ann", Right.HISTORY, None),
        (BACKEND, "board:x", Right.PRESENCE, ErrorCode.NO_PRESENCE),
        (NOBODY, "nope:x", Right.SUBSCRIBE, ErrorCode.UNKNOWN_CHANNEL),
        (NOBODY, "no pe", Right.SUBSCRIBE, ErrorCode.INVALID_CHANNEL),
    ],
)
def test_authorise_checks_the_subscribe_rule(
    identity: Identity, channel: str, right: Right, code: ErrorCode | None
) -> None:
    if code is None:
        assert GATE.authorise(identity, channel, right).spec.pattern.match(channel) is not None
    else:
        with pytest.raises(ServiceError) as caught:
            GATE.authorise(identity, channel, right)
        assert caught.value.code is code


def test_authorise_for_publish_is_an_error() -> None:
    with pytest.raises(ValueError, match="use validate"):
        GATE.authorise(ANN, "room:42", Right.PUBLISH)


# --- what ------------------------------------------------------------------------------------------------------------


def test_refusals_come_in_the_order_of_the_protocol() -> None:
    wrong: dict[str, Any] = {"channel": "ro om", "type": "chat.nope", "data": b"{", "key": "k"}
    assert refused(BEN, **wrong).code is ErrorCode.INVALID_CHANNEL
    wrong["channel"] = "nope:1"
    assert refused(BEN, **wrong).code is ErrorCode.UNKNOWN_CHANNEL
    wrong["channel"] = "room:42"
    assert refused(BEN, **wrong).code is ErrorCode.UNKNOWN_EVENT
    wrong["type"] = "chat.pin"
    assert refused(BEN, **wrong).code is ErrorCode.FORBIDDEN
    assert refused(ANN, **wrong).code is ErrorCode.INVALID_DATA
    wrong["data"] = b"{}"
    assert refused(ANN, **wrong).code is ErrorCode.INVALID_KEY


def test_unknown_event_suggests_a_similar_name() -> None:
    error = refused(type="chat.mesage")
    assert error.code is ErrorCode.UNKNOWN_EVENT
    assert error.message == "room:{room} declares no event 'chat.mesage'; did you mean 'chat.message'?"
    assert error.details == {"path": "$.type", "known": ["chat.message", "chat.pin", "chat.typing"]}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"{} {}", b"NaN", b"Infinity", b"[1,]", b"{'a': 1}", b"1e999", b"9" * 5000, b"01", b"nul", b"\xef\xbb\xbf{}",
        b'"\\ud800"', b'{"\\udc00": 1}', b'"\xff"', b'{"\xc3\x28": 1}', b'"\xed\xa0\x80"', b'"\n"', b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)  # fmt: skip
def test_data_that_is_not_json_is_refused(data: bytes) -> None:
    error = refused(type="chat.pin", data=data)
    assert error.code is ErrorCode.INVALID_DATA
    assert error.details["path"] == "$.data"
    assert [fault["path"] for fault in error.details["errors"]] == ["$.data"]
    assert len(error.message) < 300


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_data_nested_too_deeply_is_refused(opening: bytes, closing: bytes) -> None:
    assert admit(type="chat.pin", data=opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH).type == "chat.pin"
    error = refused(type="chat.pin", data=opening * (MAX_DEPTH + 1) + b"1" + closing * (MAX_DEPTH + 1))
    assert error.message == f"data is nested more than {MAX_DEPTH} deep"


def test_data_with_many_flat_brackets_is_accepted() -> None:
    data = b"[" + b",".join([b'[{"a":"[[[{{{"}]'] * 500) + b"]"
    assert admit(type="chat.pin", data=data).data == data


def test_invalid_data_refusal_has_the_path() -> None:
    error = refused(data=b'{"text": 1}')
    assert error.code is ErrorCode.INVALID_DATA
    assert error.message == "data does not match the schema of chat.message"
    assert error.details == {
        "path": "$.data.text",
        "errors": [{"path": "$.data.text", "message": '1 is not of type "string"'}],
    }


def test_invalid_data_refusal_lists_every_fault() -> None:
    error = refused(data=b'{"text": "", "reply": "x", "wrong": 1}')
    assert {fault["path"] for fault in error.details["errors"]} == {"$.data", "$.data.text", "$.data.reply"}
    assert error.details["path"] == error.details["errors"][0]["path"]


def list_gate(tmp_path: Path) -> Gate:
    (tmp_path / "c.yaml").write_text(
        "channels: {a: {subscribe: everyone, events: {a.b: {publish: server, delivery: ephemeral, "
        "schema: {additionalProperties: {type: string}, items: {type: string}}}}}}"
    )
    return Gate(load(tmp_path / "c.yaml"))


def faults(gate: Gate, data: bytes) -> list[dict[str, str]]:
    with pytest.raises(ServiceError) as caught:
        gate.validate(BACKEND, channel="a", type="a.b", data=data, id="1", key=None, sender=None, at=1)
    assert caught.value.code is ErrorCode.INVALID_DATA
    errors: list[dict[str, str]] = caught.value.details["errors"]
    return errors


def test_invalid_data_refusal_lists_a_bounded_number(tmp_path: Path) -> None:
    found = faults(list_gate(tmp_path), json.dumps([1] * 100).encode())
    assert [fault["path"] for fault in found] == [f"$.data[{index}]" for index in range(MAX_ERRORS)]


def test_invalid_data_of_many_values_lists_only_the_first_fault(tmp_path: Path) -> None:
    found = faults(list_gate(tmp_path), json.dumps([1] * (MAX_VALUES_FOR_ALL_FAULTS + 2)).encode())
    assert [fault["path"] for fault in found] == ["$.data[0]"]


def test_invalid_data_path_quotes_and_shortens_names(tmp_path: Path) -> None:
    found = faults(list_gate(tmp_path), json.dumps({"a b": 1, "x" * 5000: 2, "ok": 3}).encode())
    assert {fault["path"] for fault in found} == {'$.data["a b"]', f'$.data["{"x" * 64}"]', "$.data.ok"}


def test_invalid_data_refusal_shortens_values() -> None:
    [fault] = refused(data=b'{"text": "' + b"x" * 50_000 + b'"}').details["errors"]
    assert len(fault["message"]) <= 200
    assert fault["message"].endswith("is longer than 200 characters")


@pytest.mark.parametrize(
    ("data", "key", "path"),
    [
        (b"{}", None, "$.data.id"),
        (b"[]", None, "$.data.id"),
        (b"3", None, "$.data.id"),
        (b'{"id": null}', None, "$.data.id"),
        (b'{"id": 1.5}', None, "$.data.id"),
        (b'{"id": []}', None, "$.data.id"),
        (b'{"id": ""}', None, "$.data.id"),
        (b'{"id": "' + b"x" * 129 + b'"}', None, "$.data.id"),
        (b'{"id": "a"}', "b", "$.key"),
        (b'{"id": "a"}', "", "$.key"),
    ],
)
def test_invalid_key_is_refused(data: bytes, key: str | None, path: str) -> None:
    error = refused(channel="inbox:ann", type="inbox.draft", data=data, key=key)
    assert error.code is ErrorCode.INVALID_KEY
    assert error.details["path"] == path


def test_key_of_event_that_is_not_latest_is_refused() -> None:
    error = refused(key="k")
    assert (error.code, error.details["path"]) == (ErrorCode.INVALID_KEY, "$.key")


# --- anything ----------------------------------------------------------------------------------------------------------

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from(["text", "id", "symbol", "price"]) | st.text(), inner)
    ),
)
ANY_BYTES = st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode())
EVENTS = [
    ("room:42", "chat.message"), ("room:42", "chat.typing"), ("room:42", "chat.pin"), ("inbox:ann", "inbox.draft"),
    ("board:main", "ticker.price"),
]  # fmt: skip


@given(
    st.sampled_from([ANN, BEN, NOBODY, BACKEND]),
    st.sampled_from(EVENTS) | st.tuples(st.text(), st.text()),
    ANY_BYTES,
    st.none() | st.text(),
    st.booleans(),
)
def test_validate_any_data_returns_publication_or_service_error(
    identity: Identity, event: tuple[str, str], data: bytes, key: str | None, subscribed: bool
) -> None:
    channel, type_ = event
    try:
        published = admit(identity, channel=channel, type=type_, data=data, key=key, subscribed=subscribed)
    except ServiceError as error:
        msgspec.json.encode(dict(error.details))  # every refusal can be sent
    else:
        assert published.data == data
        assert (published.delivery is Delivery.LATEST) == (published.key is not None)
        assert json.loads(published.data) == msgspec.json.decode(data)
