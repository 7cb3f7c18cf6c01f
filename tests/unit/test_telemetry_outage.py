"""What fails again and again is logged in a few lines, not with each try."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from service.telemetry.outage import EXPLAIN_TIMEOUT, MAX_KEYS, MAX_REASONS, LimitedLog, OutageLog, Outages
from tests.support.clock import FakeClock


def test_outage_logs_start_and_end_with_its_seconds() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic)
        outage.recovered()
        for _ in range(5):
            outage.failed(code="broker_unavailable")
            clock.advance(1.0)
        assert outage.is_on
        outage.recovered(left=0)
        outage.recovered()
    assert logs == [
        {"event": "away", "log_level": "warning", "code": "broker_unavailable"},
        {"event": "back", "log_level": "info", "seconds": 5.0, "left": 0},
    ]


def test_outage_of_several_keys_ends_with_the_last() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic)
        outage.failed("one")
        outage.failed("two")
        outage.recovered("one")
        outage.failed("two")
        clock.advance(2.0)
        outage.recovered("two")
    assert [entry["event"] for entry in logs] == ["away", "back"]
    assert logs[1]["seconds"] == 2.0


def test_long_outage_is_logged_at_growing_intervals() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic)
        for _ in range(3_600):
            outage.failed(code="broker_unavailable")
            clock.advance(1.0)
    assert [entry.get("seconds", 0.0) for entry in logs] == [0.0, 60.0, 180.0, 420.0, 900.0, 1_860.0]


def test_outage_without_reminders_is_logged_once() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic, reminds=False)
        for _ in range(3_600):
            outage.failed(reason="refused")
            clock.advance(1.0)
    assert len(logs) == 1


def test_outage_logs_each_new_reason_up_to_a_limit() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic)
        for number in range(50):
            outage.failed(reason="refused")
            outage.failed(reason="timeout")
            outage.failed(reason=f"port {number}")
    assert [entry["reason"] for entry in logs] == ["refused", "timeout", "port 0", "port 1"]
    assert len(logs) == MAX_REASONS


def test_repeated_outages_are_logged_once_a_minute_with_their_number() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic)
        for _ in range(31):
            outage.failed()
            clock.advance(1.0)
            outage.recovered()
            clock.advance(1.0)
    assert [(entry["event"], entry.get("outages_before")) for entry in logs] == [
        ("away", None),
        ("back", None),
        ("away", 29),
        ("back", None),
    ]


def test_outage_soon_after_another_is_logged_if_it_lasts() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic)
        outage.failed()
        clock.advance(1.0)
        outage.recovered()
        for _ in range(100):
            outage.failed()
            clock.advance(1.0)
        outage.recovered()
    assert [(entry["event"], entry.get("seconds")) for entry in logs] == [
        ("away", None),
        ("back", 1.0),
        ("away", 59.0),
        ("back", 100.0),
    ]


def test_failure_during_a_broker_outage_is_not_logged() -> None:
    clock, outages = FakeClock(), Outages()
    with capture_logs() as logs:
        outage = outages.log(structlog.get_logger("test"), "away", "back", clock.monotonic)
        for second in range(300):
            outage.failed()
            clock.advance(1.0)
            if second == 2:
                outages.broker_lost()
        outages.broker_recovered(clock.monotonic())
        for _ in range(2):
            outage.failed()
            clock.advance(1.0)
        outage.recovered()
    assert logs == []


def test_unexplained_failure_is_logged_after_the_timeout() -> None:
    clock, outages = FakeClock(), Outages()
    outages.broker_lost()
    outages.broker_recovered(clock.monotonic())
    with capture_logs() as logs:
        outage = outages.log(structlog.get_logger("test"), "away", "back", clock.monotonic)
        for _ in range(8):
            outage.failed()
            clock.advance(1.0)
        outage.recovered()
    assert [(entry["event"], entry["seconds"]) for entry in logs] == [("away", EXPLAIN_TIMEOUT), ("back", 8.0)]


def test_outage_log_is_shared_by_event() -> None:
    clock, outages = FakeClock(), Outages()
    with capture_logs() as logs:
        parts = [outages.log(structlog.get_logger("test"), "away", "back", clock.monotonic) for _ in range(1_000)]
        for _ in range(10):
            for key, part in enumerate(parts):
                part.failed(key)
            clock.advance(1.0)
        for key, part in enumerate(parts):
            part.recovered(key)
    assert [entry["event"] for entry in logs] == ["away", "back"]


def test_limited_log_logs_each_key_once_a_minute_with_the_skipped() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        log = LimitedLog(structlog.get_logger("test"), "odd", clock.monotonic, level="error")
        for _ in range(61):
            log("one", name="one")
            log("two", name="two")
            clock.advance(1.0)
    assert [(entry["name"], entry.get("skipped"), entry["log_level"]) for entry in logs] == [
        ("one", None, "error"),
        ("two", None, "error"),
        ("one", 59, "error"),
        ("two", 59, "error"),
    ]


def test_limited_log_bounds_its_keys() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        log = LimitedLog(structlog.get_logger("test"), "odd", clock.monotonic)
        for key in range(10_000):
            log(key)
            clock.advance(0.01)
    assert len(logs) <= 2 * (MAX_KEYS + 1)
