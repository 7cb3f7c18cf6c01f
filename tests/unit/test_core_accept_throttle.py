"""The throttle: how fast a crowd comes in, and how often it has to ask. Time is the test's."""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter

import pytest

from service.core.accept_throttle import AcceptThrottle
from service.core.backoff import MAX_RETRY_AFTER
from service.core.limits import Rate

RATE = Rate(per_second=100, burst=100)


def test_acquire_allows_the_burst_then_the_rate() -> None:
    throttle = AcceptThrottle(RATE, 0.0)
    assert [throttle.acquire(0.0) for _ in range(100)] == [0.0] * 100
    assert throttle.acquire(0.0) > 0
    assert [throttle.acquire(0.5) > 0 for _ in range(51)] == [False] * 50 + [True]


def test_acquire_refused_gives_each_client_its_own_slot() -> None:
    throttle = AcceptThrottle(Rate(per_second=10, burst=1), 0.0)
    throttle.acquire(0.0)
    assert [round(throttle.acquire(0.0), 6) for _ in range(4)] == [0.1, 0.2, 0.3, 0.4]
    assert throttle.acquire(0.2, 0.5) == 0.0, "whoever comes while there is a token need not wait for the others"
    assert [round(throttle.acquire(0.2, 0.5), 6) for _ in range(3)] == [0.25, 0.3, 0.35]
    assert throttle.acquire(5.0) == 0.0
    assert round(throttle.acquire(5.0), 6) == 0.1, "the line has moved on"


def test_check_acquires_no_token() -> None:
    throttle = AcceptThrottle(Rate(per_second=1, burst=2), 0.0)
    assert [throttle.check(0.0) for _ in range(10)] == [0.0] * 10
    assert [throttle.acquire(0.0), throttle.acquire(0.0)] == [0.0, 0.0]
    assert throttle.check(0.0) == 1.0
    assert throttle.check(1.0) == 0.0


def test_refund_returns_one_token_at_most() -> None:
    throttle = AcceptThrottle(Rate(per_second=1, burst=1), 0.0)
    assert throttle.acquire(0.0) == 0.0
    throttle.refund()
    throttle.refund()
    assert throttle.acquire(0.0) == 0.0
    assert throttle.acquire(0.0) > 0.0


def test_set_rate_applies_at_once() -> None:
    throttle = AcceptThrottle(Rate(per_second=10, burst=10), 0.0)
    throttle.set_rate(Rate(per_second=5, burst=2), 0.0)
    assert [throttle.acquire(0.0) for _ in range(2)] == [0.0, 0.0], "a full burst, but of the new rate"
    assert [round(throttle.acquire(0.0), 6) for _ in range(2)] == [0.2, 0.4]
    throttle.set_rate(Rate(per_second=10, burst=10), 1.0)
    assert [throttle.acquire(1.0) for _ in range(2)] == [0.0, 0.0]
    assert round(throttle.acquire(1.0), 6) == 0.1


def test_acquire_refused_wait_is_bounded_and_spread() -> None:
    throttle = AcceptThrottle(RATE, 0.0)
    count = 50_000
    waits = [wait for _ in range(count) if (wait := throttle.acquire(0.0))]
    assert max(waits) <= MAX_RETRY_AFTER
    beyond = waits[int(RATE.per_second * MAX_RETRY_AFTER) :]
    seconds = Counter(int(wait) for wait in beyond)
    assert set(seconds) == set(range(int(MAX_RETRY_AFTER / 2), int(MAX_RETRY_AFTER)))
    assert max(seconds.values()) <= 1.01 * len(beyond) / (MAX_RETRY_AFTER / 2)


def test_acquire_refused_at_a_slow_rate_names_a_wait() -> None:
    throttle = AcceptThrottle(Rate(per_second=0.001, burst=1), 0.0)
    throttle.acquire(0.0)
    assert MAX_RETRY_AFTER / 2 <= throttle.acquire(0.0) <= MAX_RETRY_AFTER


def storm(*, browsers: bool, jitter: float, crowd: int = 3_000) -> tuple[list[float], int]:
    """A crowd that comes within half a second and heeds the whole seconds that it is told: when each came in, and how often
    somebody asked. A browser's client asks by a plain request what an upgrade's refusal meant."""
    dice = random.Random(7)
    throttle = AcceptThrottle(RATE, 0.0)
    share = 0.5 if browsers else 1.0
    coming = [(dice.uniform(0.0, 0.5), one, True) for one in range(crowd)]
    heapq.heapify(coming)
    entered: list[float] = []
    asked = 0
    while coming:
        now, one, upgrades = heapq.heappop(coming)
        asked += upgrades
        wait = throttle.acquire(now, share) if upgrades else throttle.check(now, share)
        if upgrades and not wait:
            entered.append(now)
        elif upgrades and browsers:
            heapq.heappush(coming, (now + dice.uniform(0.01, 0.05), one, False))
        else:  # a plain request that finds a place is told to try again, which clients do after a moment
            told = max(1, math.ceil(wait)) if wait else 0
            heapq.heappush(coming, (now + told + dice.uniform(0.0, jitter or 0.001), one, True))
    return entered, asked


@pytest.mark.parametrize(("browsers", "jitter"), [(False, 0.0), (False, 1.0), (True, 1.0)])
def test_crowd_is_accepted_at_the_rate_with_few_retries(browsers: bool, jitter: float) -> None:
    crowd = 3_000
    entered, asked = storm(browsers=browsers, jitter=jitter, crowd=crowd)
    best = (crowd - RATE.burst) / RATE.per_second
    assert max(entered) <= 1.25 * best + 2.0, "the node was hardly ever waiting for them"
    assert max(Counter(int(at) for at in entered).values()) <= RATE.per_second + RATE.burst
    assert asked <= 3 * crowd


def test_crowd_with_equal_waits_retries_far_more() -> None:
    """What the line is for: told the same second, nearly all come in vain again and again."""
    entered, asked = storm(browsers=False, jitter=1.0)
    throttle, waiting, naive, second = AcceptThrottle(RATE, 0.0), 3_000, 0, 0
    while waiting:
        naive += waiting
        waiting -= sum(not throttle.acquire(float(second)) for _ in range(waiting))
        second += 1
    assert naive > 5 * asked
    assert len(entered) == 3_000
