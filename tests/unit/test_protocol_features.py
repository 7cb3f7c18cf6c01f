"""What a client announces: nothing in it raises, and it stays within bounds."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.protocol.features import (
    ENCODED_FEATURES,
    FEATURES,
    MAX_CLIENT,
    MAX_CONTRACT,
    MAX_FEATURES,
    NO_ANNOUNCEMENT,
    known_features,
    parse_announcement,
)
from tests.support.examples import examples


def test_encoded_features_are_the_sorted_names() -> None:
    assert json.loads(bytes(ENCODED_FEATURES)) == sorted(FEATURES)


def test_valid_announcement_is_read() -> None:
    found = parse_announcement("@shop-js/1.2.0-rc.1+5", "0123456789abcdef", "tomorrow,ready_in_address,")
    assert (found.client, found.version) == ("@shop-js", "1.2.0-rc.1+5")
    assert found.contract == "0123456789abcdef"
    assert found.features == frozenset({"ready_in_address"})


@pytest.mark.parametrize(
    "client",
    [
        "",
        "/",
        "js",
        "js/",
        "/1",
        "js/1/2",
        "js 1/1",
        "js/1\n",
        "j\u00e9/1",
        "\u0661/\u0661",
        "a" * 33 + "/1",
        "a/" + "1" * 33,
    ],
)
def test_invalid_client_counts_as_absent(client: str) -> None:
    assert parse_announcement(client, "", "") == NO_ANNOUNCEMENT


@pytest.mark.parametrize("contract", ["", "0123456", "0123456G", "ABCDEF01", "0" * 65, "01234567\n", "\u0661" * 8])
def test_invalid_contract_counts_as_absent(contract: str) -> None:
    assert parse_announcement("", contract, "") == NO_ANNOUNCEMENT


@pytest.mark.parametrize(
    "features", ["", ",", "tomorrow", "Ready_in_address", " ready_in_address", "ready_in_address\n"]
)
def test_unknown_features_are_ignored(features: str) -> None:
    assert parse_announcement("", "", features) == NO_ANNOUNCEMENT


def test_longest_values_are_read_and_longer_ones_are_not() -> None:
    client, contract = "a" * 32 + "/" + "1" * 32, "f" * MAX_CONTRACT
    features = "ready_in_address,".ljust(MAX_FEATURES, "x")
    found = parse_announcement(client, contract, features)
    assert len(client) == MAX_CLIENT
    assert (found.client, found.contract) == ("a" * 32, contract)
    assert found.features == frozenset({"ready_in_address"})
    assert parse_announcement(client + "1", contract + "f", features + "x") == NO_ANNOUNCEMENT


def test_equal_features_share_one_set() -> None:
    first = known_features(["ready_in_address", "tomorrow"])
    assert known_features(["ready_in_address"]) is first
    assert parse_announcement("a/1", "", "ready_in_address").features is first


@settings(max_examples=examples(300))
@given(st.text(), st.text(), st.text())
def test_any_announcement_is_bounded(client: str, contract: str, features: str) -> None:
    found = parse_announcement(client, contract, features)
    assert found.features <= FEATURES.keys()
    assert max(len(found.client), len(found.version)) <= 32
    assert bool(found.client) == bool(found.version)
    assert len(found.contract) <= MAX_CONTRACT
