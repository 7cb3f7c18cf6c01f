"""Token buckets, one or one a key."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.core.backoff import MAX_RETRY_AFTER
from service.core.limits import Rate
from service.core.token_bucket import KeyedBuckets, TokenBucket

NEGLIGIBLE = 1e-6
"""What floating point may add up to."""

rates = st.builds(Rate, per_second=st.floats(0.01, 10_000), burst=st.integers(1, 1_000))
waits = st.floats(0, 100)


@given(rate=rates, steps=st.lists(st.tuples(waits, st.integers(1, 5)), max_size=60))
def test_bucket_never_exceeds_rate_and_burst(rate: Rate, steps: list[tuple[float, int]]) -> None:
    now = 1000.0
    bucket = TokenBucket(rate, now)
    taken: list[tuple[float, int]] = []
    for wait, cost in steps:
        now += wait
        if bucket.acquire(now, cost) == 0.0:
            taken.append((now, cost))
    for first, (start, _) in enumerate(taken):
        total = 0
        for at, cost in taken[first:]:
            total += cost
            assert total <= rate.burst + (at - start) * rate.per_second + NEGLIGIBLE * (1 + total)


@given(rate=rates, cost=st.integers(1, 1_000))
def test_full_bucket_allows_the_burst(rate: Rate, cost: int) -> None:
    bucket = TokenBucket(rate, 0.0)
    if cost <= rate.burst:
        assert bucket.acquire(0.0, cost) == 0.0
        assert sum(bucket.acquire(0.0) == 0.0 for _ in range(1_001)) == rate.burst - cost
    else:
        assert bucket.acquire(0.0, cost) == inf
        assert bucket.acquire(0.0, rate.burst) == 0.0


@given(rate=rates, spent=st.integers(0, 1_000), cost=st.integers(1, 1_000), early=st.floats(0, 0.99))
@example(rate=Rate(per_second=20, burst=100), spent=100, cost=1, early=0.5)
def test_acquire_returns_the_exact_wait(rate: Rate, spent: int, cost: int, early: float) -> None:
    bucket, other = TokenBucket(rate, 0.0), TokenBucket(rate, 0.0)
    for each in (bucket, other):
        each.acquire(0.0, min(spent, rate.burst))
    wait = bucket.acquire(0.0, cost)
    if wait == inf:
        assert cost > rate.burst
        return
    if wait:
        assert other.acquire(wait * early, cost) > 0.0
        assert bucket.acquire(wait + NEGLIGIBLE * (1 + wait), cost) == 0.0


@given(rate=rates, tries=st.integers(1, 50))
def test_acquire_refused_costs_nothing(rate: Rate, tries: int) -> None:
    bucket = TokenBucket(rate, 0.0)
    bucket.acquire(0.0, rate.burst)
    waits = [bucket.acquire(0.0) for _ in range(tries)]
    assert waits == [1.0 / rate.per_second] * tries


def test_unused_tokens_are_capped_at_the_burst() -> None:
    bucket = TokenBucket(Rate(per_second=10, burst=5), 0.0)
    assert [bucket.acquire(1_000_000.0) == 0.0 for _ in range(6)] == [True] * 5 + [False]


@given(rate=rates, refused=st.integers(1, 60))
def test_schedule_retry_gives_later_times_up_to_a_full_bucket(rate: Rate, refused: int) -> None:
    bucket = TokenBucket(rate, 0.0)
    bucket.acquire(0.0, rate.burst)
    soonest, longest = 1.0 / rate.per_second, min(MAX_RETRY_AFTER, rate.burst / rate.per_second)
    for number, told in enumerate([bucket.schedule_retry(0.0) for _ in range(refused)], 1):
        place = number * soonest
        if place <= longest * (1 - NEGLIGIBLE):
            assert told == pytest.approx(place)
        else:
            assert soonest * (1 - NEGLIGIBLE) <= told <= max(soonest, longest) * (1 + NEGLIGIBLE)


def test_schedule_retry_advances_with_time() -> None:
    bucket = TokenBucket(Rate(per_second=1, burst=10), 0.0)
    bucket.acquire(0.0, 10)
    assert [bucket.schedule_retry(0.0) for _ in range(3)] == [1.0, 2.0, 3.0]
    assert bucket.schedule_retry(2.0) == 2.0
    assert bucket.acquire(9.0) == 0.0, "nothing is reserved"


def test_schedule_retry_of_several_waits_for_all_tokens() -> None:
    bucket = TokenBucket(Rate(per_second=1, burst=10), 0.0)
    bucket.acquire(0.0, 10)
    assert [bucket.schedule_retry(0.0, 4), bucket.schedule_retry(0.0, 4)] == [4.0, 8.0]


def test_charge_below_zero_delays_later_callers() -> None:
    bucket = TokenBucket(Rate(per_second=1, burst=2), 0.0)
    bucket.charge(5)
    assert bucket.acquire(0.0) == 4.0
    assert bucket.acquire(4.0) == 0.0


def test_set_rate_caps_tokens_at_the_new_burst() -> None:
    bucket = TokenBucket(Rate(per_second=1, burst=10), 0.0)
    bucket.set_rate(Rate(per_second=2, burst=3), 0.0)
    assert [bucket.acquire(0.0) == 0.0 for _ in range(4)] == [True] * 3 + [False]
    bucket.set_rate(Rate(per_second=10, burst=10), 1.0)
    assert [bucket.acquire(1.0) == 0.0 for _ in range(3)] == [True] * 2 + [False], "what was earned at the old rate"


def test_keyed_buckets_are_separate() -> None:
    buckets = KeyedBuckets(Rate(per_second=1, burst=1), max_keys=10)
    assert buckets.acquire("a", 0.0) == 0.0
    assert buckets.acquire("a", 0.0) == 1.0
    assert buckets.acquire(("b", 1), 0.0) == 0.0
    assert buckets.acquire("a", 1.0) == 0.0
    assert len(buckets) == 2


@given(most=st.integers(1, 5), keys=st.lists(st.integers(0, 20), max_size=100))
def test_keyed_buckets_evict_the_longest_idle(most: int, keys: list[int]) -> None:
    buckets = KeyedBuckets(Rate(per_second=0.01, burst=1), most)
    remembered: list[int] = []
    for key in keys:
        known = key in remembered
        if known:
            remembered.remove(key)
        remembered = [*remembered, key][-most:]
        assert (buckets.acquire(key, 0.0) > 0.0) is known  # a forgotten key starts with a full bucket
        assert len(buckets) == len(remembered)


def test_evict_full_changes_no_result() -> None:
    buckets = KeyedBuckets(Rate(per_second=1, burst=2), max_keys=10)
    for key in "abc":
        buckets.acquire(key, 0.0)
    buckets.acquire("b", 0.0)
    buckets.evict_full(0.5, max_evictions=10)
    assert len(buckets) == 3
    buckets.evict_full(1.0, max_evictions=1)
    assert len(buckets) == 2
    buckets.evict_full(1.0, max_evictions=10)
    assert len(buckets) == 1, "c is full; b, which comes behind it, is not"
    assert buckets.acquire("b", 1.0) == 0.0
    assert buckets.acquire("b", 1.0) == 1.0
    buckets.evict_full(3.0, max_evictions=10)
    assert len(buckets) == 0
