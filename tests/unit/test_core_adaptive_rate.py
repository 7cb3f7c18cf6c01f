"""A rate that follows the event loop's lag. Time and lag are the test's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.adaptive_rate import MIN_RATIO, AdaptiveRate
from service.core.limits import Rate

CEILING = Rate(per_second=1_000, burst=800)
MAX_LAG = 0.1
LATE, IN_TIME = 0.2, 0.01


def adaptive() -> AdaptiveRate:
    return AdaptiveRate(CEILING, MAX_LAG, 0.0)


def test_rate_without_lag_stays_at_the_ceiling() -> None:
    rate = adaptive()
    for second in range(100):
        rate.observe(MAX_LAG, float(second))
    assert rate.rate is CEILING
    assert not rate.is_reduced


def test_rate_with_lag_halves_once_a_second() -> None:
    rate = adaptive()
    seen = []
    for quarter in range(12):
        rate.observe(LATE, quarter / 4)
        seen.append(rate.rate)
    assert seen[:4] == [Rate(500.0, 400)] * 4
    assert seen[4:8] == [Rate(250.0, 200)] * 4
    assert seen[8:] == [Rate(125.0, 100)] * 4


def test_rate_after_lag_rises_by_a_tenth_a_second() -> None:
    rate = adaptive()
    rate.observe(LATE, 0.0)
    assert rate.is_reduced
    rates = []
    for second in range(1, 8):
        rate.observe(IN_TIME, float(second))
        rates.append(rate.rate.per_second)
    assert rates == pytest.approx([600, 700, 800, 900, 1_000, 1_000, 1_000])
    assert not rate.is_reduced


def test_rate_with_lasting_lag_stays_above_zero() -> None:
    rate = AdaptiveRate(Rate(per_second=10, burst=10), MAX_LAG, 0.0)
    for second in range(1_000):
        rate.observe(LATE, float(second))
    assert rate.rate == Rate(10 * MIN_RATIO, 1)


def test_rate_after_a_stall_decreases_once() -> None:
    rate = adaptive()
    rate.observe(60.0, 60.0)
    assert rate.rate.per_second == 500
    rate.observe(IN_TIME, 120.0)
    assert rate.rate.per_second == pytest.approx(600), "of a long silence nothing is known"


@given(
    ceiling=st.builds(Rate, per_second=st.floats(0.01, 1e6), burst=st.integers(1, 10**6)),
    steps=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), max_size=100),
)
def test_rate_stays_between_minimum_and_ceiling(ceiling: Rate, steps: list[tuple[float, float]]) -> None:
    rate, now = AdaptiveRate(ceiling, MAX_LAG, 0.0), 0.0
    for wait, lag in steps:
        now += wait
        rate.observe(lag, now)
        assert MIN_RATIO * ceiling.per_second * 0.999 <= rate.rate.per_second <= ceiling.per_second
        assert 1 <= rate.rate.burst <= ceiling.burst
