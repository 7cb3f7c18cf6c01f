"""Channel names, the contract's patterns and the grants' patterns."""

from __future__ import annotations

import json
import time
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.channel import MAX_CHANNEL_BYTES, ChannelPattern, check_name, encode_user, grant_regex
from service.errors import ErrorCode, ServiceError

SAFE = "abzABZ019_.@~=+-"

segments = st.text(st.sampled_from(SAFE), min_size=1, max_size=6)
names = st.lists(segments, min_size=1, max_size=4).map(":".join)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a", "room:42", "room:42:thread:7", "inbox:ann@example.com", "x-_.@~=+-9", "..", "x" * MAX_CHANNEL_BYTES]
)
def test_check_name_returns_valid_name(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        ":",
        "room:",
        ":room",
        "room::1",
        "room:*",
        "room:?",
        "room:[ab]",
        "room:{room}",
        "room 1",
        " room",
        "room\t1",
        "room\r\nSet-Cookie: a=b",
        "room:1\n",
        "room\0",
        "room\x7f",
        "room/1",
        "room\\1",
        "room%3A1",
        "room,lobby",
        "room;1",
        'room"',
        "room'1",
        "rööm",
        "room:１",  # a full-width digit
        "room:٣",  # an Arabic digit
        "roоm",  # a Cyrillic letter
        "room\u200b",
        "\ud800",
        "x" * (MAX_CHANNEL_BYTES + 1),
        "ä" * MAX_CHANNEL_BYTES,
        "a:" * 1_000_000,
    ],
)
def test_check_name_refuses_invalid_name(name: str) -> None:
    with pytest.raises(ServiceError) as refused:
        check_name(name)
    assert refused.value.code is ErrorCode.INVALID_CHANNEL
    assert refused.value.details == {"path": "$.channel"}
    assert len(str(refused.value)) < 200


@given(st.text(max_size=140))
def test_check_name_accepts_only_the_safe_characters(name: str) -> None:
    good = len(name) <= MAX_CHANNEL_BYTES and all(
        part and set(part) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.@~=+-")
        for part in name.split(":")
    )
    if good:
        assert check_name(name) == name
    else:
        with pytest.raises(ServiceError):
            check_name(name)


@given(names)
def test_check_name_accepts_any_safe_segments(name: str) -> None:
    assert check_name(name) == name


# --- users in names ---------------------------------------------------------------------------------------------------

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "users.json").read_text(encoding="utf-8"))
INBOX = ChannelPattern("inbox:{user}")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["user"])
def test_encode_user_returns_one_segment(vector: dict[str, str]) -> None:
    user, segment = vector["user"], vector["segment"]
    assert encode_user(user) == segment
    assert check_name(f"inbox:{segment}", encoded=True)
    assert INBOX.match(f"inbox:{segment}") == {"user": segment}


@given(st.text(min_size=1, max_size=30), st.text(min_size=1, max_size=30))
def test_encode_user_is_unique_for_each_user(one: str, other: str) -> None:
    assert (encode_user(one) == encode_user(other)) is (one == other)
    assert check_name("x:" + encode_user(one)[:100], encoded=True)
    assert INBOX.match(f"inbox:{encode_user(one)}") is not None


@given(segments)
def test_encode_user_keeps_safe_users(user: str) -> None:
    assert encode_user(user) == user


@pytest.mark.parametrize(
    "segment",
    [
        "%",
        "%7",
        "%7c",
        "%zz",
        "a%",
        "%41nn",
        "a%2Db",
        "%FF",
        "%C3",
        "%C3%28",
        "%ED%A0%80",
        "%C0%80",
        "100%",
        "%%7C",
        "%257c%",
    ],
)
def test_pattern_refuses_other_encodings_of_a_user(segment: str) -> None:
    assert INBOX.match(f"inbox:{segment}") is None


def test_pattern_allows_encoding_only_for_the_user() -> None:
    assert ChannelPattern("room:{room}").match("room:a%7Cb") is None
    assert ChannelPattern("{room}:of:{user}").match("a%7Cb:of:ann") is None
    assert ChannelPattern("{room}:of:{user}").match("a%7Cb:of:a%7Cb") is None
    assert ChannelPattern("{room}:of:{user}").match("r:of:a%7Cb") == {"room": "r", "user": "a%7Cb"}
    with pytest.raises(ValueError, match=r"neither a {parameter}"):
        ChannelPattern("room:a%7Cb")


# --- patterns of the contract -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "parameters"),
    [
        ("lobby", "lobby", {}),
        ("lobby", "lobby2", None),
        ("lobby", "lobby:1", None),
        ("room:{room}", "room:42", {"room": "42"}),
        ("room:{room}", "room:42:x", None),
        ("room:{room}", "room", None),
        ("room:{room}", "xroom:42", None),
        ("{kind}:{id}", "a:b", {"kind": "a", "id": "b"}),
        ("doc:{doc}:user:{user}", "doc:1:user:ann", {"doc": "1", "user": "ann"}),
        ("doc:{doc}:user:{user}", "doc:1:2:user:ann", None),
        ("a.b:{x}", "a.b:1", {"x": "1"}),
        ("a.b:{x}", "aXb:1", None),
        ("a+:{x}", "aa:1", None),
        ("room:{room}", "room:1\n", None),
    ],
)
def test_pattern_parameter_matches_one_segment(pattern: str, name: str, parameters: dict[str, str] | None) -> None:
    assert ChannelPattern(pattern).match(name) == parameters


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "room:",
        "room::x",
        "room:{",
        "room:{}",
        "room:{1x}",
        "room:x{y}",
        "room:{a b}",
        "room:*",
        "röm",
        "a:{x}\n",
    ],
)
def test_invalid_pattern_is_refused_with_the_segment(text: str) -> None:
    with pytest.raises(ValueError, match=r"neither a {parameter} nor made of letters"):
        ChannelPattern(text)


