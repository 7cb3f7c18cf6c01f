"""Buckets that connections share: for how long they are remembered, and which connection is at fault."""

from __future__ import annotations

import pytest

from service.core.limits import Limits, Rate, take_all
from service.realtime.rates import ConnectionRates, KeyedRates, SharedRates

ONCE = Rate(per_second=1, burst=1)
LIMITS = Limits(connection_rate=Rate(per_second=0.001, burst=2), rate_violations=2)


def keyed(tracked: int = 10) -> KeyedRates:
    return KeyedRates(ONCE, ONCE, tracked)


def test_connections_of_one_key_share_buckets_and_others_do_not() -> None:
    rates = keyed()
    first, second, other = rates.acquire("ann", 0.0), rates.acquire("ann", 0.0), rates.acquire("ben", 0.0)
    assert first is second
    assert first is not other
    assert first.messages.take(0.0) == 0.0
    assert first.subscribes.take(0.0) == 0.0, "messages and subscribes have buckets of their own"
    assert second.messages.take(0.0) > 0.0


def test_what_was_taken_is_remembered_when_the_last_connection_is_gone() -> None:
    rates = keyed()
    rates.acquire("ann", 0.0).messages.take(0.0)
    rates.release("ann")
    assert rates.acquire("ann", 0.0).messages.take(0.0) > 0.0


def test_buckets_in_use_are_never_forgotten() -> None:
    rates = keyed(tracked=1)
    used = rates.acquire("ann", 0.0)
    for name in ("ben", "cid", "dan"):
        rates.acquire(name, 0.0).messages.take(0.0)
        rates.release(name)
    rates.forget_full(100.0, 10)
    assert rates.acquire("ann", 100.0) is used
    assert len(rates) == 1


def test_no_more_than_tracked_idle_keys_are_remembered() -> None:
    rates = keyed(tracked=2)
    for name in ("ann", "ben", "cid"):
        rates.acquire(name, 0.0).messages.take(0.0)
        rates.release(name)
    assert len(rates) == 2
    assert rates.acquire("ann", 0.0).messages.take(0.0) == 0.0, "idle for longest, so it is forgotten"
    assert rates.acquire("cid", 0.0).messages.take(0.0) > 0.0


def test_idle_keys_are_forgotten_once_both_buckets_are_full() -> None:
    rates = keyed()
    rates.acquire("ann", 0.0).subscribes.take(0.0)
    rates.release("ann")
    rates.forget_full(0.5, 10)
    assert len(rates) == 1
    rates.forget_full(1.0, 10)
    assert len(rates) == 0


def shared() -> SharedRates:
    return SharedRates(ONCE, ONCE, 0.0)


@pytest.mark.parametrize(
    ("count", "scopes"), [(3, ("connection", "user", "ip", "tenant")), (2, ("connection", "ip", "tenant"))]
)
def test_scope_names_whose_bucket_is_short(count: int, scopes: tuple[str, ...]) -> None:
    rates = ConnectionRates(LIMITS, [shared() for _ in range(count)], 0.0)
    for kind in (rates.messages, rates.subscribes):
        assert tuple(rates.scope(bucket) for bucket in kind) == scopes


def test_frames_above_its_own_rate_are_violations_for_as_long_as_the_window() -> None:
    rates = ConnectionRates(LIMITS, [], 0.0)
    assert [rates.is_abusive("connection", LIMITS, now) for now in (0.0, 5.0, 10.5, 11.0)] == [False] * 3 + [True]


def test_refusals_for_what_others_use_up_count_only_above_its_own_rate() -> None:
    rates = ConnectionRates(LIMITS, [shared(), shared(), shared()], 0.0)
    burst, violations = LIMITS.connection_rate.burst, LIMITS.rate_violations
    verdicts = [rates.is_abusive("user", LIMITS, 0.0) for _ in range(burst + violations + 1)]
    assert verdicts == [False] * (burst + violations) + [True]


def test_a_message_that_a_shared_bucket_refuses_costs_the_connection_nothing() -> None:
    poor = shared()
    rates = ConnectionRates(LIMITS, [shared(), poor, shared()], 0.0)
    poor.messages.take(0.0)
    for _ in range(10):
        assert take_all(rates.messages, 0.0) is poor.messages
    assert rates.messages[0].is_full(0.0)
