"""The store's time beside the node's own."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from service.core.clock import milliseconds
from service.realtime.cluster.store_clock import READING_TTL, StoreClock
from service.telemetry.metrics import Metrics
from tests.support.clock import START, FakeClock


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(clock: FakeClock) -> StoreClock:
    return StoreClock(clock, Metrics())


def test_clock_without_a_reading_is_the_nodes_own(clock: FakeClock, store: StoreClock) -> None:
    clock.advance(5.0)
    assert (store.wall(), store.skew, milliseconds(store)) == (START + 5, 0.0, (START + 5) * 1000)


@pytest.mark.parametrize("hours", [-1.0, 1.0])
def test_wall_time_is_the_stores_above_the_tolerated_skew(clock: FakeClock, store: StoreClock, hours: float) -> None:
    clock.jump_wall(3600 * hours)
    store.record("one", START, 0.0)
    assert store.wall() == pytest.approx(START)
    assert store.skew == pytest.approx(3600 * hours)
    clock.advance(10.0)
    assert store.wall() == pytest.approx(START + 10)


def test_wall_time_is_the_nodes_below_the_tolerated_skew(clock: FakeClock, store: StoreClock) -> None:
    store.record("one", START + 0.2, 0.0)
    assert store.wall == clock.wall


def test_half_of_the_response_time_is_added(clock: FakeClock, store: StoreClock) -> None:
    store.record("one", START + 10.0, 0.8)
    assert store.wall() == pytest.approx(START + 10.4)


def test_slow_response_is_ignored_after_the_first(clock: FakeClock, store: StoreClock) -> None:
    store.record("one", START + 10.0, 0.0)
    store.record("one", START + 500.0, 5.0)
    assert store.wall() == pytest.approx(START + 10.0)


def test_one_wrong_server_of_a_cluster_is_ignored(clock: FakeClock, store: StoreClock) -> None:
    for server, ahead in (("one", 0.0), ("two", 7200.0), ("three", 0.1)):
        store.record(server, START + ahead, 0.0)
    assert abs(store.wall() - START) < 1.0
    clock.advance(READING_TTL + 1)
    store.record("two", START + READING_TTL + 1 + 7200, 0.0)
    assert store.skew == pytest.approx(-7200), "the others have said nothing for long"


def test_skew_is_logged_at_its_start_and_end(clock: FakeClock) -> None:
    metrics = Metrics()
    store = StoreClock(clock, metrics)
    with capture_logs() as logs:
        store.record("one", START, 0.0)
        clock.jump_wall(-3600.0)
        for _ in range(3):
            clock.advance(3.0)
            store.record("one", clock.wall() + 3600.0, 0.0)
        assert b"tidewire_broker_clock_skew_seconds -3600" in metrics.render()
        clock.jump_wall(3600.0)
        store.record("one", clock.wall(), 0.0)
        store.record("one", clock.wall(), 0.0)
    assert logs == [
        {"event": "clocks_differ", "log_level": "warning", "seconds": -3600.0},
        {"event": "clocks_agree", "log_level": "info", "seconds": 6.0},
    ]
    assert b"tidewire_broker_clock_skew_seconds 0.0" in metrics.render()
