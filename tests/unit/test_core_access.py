"""Who may do what: every rule against every kind of party, written out."""

from __future__ import annotations

import pytest

from service.core.access import PublishRule, SubscribeRule, may_describe, may_publish, may_read
from service.core.identity import Grant, Identity, Right, anonymous, backend

CHANNEL = "inbox:ann"
PARAMETERS = {"user": "ann"}
READING = [Right.SUBSCRIBE, Right.HISTORY, Right.PRESENCE]

PARTIES = {
    "anonymous": anonymous("acme"),
    "user": Identity("acme", "ben"),
    "granted": Identity("acme", "ben", (Grant("inbox:*"),)),
    "granted elsewhere": Identity("acme", "ben", (Grant("room:**"),)),
    "granted nothing": Identity("acme", "ben", (Grant("inbox:*", frozenset()),)),
    "owner": Identity("acme", "ann"),
    "backend": backend("acme"),
}

READERS = {
    SubscribeRule.EVERYONE: set(PARTIES),
    SubscribeRule.AUTHENTICATED: set(PARTIES) - {"anonymous"},
    SubscribeRule.GRANT: {"granted", "backend"},
    SubscribeRule.OWNER: {"owner", "backend"},
}

PUBLISHERS = {
    PublishRule.SERVER: {"backend"},
    PublishRule.SUBSCRIBER: {"backend"},  # and whoever has joined: see below
    PublishRule.AUTHENTICATED: set(PARTIES) - {"anonymous"},
    PublishRule.GRANT: {"granted", "backend"},
    PublishRule.OWNER: {"owner", "backend"},
}


def test_rules_are_all_covered() -> None:
    assert set(READERS) == set(SubscribeRule)
    assert set(PUBLISHERS) == set(PublishRule)


@pytest.mark.parametrize("right", READING)
@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("rule", SubscribeRule)
def test_may_read_follows_the_subscribe_rule(rule: SubscribeRule, party: str, right: Right) -> None:
    assert may_read(rule, right, PARTIES[party], CHANNEL, PARAMETERS) is (party in READERS[rule])


@pytest.mark.parametrize("subscribed", [False, True])
@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("rule", PublishRule)
def test_may_publish_follows_the_publish_rule(rule: PublishRule, party: str, subscribed: bool) -> None:
    expected = party in PUBLISHERS[rule] or (rule is PublishRule.SUBSCRIBER and subscribed)
    assert may_publish(rule, PARTIES[party], CHANNEL, PARAMETERS, subscribed=subscribed) is expected


@pytest.mark.parametrize("asked", READING)
@pytest.mark.parametrize("granted", Right)
def test_rights_are_granted_separately(asked: Right, granted: Right) -> None:
    party = Identity("acme", "ben", (Grant(CHANNEL, frozenset({granted})),))
    assert may_read(SubscribeRule.GRANT, asked, party, CHANNEL, PARAMETERS) is (asked is granted)
    assert may_publish(PublishRule.GRANT, party, CHANNEL, PARAMETERS, subscribed=True) is (granted is Right.PUBLISH)


@pytest.mark.parametrize("parameters", [{}, {"user": ""}, {"owner": "ann"}, {"user": "Ann"}, {"user": "ann "}])
def test_owner_is_only_the_user_in_the_channel_name(parameters: dict[str, str]) -> None:
    for party in (Identity("acme", "ann"), anonymous("acme")):
        assert not may_read(SubscribeRule.OWNER, Right.SUBSCRIBE, party, CHANNEL, parameters)
        assert not may_publish(PublishRule.OWNER, party, CHANNEL, parameters, subscribed=True)


def test_owner_of_encoded_channel_is_that_user() -> None:
    pipe, literal = Identity("acme", "auth0|x"), Identity("acme", "auth0%7Cx")
    for party, segment, owns in (
        (pipe, "auth0%7Cx", True),
        (pipe, "auth0|x", False),
        (literal, "auth0%7Cx", False),
        (literal, "auth0%257Cx", True),
    ):
        assert may_read(SubscribeRule.OWNER, Right.SUBSCRIBE, party, CHANNEL, {"user": segment}) is owns
        assert may_publish(PublishRule.OWNER, party, CHANNEL, {"user": segment}, subscribed=True) is owns


@pytest.mark.parametrize("party", PARTIES)
def test_only_the_backend_may_read_the_whole_contract(party: str) -> None:
    assert may_describe(PARTIES[party]) is (party == "backend")
