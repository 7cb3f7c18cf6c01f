"""Objects with a key twice are refused, whatever they are hidden behind; the cheap test never lets one through."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ErrorCode, ServiceError
from service.protocol import codec
from service.protocol.messages import Publish
from service.protocol.unique_keys import SHORT, check_text, check_value
from tests.support.examples import examples

REFUSED = {
    "flat": ('{"a":1,"a":2}', "$.a"),
    "the same value": ('{"a":1,"a":1}', "$.a"),
    "with another between": ('{"a":1,"b":2,"a":3}', "$.a"),
    "escaped": ('{"a":1,"\\u0061":2}', "$.a"),
    "escaped surrogates": ('{"\U0001f600":1,"\\ud83d\\ude00":2}', '$["\\ud83d\\ude00"]'),
    "a space before the colon": ('{"a" :1,"a":2}', "$.a"),
    "nested": ('{"b":{"c":[1,{"a":1,"a":2}]}}', "$.b.c[1].a"),
    "in an object that is dropped": ('{"b":{"a":1,"a":2},"b":1}', "$.b"),
    "in a list": ('[{"a":1},{"a":1,"a":2}]', "$[1].a"),
    "the empty key": ('{"":1,"":2}', '$[""]'),
    "balanced by a short float": ('{"a":1,"a":2,"f":1e9}', "$.a"),
    "behind a colon in text": ('{"t":"a:b:c","t":"x"}', "$.t"),
    "behind a quote in text": ('{"t":"\\"a\\":","t":"x"}', "$.t"),
    "of three": ('{"a":1,"a":2,"a":3}', "$.a"),
    "long": ('{"text":"%s","text":""}' % ("x" * SHORT), "$.text"),
    "long, at the end": ('{"text":"%s","n":1,"n":2}' % ("x" * SHORT), "$.n"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_duplicate_key_is_refused_with_its_path(name: str) -> None:
    text, path = REFUSED[name]
    value = msgspec.json.decode(text)
    with pytest.raises(ServiceError) as by_text:
        check_text(text)
    with pytest.raises(ServiceError) as by_value:
        check_value(text.encode(), value, "$")
    for refusal in (by_text.value, by_value.value):
        assert (refusal.code, refusal.details["path"]) == (ErrorCode.MALFORMED, path)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "1",
        '"a"',
        ' { "a" : 1 , "b" : { "a" : [ { "a" : 1 } ] } } ',
        '{"a":"\\"a\\":1,\\"a\\":2"}',
        '{"a":1,"A":2,"a ":3}',
        '{"e":1e5,"f":0.1,"n":null,"t":true,"u":"\\u00e9é"}',
        '[{"a":1},{"a":1}]',
    ],
)
def test_text_without_duplicate_key_is_accepted(text: str) -> None:
    check_text(text)
    check_value(text.encode(), msgspec.json.decode(text), "$")


# --- any JSON, beside the oracle ------------------------------------------------------------------------------------------


def has_duplicate(text: str) -> bool:
    """The oracle: whether any object has a key twice."""
    found = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        found.append(len({key for key, _ in pairs}) < len(pairs))

    json.loads(text, object_pairs_hook=note)
    return any(found)


KEYS = st.sampled_from(["a", "b", "text", "", ":", '"', '":', "é", "\U0001f600", "\\"])
SPACES = st.sampled_from(["", "", "", " ", "\n\t"])


@st.composite
def strings(draw: st.DrawFn, content: st.SearchStrategy[str]) -> str:
    """A string as JSON, some of its characters escaped."""
    text = draw(content)
    style = draw(st.integers(0, 2))
    if style == 2:
        return '"' + "".join(f"\\u{ord(char):04x}" for char in text if ord(char) < 0x10000) + '"'
    return json.dumps(text, ensure_ascii=bool(style))


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    members = draw(st.lists(st.tuples(strings(KEYS), values), max_size=4))
    parts = [f"{draw(SPACES)}{key}{draw(SPACES)}:{draw(SPACES)}{value}" for key, value in members]
    return "{" + ",".join(parts) + draw(SPACES) + "}"


SCALARS = st.one_of(
    strings(st.text(max_size=8) | KEYS | st.just("x" * SHORT)),
    st.integers(-(10**20), 10**20).map(str),
    st.sampled_from(["1e9", "1E2", "-0", "0.5", "100000.0", "1e-7", "true", "false", "null"]),
)
TEXTS = st.recursive(
    SCALARS,
    lambda inner: objects(inner) | st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]"),
    max_leaves=12,
)


@settings(max_examples=examples(150))
@given(TEXTS | objects(SCALARS))
def test_any_json_agrees_with_the_oracle(text: str) -> None:
    value = msgspec.json.decode(text)
    twice = has_duplicate(text)
    with pytest.raises(ServiceError) if twice else nullcontext():
        check_text(text)
    with pytest.raises(ServiceError) if twice else nullcontext():
        check_value(text.encode(), value, "$")


MEMBERS = {
    "type": ['"chat.message"', '"a.b"'],
    "channel": ['"room:1"', '"é"'],
    "data": ['{"text":"x"}', '{"a":1}', "1", '"a:b"'],
    "id": ['"m-1"', "null"],
    "key": ['"k"', "null"],
}


@st.composite
def publishes(draw: st.DrawFn) -> str:
    """Messages of a client that are well-formed but for members that stand twice, and data with them."""
    extra = draw(st.lists(st.sampled_from(sorted(MEMBERS)), max_size=2))
    names = draw(st.permutations(["type", "channel", "data", *extra]))
    parts = []
    for name in names:
        key = draw(st.sampled_from([f'"{name}"', f'"\\u{ord(name[0]):04x}{name[1:]}"']))
        value = draw(st.sampled_from(MEMBERS[name]) if name != "data" else objects(SCALARS))
        parts.append(f"{draw(SPACES)}{key}{draw(SPACES)}:{draw(SPACES)}{value}")
    return "{" + ",".join(parts) + "}"


@settings(max_examples=examples(150))
@given(publishes())
def test_any_publish_agrees_with_the_oracle(text: str) -> None:
    """The codec looks at all but `data`, the gate at that."""
    for message in (text, msgspec.Raw(text.encode())):
        with pytest.raises(ServiceError) if has_duplicate(text) else nullcontext() as refusal:
            command = codec.decode(message)
            assert isinstance(command, Publish)
            data = bytes(command.data)
            check_value(data, msgspec.json.decode(data), "$.data")
        assert refusal is None or refusal.value.code is ErrorCode.MALFORMED


SINCES = [
    '{"epoch":"e","offset":1}',
    '{"offset":100,"epoch":"\\u0065"}',
    '{"epoch":"e","offset":1,"offset":2}',
    '{"epoch":"e","epoch":"e","offset":-0,"id":"x"}',
]
COMMANDS = {
    "ready": {},
    "ping": {"id": ['"p"', "null"]},
    "hello": {"token": ['"a"', '"é"', "null"]},
    "refresh": {"id": ['"r"'], "token": ['"a.b"', '"\\u00e9"']},
    "subscribe": {"id": ['"s"'], "channel": ['"room:1"', '"a\\/b"', '"é"'], "since": [*SINCES, "null"]},
    "history": {
        "id": ['"h"'],
        "channel": ['"room:1"'],
        "limit": ["50", "7"],
        "after": ["1", "null"],
        "before": ["123456"],
    },
}


@st.composite
def commands(draw: st.DrawFn) -> str:
    """The same of the service's own messages."""
    kind = draw(st.sampled_from(sorted(COMMANDS)))
    members: dict[str, list[str]] = {"type": [f'"{kind}"'], **COMMANDS[kind]}
    extra = draw(st.lists(st.sampled_from(sorted(members)), max_size=2))
    names = draw(st.permutations([*members, *extra]))
    space = draw(st.sampled_from(["", "", "", " "]))
    parts = [f'"{name}"{space}:{draw(st.sampled_from(members[name]))}' for name in names]
    return "{" + ",".join(parts) + "}"


