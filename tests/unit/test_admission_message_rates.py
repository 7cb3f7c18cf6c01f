"""Message rates of connections: bursts, shared buckets, eviction, and violations."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.identity import Identity, anonymous
from service.core.limits import Limits, Rate
from service.core.token_bucket import TokenBucket
from service.realtime.admission.message_rates import ConnectionRates, MessageRates
from service.realtime.admission.shared_rates import SharedRates

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


def spend(rates: MessageRates, connection: ConnectionRates, count: int, now: float) -> list[bool]:
    """Whether each of so many messages is within the rates."""
    return [rates.acquire_message(connection, now) is None for _ in range(count)]


@scopes
def test_bucket_allows_burst_then_rate(scope: str) -> None:
    rates = MessageRates(limited(scope, burst=3, per_second=2.0))
    ann = rates.register("192.0.2.1", ANN)
    assert spend(rates, ann, 4, 100.0) == [True] * 3 + [False]
    assert spend(rates, ann, 2, 100.5) == [True, False]
    assert spend(rates, ann, 4, 1_000.0) == [True] * 3 + [False], "a bucket never holds more than its burst"


@scopes
def test_refused_message_names_its_bucket_and_each_refusal_waits_longer(scope: str) -> None:
    rates = MessageRates(limited(scope, burst=2, per_second=2.0))
    ann = rates.register("192.0.2.1", ANN)
    spend(rates, ann, 2, 100.0)
    exceeded = [rates.acquire_message(ann, 100.0) for _ in range(2)]
    assert [found.scope for found in exceeded if found] == [scope, scope]
    assert [found.wait for found in exceeded if found] == pytest.approx([0.5, 1.0], abs=0.01)


@given(
    sizes=st.lists(st.tuples(st.sampled_from([0.25, 0.5, 1.0, 4.0]), st.integers(1, 10)), min_size=4, max_size=4),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), max_size=60),
    kind=st.sampled_from(["messages", "subscribes"]),
)
def test_acquire_removes_from_all_buckets_or_none(
    sizes: list[tuple[float, int]], steps: list[tuple[int, int]], kind: Literal["messages", "subscribes"]
) -> None:
    """The model: token buckets that are acquired one after the other, with a refund if one refuses."""
    each = [Rate(*size) for size in sizes]
    names = list(SETTINGS.values())
    one = {"connections": 1, "connections_per_user": 1, "connections_per_ip": 1, "subscriptions": 1}
    rates = MessageRates(Limits(**dict(zip(names, each, strict=True)), **one))  # type: ignore[arg-type]  # by name
    connection = rates.register("192.0.2.1", ANN)
    now = 1_000.0
    model = [TokenBucket(rate, now) for rate in each]
    for wait, cost in steps:
        now += wait
        if kind == "subscribes":
            exceeded = rates.acquire_subscribes(connection, now, cost)
        elif cost == 1:
            exceeded = rates.acquire_message(connection, now)
        else:
            exceeded = rates.acquire(connection, kind, now, cost)
        could = [bucket.acquire(now, cost) == 0.0 for bucket in model]
        assert (exceeded is None) is all(could)
        if exceeded is not None:
            assert could[list(SETTINGS).index(exceeded.scope)] is False
            for bucket, took in zip(model, could, strict=True):
                if took:
                    bucket.refund(cost)


def test_messages_and_subscribes_have_separate_buckets() -> None:
    rates = MessageRates(limited("connection", burst=1))
    ann = rates.register("192.0.2.1", ANN)
    assert rates.acquire_subscribes(ann, 0.0, 1) is None
    assert rates.acquire_message(ann, 0.0) is None
    assert rates.acquire_subscribes(ann, 0.0, 1) is not None
    assert rates.acquire_message(ann, 0.0) is not None


def test_refunded_messages_can_be_acquired_again_up_to_the_burst() -> None:
    rates = MessageRates(limited("user", burst=5))
    limits = rates.register("192.0.2.1", ANN)
    assert rates.acquire_subscribes(limits, 100.0, 5) is None
    rates.refund(limits, "subscribes", 5)
    rates.refund(limits, "subscribes", 5)
    assert rates.acquire_subscribes(limits, 100.0, 5) is None


def test_anonymous_connection_has_no_user_bucket() -> None:
    rates = MessageRates(limited("user", burst=1))
    connection = rates.register("192.0.2.1", anonymous("t"))
    assert spend(rates, connection, 3, 0.0) == [True] * 3
    assert rates.acquire_subscribes(connection, 0.0, 3) is None
    rates.unregister("192.0.2.1", anonymous("t"))


@scopes
def test_connections_share_all_buckets_but_their_own(scope: str) -> None:
    rates = MessageRates(limited(scope, burst=1))
    first, second = rates.register("192.0.2.1", ANN), rates.register("192.0.2.1", ANN)
    assert spend(rates, first, 1, 0.0) == [True]
    assert spend(rates, second, 1, 0.0) == [scope == "connection"]
    other = rates.register("192.0.2.2", Identity("other", "ann"))
    assert spend(rates, other, 1, 0.0) == [True]


SHARED: dict[str, Callable[[MessageRates], Sized]] = {
    "address": lambda rates: rates.addresses.idle,
    "tenant": lambda rates: rates.tenants.idle,
    "user": lambda rates: rates.users.idle,
}
shared = pytest.mark.parametrize("kind", SHARED)


class Keyed:
    """The buckets of some addresses, tenants or users, and how many of them are kept without a connection."""

    def __init__(self, kind: str, max_idle: int) -> None:
        self._kind = kind
        self.rates = MessageRates(replace(FREE, tracked=max_idle))
        self._place = {"address": "192.0.2.1", "tenant": "t", "user": "ann"}

    def acquire(self, name: str) -> SharedRates:
        place = {**self._place, self._kind: name}
        connection = self.rates.register(place["address"], Identity(place["tenant"], place["user"]))
        found: SharedRates = getattr(connection, self._kind)
        return found

    def release(self, name: str) -> None:
        place = {**self._place, self._kind: name}
        self.rates.unregister(place["address"], Identity(place["tenant"], place["user"]))

    def keep(self, *names: str, full_at: float) -> None:
        for name in names:
            self.acquire(name).messages = full_at
            self.release(name)

    @property
    def idle(self) -> int:
        return len(SHARED[self._kind](self.rates))


@shared
def test_bucket_of_idle_key_is_kept(kind: str) -> None:
    keyed = Keyed(kind, max_idle=10)
    keyed.keep("one", full_at=5.0)
    assert keyed.acquire("one").messages == 5.0


@shared
def test_bucket_in_use_is_never_evicted(kind: str) -> None:
    keyed = Keyed(kind, max_idle=1)
    used = keyed.acquire("one")
    keyed.keep("two", "three", "four", full_at=1.0)
    keyed.rates.evict_full(100.0, 10)
    assert keyed.acquire("one") is used
    assert keyed.idle == 0


@shared
def test_idle_key_above_the_maximum_evicts_the_longest_idle(kind: str) -> None:
    keyed = Keyed(kind, max_idle=2)
    keyed.keep("one", "two", "three", full_at=5.0)
    assert keyed.idle == 2
    assert keyed.acquire("one").messages == 0.0, "idle for longest, so it is evicted"
    assert keyed.acquire("three").messages == 5.0


@shared
def test_idle_key_is_evicted_once_both_buckets_are_full(kind: str) -> None:
    keyed = Keyed(kind, max_idle=10)
    keyed.acquire("one").subscribes = 1.0
    keyed.release("one")
    keyed.rates.evict_full(0.5, 10)
    assert keyed.idle == 1
    keyed.rates.evict_full(1.0, 10)
    assert keyed.idle == 0


@shared
def test_idle_key_with_new_buckets_evicts_no_other(kind: str) -> None:
    keyed = Keyed(kind, max_idle=1)
    keyed.keep("one", full_at=5.0)
    keyed.keep("two", full_at=0.0)
    assert keyed.acquire("one").messages == 5.0


@scopes
def test_reset_of_full_buckets_changes_no_rate(scope: str) -> None:
    """A bucket that is not full keeps its time, whoever has charged it."""
    rates, reset = (MessageRates(limited(scope, burst=3, per_second=2.0)) for _ in range(2))
    connections = [[each.register("192.0.2.1", ANN) for _ in range(2)] for each in (rates, reset)]
    for step in range(40):
        now = 100.0 + step * (0.3 if step % 5 else 1.7)
        reset.reset_full(now)
        expected, found = (
            each.acquire_subscribes(pair[step % 2], now, 1 + step % 2) is None
            for each, pair in zip((rates, reset), connections, strict=True)
        )
        assert found is expected
    rates.reset_full(1_000.0)
    assert [connection.subscribes for connection in connections[0]] == [0.0, 0.0]
    assert [connection.user and connection.user.subscribes for connection in connections[0]] == [0.0, 0.0]


def test_violation_counts_within_the_window() -> None:
    rates = MessageRates(FREE)
    ann = rates.register("192.0.2.1", ANN)
    assert [rates.is_abusive(ann, "connection", now) for now in (0.0, 5.0, 10.5, 11.0)] == [False] * 3 + [True]


def test_refusal_by_a_shared_bucket_is_a_violation_only_above_the_own_rate() -> None:
    limits = replace(FREE, connection_rate=Rate(per_second=0.001, burst=2))
    rates = MessageRates(limits)
    ann = rates.register("192.0.2.1", ANN)
    allowed = limits.connection_rate.burst + limits.rate_violations
    assert [rates.is_abusive(ann, "user", 0.0) for _ in range(allowed + 1)] == [False] * allowed + [True]