def test_pattern_with_duplicate_parameter_is_refused() -> None:
    with pytest.raises(ValueError, match=r"parameter {x} appears twice"):
        ChannelPattern("a:{x}:{x}")


def test_pattern_has_parameters_and_shape() -> None:
    pattern = ChannelPattern("doc:{doc}:user:{user}")
    assert pattern.parameters == ("doc", "user")
    assert pattern.shape == ("doc", "{}", "user", "{}")
    assert repr(pattern) == "ChannelPattern('doc:{doc}:user:{user}')"
    assert ChannelPattern("doc:{a}:user:{b}").shape == pattern.shape


def test_pattern_with_earlier_literal_is_more_specific() -> None:
    patterns = [
        "{a}:{b}:{c}",
        "room:{b}:{c}",
        "{a}:main:{c}",
        "room:main:{c}",
        "room:{b}:log",
        "{a}:main:log",
        "room:main:log",
    ]
    ordered = sorted(map(ChannelPattern, patterns), key=lambda pattern: pattern.specificity)
    assert [pattern.text for pattern in ordered] == [
        "room:main:log",
        "room:main:{c}",
        "room:{b}:log",
        "room:{b}:{c}",
        "{a}:main:log",
        "{a}:main:{c}",
        "{a}:{b}:{c}",
    ]


@given(names)
def test_pattern_of_literals_matches_only_itself(name: str) -> None:
    assert ChannelPattern(name).match(name) == {}
    assert ChannelPattern(name).match(name + "x") is None


# --- patterns of grants -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("grant", "covered", "not_covered"),
    [
        ("lobby", ["lobby"], ["lobby2", "xlobby", "lobby:1", "LOBBY"]),
        ("*", ["a", "lobby"], ["a:b"]),
        ("room:*", ["room:1", "room:a.b"], ["room", "room:1:2", "xroom:1", "rooms:1"]),
        ("*:log", ["a:log"], ["log", "a:b:log", "a:logs"]),
        ("room:*:log", ["room:1:log"], ["room:log", "room:1:2:log"]),
        ("team-*:x", ["team-:x", "team-a:x"], ["team:x", "team-a:b:x"]),
        ("*-dev", ["a-dev", "-dev", "a-dev-dev"], ["a-dev2", "dev"]),
        ("a*b*c", ["abc", "aXbYc", "abbcc", "abcbc"], ["ac", "acb", "abcb", "a:b:c"]),
        ("**", ["a", "a:b", "a:b:c"], []),
        ("room:**", ["room:1", "room:1:2", "room:1:2:3"], ["room", "rooms:1", "x:room:1"]),
        ("room:*:**", ["room:1:2", "room:1:2:3"], ["room:1", "room"]),
        ("a.b", ["a.b"], ["aXb"]),
        ("a+", ["a+"], ["aa", "a"]),
        ("inbox:*", ["inbox:auth0%7Cann"], ["inbox:auth0%7Cann:x"]),
        ("inbox:auth0%7C*", ["inbox:auth0%7Cann"], ["inbox:auth0ann"]),
        ("inbox:**", ["inbox:auth0%7Cann"], []),
    ],
)
def test_grant_matches_its_channels(grant: str, covered: list[str], not_covered: list[str]) -> None:
    regex = grant_regex(grant)
    for name in covered:
        assert regex.fullmatch(name), name
    for name in not_covered:
        assert not regex.fullmatch(name), name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "room:",
        "room::*",
        "room:***",
        "**:room",
        "room:**:log",
        "room**",
        "room:a**",
        "room:{room}",
        "room:[ab]",
        "room:?",
        "room:*\n",
        "rööm:*",
        "x" * (MAX_CHANNEL_BYTES + 1),
        "a b",
        ".*|x",
    ],
)
def test_invalid_grant_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"grant|last segment"):
        grant_regex(text)


@given(
    st.lists(st.text(st.sampled_from("ab*."), min_size=1, max_size=5), min_size=1, max_size=3).map(":".join),
    st.lists(st.text(st.sampled_from("ab."), min_size=1, max_size=6), min_size=1, max_size=3).map(":".join),
)
def test_grant_star_matches_within_one_segment(pattern: str, name: str) -> None:
    if "**" in pattern:
        return
    parts, wanted = name.split(":"), pattern.split(":")
    expected = len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
    assert (grant_regex(pattern).fullmatch(name) is not None) is expected


@given(names, names)
def test_grant_double_star_matches_the_rest(head: str, tail: str) -> None:
    assert grant_regex(f"{head}:**").fullmatch(f"{head}:{tail}")
    assert not grant_regex(f"{head}:**").fullmatch(head)


@pytest.mark.parametrize(
    "pattern", ["*a" * 63 + "*b", "*a*" + "a*" * 60 + "b", ":".join(["*a*a*b"] * 18), "*a" * 60 + "*b:**"]
)
def test_grant_matches_in_linear_time(pattern: str) -> None:
    name = ":".join(["a" * 6] * 18) if ":*" in pattern and "**" not in pattern else "a" * MAX_CHANNEL_BYTES
    began = time.process_time()
    assert grant_regex(pattern).fullmatch(name) is None
    assert time.process_time() - began < 5  # backtracking through 60 stars would take longer than the universe is old


@given(names)
def test_grant_of_a_name_matches_it(name: str) -> None:
    assert grant_regex(name).fullmatch(name)
