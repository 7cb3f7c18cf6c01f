"""Grants as they stand in a token, and what they give."""

from __future__ import annotations

from typing import Any

import pytest

from service.core.identity import (
    ALL_RIGHTS,
    MAX_INTERNED,
    Credentials,
    Grant,
    Identity,
    Right,
    anonymous,
    backend,
    parse_grants,
)


def test_grants_without_claim_are_empty() -> None:
    assert parse_grants(None) == ()
    assert parse_grants([]) == ()


def test_grant_of_a_pattern_has_every_right() -> None:
    assert parse_grants(["room:*"]) == (Grant("room:*", ALL_RIGHTS),)
    assert frozenset(Right) == ALL_RIGHTS


def test_grant_of_an_object_has_its_rights() -> None:
    claim = [{"channel": "room:*", "rights": ["subscribe", "history"]}, {"channel": "a", "rights": []}, "b"]
    assert parse_grants(claim) == (
        Grant("room:*", frozenset({Right.SUBSCRIBE, Right.HISTORY})),
        Grant("a", frozenset()),
        Grant("b"),
    )


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        ("room:*", "grants is not a list"),
        (b"room:*", "grants is not a list"),
        ({"room:*": ["subscribe"]}, "grants is not a list"),
        (7, "grants is not a list"),
        (False, "grants is not a list"),
        ([None], r"grants\[0\] is neither"),
        (["a", 7], r"grants\[1\] is neither"),
        ([["a"]], r"grants\[0\] is neither"),
        ([{}], r"grants\[0\] is neither"),
        ([{"channel": "a"}], r"grants\[0\] is neither"),
        ([{"rights": ["publish"]}], r"grants\[0\] is neither"),
        ([{"channel": 7, "rights": ["publish"]}], r"grants\[0\] is neither"),
        ([{"channel": "a", "rights": ["publish"], "until": 1}], r"grants\[0\] is neither"),
        ([{"channel": "a", "rights": "publish"}], r"grants\[0\].rights is not a list"),
        ([{"channel": "a", "rights": ""}], r"grants\[0\].rights is not a list"),
        ([{"channel": "a", "rights": {"publish": False}}], r"grants\[0\].rights is not a list"),
        ([{"channel": "a", "rights": None}], r"grants\[0\].rights is not a list"),
        ([{"channel": "a", "rights": ["admin"]}], "each is one of history, presence, publish, subscribe"),
        ([{"channel": "a", "rights": ["PUBLISH"]}], "each is one of"),
        ([{"channel": "a", "rights": [None]}], "each is one of"),
        ([{"channel": "a", "rights": [["publish"]]}], "each is one of"),
        ([""], "is not a grant"),
        (["a:**:b"], "may only be the last segment"),
        ([{"channel": "a b", "rights": ["publish"]}], "is not a grant"),
    ],
)
def test_invalid_grants_refuse_the_token(claim: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_grants(claim)


@pytest.mark.parametrize("right", Right)
@pytest.mark.parametrize("granted", Right)
def test_grant_rights_are_separate(right: Right, granted: Right) -> None:
    identity = Identity("acme", "ann", (Grant("room:*", frozenset({granted})),))
    assert identity.may(right, "room:1") is (right is granted)
    assert not identity.may(right, "lobby")


def test_any_grant_allows_the_right() -> None:
    identity = Identity("acme", "ann", (Grant("a:*", frozenset()), Grant("b:**"), Grant("a:1")))
    assert [identity.may(Right.PUBLISH, name) for name in ("a:1", "a:2", "b:1:2", "c")] == [True, False, True, False]


def test_anonymous_and_backend_identities_are_distinct() -> None:
    nobody, server = anonymous("acme"), backend("acme")
    assert (nobody.tenant, nobody.user, nobody.is_anonymous, nobody.is_backend) == ("acme", "", True, False)
    assert (server.tenant, server.user, server.is_anonymous, server.is_backend) == ("acme", "", False, True)
    assert not Identity("acme", "ann").is_anonymous
    assert not any(party.may(right, "room:1") for party in (nobody, server) for right in Right)


def test_credentials_repr_omits_secrets() -> None:
    assert "secret" not in repr(Credentials(token="secret-1", ticket="secret-2"))


@pytest.mark.parametrize(
    "claim",
    [
        ["room:*", "log:**"],
        [{"channel": "room:*", "rights": ["history"]}, "log:**"],
        ["a"] * MAX_INTERNED,
    ],
)
def test_equal_claims_share_grants(claim: list[Any]) -> None:
    assert parse_grants(claim) is parse_grants([*claim])


def test_equal_patterns_share_a_grant() -> None:
    [_, ann], [_, bob] = parse_grants(["inbox:ann", "room:*"]), parse_grants(["inbox:bob", "room:*"])
    assert ann is bob


def test_invalid_grants_are_refused_every_time() -> None:
    assert parse_grants(["1"]) == (Grant("1"),)
    for wrong in ([1], [True], ["1", 1.0], [""]):
        for _ in range(2):
            with pytest.raises(ValueError, match="grant"):
                parse_grants(wrong)


def test_long_claims_parse_equally() -> None:
    claim = [f"room:{number}" for number in range(MAX_INTERNED + 1)]
    assert parse_grants(claim) == tuple(map(Grant, claim))
