"""Buckets that connections have and share: what they allow, for how long they are remembered, and whose fault a refusal is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.identity import Identity, anonymous
from service.core.limits import Limits, Rate
from service.core.token_bucket import TokenBucket
from service.realtime.admission.message_rates import ConnectionRates, KeyedRates, Rates

ANN = Identity("t", "ann")
PLENTY = Rate(per_second=1e6, burst=10**6)
FREE = Limits(
    connection_rate=PLENTY, user_rate=PLENTY, ip_rate=PLENTY, tenant_rate=PLENTY, subscriptions=1, rate_violations=2
)
SETTINGS = {"connection": "connection_rate", "user": "user_rate", "ip": "ip_rate", "tenant": "tenant_rate"}
Scope = Literal["connection", "user", "ip", "tenant"]
scopes = pytest.mark.parametrize("scope", SETTINGS)


def limited(scope: str, burst: int, per_second: float = 1.0) -> Limits:
    changed: dict[str, Any] = {SETTINGS[scope]: Rate(per_second, burst)}
    return replace(FREE, **changed)


def spend(rates: Rates, connection: ConnectionRates, count: int, now: float) -> list[bool]:
    """Whether each of so many messages comes in."""
    return [rates.take_message(connection, now) is None for _ in range(count)]


@scopes
def test_each_bucket_allows_its_burst_and_then_its_rate(scope: str) -> None:
    rates = Rates(limited(scope, burst=3, per_second=2.0))
    ann = rates.acquire("192.0.2.1", ANN)
    assert spend(rates, ann, 4, 100.0) == [True] * 3 + [False]
    assert spend(rates, ann, 2, 100.5) == [True, False]
    assert spend(rates, ann, 4, 1_000.0) == [True] * 3 + [False], "what is not used does not pile up"


@scopes
def test_the_exceeded_bucket_is_named_with_the_wait_and_later_ones_wait_longer(scope: str) -> None:
    rates = Rates(limited(scope, burst=2, per_second=2.0))
    ann = rates.acquire("192.0.2.1", ANN)
    spend(rates, ann, 2, 100.0)
    exceeded = [rates.take_message(ann, 100.0) for _ in range(2)]
    assert [found.scope for found in exceeded if found] == [scope, scope]
    assert [found.wait for found in exceeded if found] == pytest.approx([0.5, 1.0], abs=0.01)


@given(
    sizes=st.lists(st.tuples(st.sampled_from([0.25, 0.5, 1.0, 4.0]), st.integers(1, 10)), min_size=4, max_size=4),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=60),
    kind=st.sampled_from(["messages", "subscribes"]),
)
def test_all_buckets_are_taken_from_or_none(
    sizes: list[tuple[float, int]], steps: list[tuple[int, int]], kind: Literal["messages", "subscribes"]
) -> None:
    """Token buckets that are asked one after the other, and given back to where one refuses, are the model."""
    each = [Rate(*size) for size in sizes]
    names = list(SETTINGS.values())
    one = {"connections": 1, "connections_per_user": 1, "connections_per_ip": 1, "subscriptions": 1}
    rates = Rates(Limits(**dict(zip(names, each, strict=True)), **one))  # type: ignore[arg-type]  # by name
    connection = rates.acquire("192.0.2.1", ANN)
    now = 1_000.0
    model = [TokenBucket(rate, now) for rate in each]
    for wait, cost in steps:
        now += wait
        if kind == "subscribes":
            exceeded = rates.take_subscribes(connection, now, cost)
        elif cost == 1:
            exceeded = rates.take_message(connection, now)
        else:
            exceeded = rates.take(connection, kind, now, cost)
        could = [bucket.acquire(now, cost) == 0.0 for bucket in model]
        assert (exceeded is None) is all(could)
        if exceeded is not None:
            assert could[list(SETTINGS).index(exceeded.scope)] is False
            for bucket, took in zip(model, could, strict=True):
                if took:
                    bucket.refund(cost)


def test_messages_and_subscribes_have_buckets_of_their_own() -> None:
    rates = Rates(limited("connection", burst=1))
    ann = rates.acquire("192.0.2.1", ANN)
    assert rates.take_subscribes(ann, 0.0, 1) is None
    assert rates.take_message(ann, 0.0) is None
    assert rates.take_subscribes(ann, 0.0, 1) is not None
    assert rates.take_message(ann, 0.0) is not None


def test_what_is_given_back_can_be_taken_again_and_no_more() -> None:
    rates = Rates(limited("user", burst=5))
    limits = rates.acquire("192.0.2.1", ANN)
    assert rates.take_subscribes(limits, 100.0, 5) is None
    rates.give_back(limits, "subscribes", 5)
    rates.give_back(limits, "subscribes", 5)
    assert rates.take_subscribes(limits, 100.0, 5) is None


def test_an_anonymous_connection_has_no_user_to_share_with() -> None:
    rates = Rates(limited("user", burst=1))
    connection = rates.acquire("192.0.2.1", anonymous("t"))
    assert spend(rates, connection, 3, 0.0) == [True] * 3
    assert rates.take_subscribes(connection, 0.0, 3) is None
    rates.release("192.0.2.1", anonymous("t"))


@scopes
def test_connections_share_what_is_not_their_own(scope: str) -> None:
    rates = Rates(limited(scope, burst=1))
    first, second = rates.acquire("192.0.2.1", ANN), rates.acquire("192.0.2.1", ANN)
    assert spend(rates, first, 1, 0.0) == [True]
    assert spend(rates, second, 1, 0.0) == [scope == "connection"]
    other = rates.acquire("192.0.2.2", Identity("other", "ann"))
    assert spend(rates, other, 1, 0.0) == [True]


def test_what_was_taken_is_remembered_when_the_last_connection_is_gone() -> None:
    keyed = KeyedRates(tracked=10)
    keyed.acquire("ann").messages = 5.0
    keyed.release("ann")
    assert keyed.acquire("ann").messages == 5.0


def test_buckets_in_use_are_never_forgotten() -> None:
    keyed = KeyedRates(tracked=1)
    used = keyed.acquire("ann")
    for name in ("ben", "cid", "dan"):
        keyed.acquire(name).messages = 1.0
        keyed.release(name)
    keyed.forget_full(100.0, 10)
    assert keyed.acquire("ann") is used
    assert len(keyed) == 1


def test_no_more_than_tracked_idle_keys_are_remembered() -> None:
    keyed = KeyedRates(tracked=2)
    for name in ("ann", "ben", "cid"):
        keyed.acquire(name).messages = 5.0
        keyed.release(name)
    assert len(keyed) == 2
    assert keyed.acquire("ann").messages == 0.0, "idle for longest, so it is forgotten"
    assert keyed.acquire("cid").messages == 5.0


def test_idle_keys_are_forgotten_once_both_buckets_are_full() -> None:
    keyed = KeyedRates(tracked=10)
    keyed.acquire("ann").subscribes = 1.0
    keyed.release("ann")
    keyed.forget_full(0.5, 10)
    assert len(keyed) == 1
    keyed.forget_full(1.0, 10)
    assert len(keyed) == 0


def test_frames_above_its_own_rate_are_violations_for_as_long_as_the_window() -> None:
    rates = Rates(FREE)
    ann = rates.acquire("192.0.2.1", ANN)
    assert [rates.is_abusive(ann, "connection", now) for now in (0.0, 5.0, 10.5, 11.0)] == [False] * 3 + [True]


def test_refusals_for_what_others_use_up_count_only_above_its_own_rate() -> None:
    limits = replace(FREE, connection_rate=Rate(per_second=0.001, burst=2))
    rates = Rates(limits)
    ann = rates.acquire("192.0.2.1", ANN)
    allowed = limits.connection_rate.burst + limits.rate_violations
    assert [rates.is_abusive(ann, "user", 0.0) for _ in range(allowed + 1)] == [False] * allowed + [True]
