"""The connection monitor: heartbeats and ages, on a fake clock."""

from __future__ import annotations

from typing import Any, cast

import pytest

from service.core.identity import anonymous
from service.core.limits import Compression, Deadlines, OutboxLimits, Rollout
from service.core.session import Session
from service.realtime.connections.connection import Connection
from service.realtime.connections.context import ConnectionContext
from service.realtime.connections.encoder import FrameEncoder
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.connections.write_scheduler import WriteScheduler
from service.realtime.lifecycle.monitor import MAX_AGE_SPREAD, MAX_CHECK_DELAY, ConnectionMonitor
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.transport import NullTransport

HEARTBEAT = 25.0


class Line(NullTransport):
    """Records pings and closes."""

    def __init__(self) -> None:
        super().__init__()
        self.pings = 0
        self.is_cut = False
        self.codes: list[int] = []

    def ping(self) -> None:
        self.pings += 1

    def close(self, code: int, reason: str) -> None:
        self.codes.append(code)

    def close_when_written(self) -> None: ...

    def abort(self) -> None:
        self.is_cut = True


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class Stage:
    """A monitor of one connection."""

    def __init__(self, clock: FakeClock, rollout: Rollout, id: str = "c", line: Line | None = None) -> None:
        metrics, self.line = Metrics(), line or Line()
        self.checked_at: list[float] = []
        shared = ConnectionContext(
            clock,
            metrics,
            WriteScheduler(clock, lambda call: None),
            FrameEncoder(Compression()),
            100,
            outbox_limits=OutboxLimits(),
            on_close=lambda connection, code, reason: None,
        )
        self.connection = Connection(id, self.line, Session(anonymous("t")), cast(Any, None), shared)
        self.reconnects = ReconnectScheduler(clock, metrics)
        registry = ConnectionRegistry(metrics)
        registry.add(self.connection)
        monitor = ConnectionMonitor(
            registry,
            Deadlines(heartbeat=HEARTBEAT),
            OutboxLimits(),
            clock,
            metrics,
            on_check=self.checked_at.append,
            on_keepalive=lambda connection, since: None,
            rollout=rollout,
            reconnects=self.reconnects,
        )
        monitor.start()
        monitor.track(self.connection)


@pytest.fixture
def line(clock: FakeClock) -> Line:
    """A connection that was pinged and has not answered."""
    line = Stage(clock, Rollout()).line
    while not line.pings:
        clock.advance(0.5)
    return line


def test_connection_without_pong_is_closed_after_half_a_heartbeat(line: Line, clock: FakeClock) -> None:
    clock.advance(HEARTBEAT / 2 - 1)
    assert line.codes == []
    clock.advance(2)
    assert line.codes == [4408]


def test_failed_check_of_a_connection_closes_it_and_checks_go_on(clock: FakeClock) -> None:
    class Broken(Line):
        def ping(self) -> None:
            raise OSError

    stage = Stage(clock, Rollout(), line=Broken())
    clock.advance(HEARTBEAT)
    assert stage.line.codes == [1011]
    checks = len(stage.checked_at)
    clock.advance(10)
    assert len(stage.checked_at) > checks + 10


def test_paused_connection_is_not_pinged_out(line: Line, clock: FakeClock) -> None:
    line.is_reading_paused = True
    clock.advance(HEARTBEAT * 4)
    assert line.codes == []
    line.is_reading_paused = False
    clock.advance(1)
    assert line.codes == [4408], "but as soon as it is"


def test_stalled_loop_reads_pongs_before_it_closes(line: Line, clock: FakeClock) -> None:
    clock.advance(0)
    clock.stall(HEARTBEAT + MAX_CHECK_DELAY)
    clock.advance(clock.next_due - clock.monotonic())
    assert line.codes == []
    line.has_received = True  # read in the turn in which the look was
    clock.advance(2)
    assert line.codes == []


@pytest.mark.parametrize("id", ["a", "b", "c", "d", "e"])
def test_connection_past_max_age_reconnects_at_its_own_time(clock: FakeClock, id: str) -> None:
    stage, most = Stage(clock, Rollout(max_age=1_000.0), id), 1_000.0
    begun = clock.monotonic()
    while not stage.reconnects.is_scheduled(stage.connection):
        stage.line.has_received = True
        clock.advance(0.5)
    age = clock.monotonic() - begun
    assert most / 2 <= age <= most + 1.0
    clock.advance(MAX_AGE_SPREAD + 1.0)
    assert stage.line.codes == [1012]


def test_connections_past_max_age_reconnect_over_half_of_it(clock: FakeClock) -> None:
    stages = {Stage(clock, Rollout(max_age=100.0), f"{number}") for number in range(200)}
    ages = []
    for age in range(1, 102):
        for stage in stages:
            stage.line.has_received = True
        clock.advance(1.0)
        due = {stage for stage in stages if stage.reconnects.is_scheduled(stage.connection)}
        ages += [age] * len(due)
        stages -= due
    assert not stages
    assert min(ages) >= 50
    assert 70 < sum(ages) / len(ages) < 81, "a share that changed at each check would make nearly all of them early"


def test_connection_without_max_age_stays(clock: FakeClock) -> None:
    stage = Stage(clock, Rollout())
    for _ in range(1_000):
        stage.line.has_received = True
        clock.advance(HEARTBEAT / 2)
    assert not stage.reconnects.is_scheduled(stage.connection)
    assert stage.line.codes == []
