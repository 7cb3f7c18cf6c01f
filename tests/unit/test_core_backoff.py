"""Waits before retries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.core.backoff import Backoff, jittered


@given(st.floats(0.1, 60))
def test_jittered_is_between_once_and_twice(seconds: float) -> None:
    assert seconds - 0.001 <= jittered(seconds) <= 2 * seconds + 0.001


def test_backoff_doubles_up_to_its_maximum_and_starts_again_after_reset() -> None:
    backoff = Backoff(0.1, 0.4)
    for wait in (0.1, 0.2, 0.4, 0.4):
        assert wait / 2 <= backoff.next() <= wait
    backoff.reset()
    assert backoff.next() <= 0.1