@settings(max_examples=examples(150))
@given(commands())
def test_any_command_agrees_with_the_oracle(text: str) -> None:
    for message in (text, msgspec.Raw(text.encode())):
        with pytest.raises(ServiceError) if has_duplicate(text) else nullcontext() as refusal:
            codec.decode(message)
        assert refusal is None or refusal.value.code is ErrorCode.MALFORMED


@pytest.mark.parametrize(
    "frame",
    [
        '{"type":"ping","type":"ping"}',
        '{"type":"ready","type":"ping"}',
        '{"type":"nothing","a":1,"a":2}',
        '{"type":"ping","extra":1,"extra":2}',
        '{"type":"subscribe","id":"s","channel":"room:1","channel":"room:2"}',
        '{"type":"subscribe","id":"abcde","channel":"room:1","id":"s"}',  # as long as with "since":null
        '{"type":"subscribe","id":"s","channel":"room:1","since":{"epoch":"e","offset":1,"offset":2}}',
        '{"type":"hello","token":"a","\\u0074oken":"b"}',
        '{"type":"chat.message","channel":"room:1","channel":"room:2","data":{}}',
        '{"type":"chat.message","channel":"room:1","data":1,"data":{"text":"x"}}',
        '{"type":"chat.message","channel":"room:1","data":{},"id":"a","id":"a"}',
    ],
)
def test_every_command_is_checked(frame: str) -> None:
    with pytest.raises(ServiceError) as refusal:
        codec.decode(frame)
    assert refusal.value.code is ErrorCode.MALFORMED


def test_check_text_takes_linear_time() -> None:
    """64 KiB of the smallest members, of the deepest nesting, and of keys whose hashes nobody can choose."""
    members = ",".join(f'"{number:x}":{number}' for number in range(6000))
    texts = [
        f"{{{members}}}",
        "[" * 900 + "]" * 900,
        '{"a":' * 900 + "1" + "}" * 900,
        '{"a":"%s"}' % ("\\u0061" * 10_000),
    ]
    for text in texts:
        started = time.process_time()
        check_text(text)
        assert time.process_time() - started < 0.5
    with pytest.raises(ServiceError) as refusal:
        check_text("[" * 100_000 + "]" * 100_000)
    assert refusal.value.code is ErrorCode.MALFORMED
