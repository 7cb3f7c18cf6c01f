"""The estimate of recent keys: how exact it is, and when keys leave the window."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.recent_estimate import RecentEstimate
from tests.support.clock import FakeClock

WINDOW = 120.0
PRECISION = WINDOW / 100


@pytest.mark.parametrize("keys", [1, 100, 1_000, 15_000, 40_000])
def test_estimate_is_precise_to_two_percent(keys: int) -> None:
    estimate = RecentEstimate(FakeClock(), WINDOW, 15_000)
    for _ in range(2):
        for number in range(keys):
            estimate.add(hash(f"user-{number}"))
    assert len(estimate) == pytest.approx(keys, rel=0.02, abs=3)


def test_estimate_of_far_too_many_keys_is_at_least_the_maximum() -> None:
    estimate = RecentEstimate(FakeClock(), WINDOW, 100)
    for number in range(20_000):
        estimate.add(hash(f"user-{number}"))
    assert len(estimate) > 100


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 0.4, 7.0, 31.0, 33.0, 61.0, 121.0, 151.0, 1_000.0]), st.integers(0, 20)),
        max_size=60,
    )
)
def test_key_counts_while_its_last_addition_is_in_the_window(steps: list[tuple[float, int]]) -> None:
    clock = FakeClock()
    estimate = RecentEstimate(clock, WINDOW, 1_000)
    added: dict[int, float] = {}
    for wait, key in steps:
        clock.advance(wait)
        if key:  # else only time passes
            estimate.add(key)
            added[key] = clock.monotonic()
    ages = [clock.monotonic() - at for at in added.values()]
    at_least = sum(age < WINDOW - PRECISION for age in ages)
    at_most = sum(age <= WINDOW for age in ages)
    assert at_least <= len(estimate) <= at_most
