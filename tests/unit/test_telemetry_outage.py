"""Loops that try again log changes of state, not each try."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from service.telemetry.outage import OutageLog
from tests.clock import FakeClock


def test_outage_logs_its_beginning_and_its_end_with_the_seconds_between() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic)
        outage.over()
        for _ in range(5):
            outage.failed(code="broker_unavailable")
            clock.advance(1.0)
        assert outage.is_on
        outage.over(left=0)
        outage.over()
    assert logs == [
        {"event": "away", "log_level": "warning", "code": "broker_unavailable"},
        {"event": "back", "log_level": "info", "seconds": 5.0, "left": 0},
    ]


def test_outage_of_many_tries_ends_with_the_last_of_them() -> None:
    clock = FakeClock()
    with capture_logs() as logs:
        outage = OutageLog(structlog.get_logger("test"), "away", "back", clock.monotonic)
        outage.failed("one")
        outage.failed("two")
        outage.over("one")
        outage.failed("two")
        clock.advance(2.0)
        outage.over("two")
    assert [entry["event"] for entry in logs] == ["away", "back"]
    assert logs[1]["seconds"] == 2.0
