"""Reconnects: when connections are notified and closed, and how evenly clients return, on a fake clock."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any, cast

import pytest

from service.contract.gate import Gate
from service.contract.model import Contract
from service.core.identity import anonymous
from service.core.limits import Compression, Deadlines, OutboxLimits, Rollout
from service.core.session import Session
from service.protocol.close import CloseCode
from service.realtime.calls import Calls
from service.realtime.connections.connection import Connection
from service.realtime.connections.context import ConnectionContext
from service.realtime.connections.encoder import FrameEncoder
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.connections.write_scheduler import WriteScheduler
from service.realtime.lifecycle.drain import Drain
from service.realtime.lifecycle.reconnects import (
    MAX_DELAY,
    MAX_PEAK,
    MIN_DELAY,
    NOTICE,
    SLICE,
    TICK,
    ReconnectScheduler,
)
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.transport import NullTransport


class Line(NullTransport):
    """Records writes and closes with their time."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self._clock = clock
        self.write = self._write
        self.told: list[tuple[float, dict[str, Any]]] = []
        self.closed: list[tuple[float, int]] = []

    def _write(self, data: bytes) -> None:
        assert not self.closed, "nothing follows a close frame"
        self.told.append((self._clock.monotonic(), json.loads(data[data.index(b"{") :])))

    def close(self, code: int, reason: str) -> None:
        self.closed.append((self._clock.monotonic(), code))


class Stage:
    """A scheduler and its connections."""

    def __init__(self) -> None:
        self.clock, self.metrics = FakeClock(), Metrics()
        self.reconnects = ReconnectScheduler(self.clock, self.metrics)
        self._shared = ConnectionContext(
            self.clock,
            self.metrics,
            WriteScheduler(self.clock, lambda callback: self.clock.call_later(0.0, callback)),
            FrameEncoder(Compression()),
            100,
            outbox_limits=OutboxLimits(),
            on_close=lambda connection, code, reason: None,
        )
        self.lines: list[Line] = []

    def connections(self, count: int) -> list[Connection]:
        return [self._connection(str(number)) for number in range(count)]

    def _connection(self, id: str) -> Connection:
        line = Line(self.clock)
        self.lines.append(line)
        return Connection(id, line, Session(anonymous("t")), cast(Any, None), self._shared)

    def asked(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("tidewire_reconnects_asked_total", {"reason": reason}) or 0.0


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_each_connection_is_notified_once_and_then_closed(stage: Stage) -> None:
    assert stage.reconnects.schedule(stage.connections(100), over=10.0, reason="shutdown") == 100
    stage.clock.advance(10.0 + TICK)
    delays = []
    for line in stage.lines:
        ((told, message),) = line.told
        ((closed, code),) = line.closed
        assert code == 1012
        assert 0 <= closed - told <= NOTICE + TICK
        assert message["type"] == "reconnect"
        assert message["reason"] == "shutdown"
        assert MIN_DELAY <= message["after"] <= MAX_DELAY
        delays.append(message["after"])
    assert len(set(delays)) == 100
    assert stage.asked("shutdown") == 100


def test_single_connection_is_notified_before_its_close(stage: Stage) -> None:
    stage.reconnects.schedule(stage.connections(1), over=5.0, reason="age")
    start = stage.clock.monotonic()
    stage.clock.advance(6.0)
    (line,) = stage.lines
    assert line.told[0][0] - start == pytest.approx(5.0 - NOTICE, abs=2 * TICK)
    assert line.closed[0][0] - start == pytest.approx(5.0, abs=2 * TICK)


@pytest.mark.parametrize(("count", "over"), [(12_000, 60.0), (1_000, 60.0), (300, 60.0), (60, 60.0), (5_000, 15.0)])
def test_clients_return_evenly(stage: Stage, count: int, over: float) -> None:
    """Clients that wait as told, and clients that return at once."""
    stage.reconnects.schedule(stage.connections(count), over=over, reason="shutdown")
    stage.clock.advance(over + 1.0)
    planned = count / over
    closed = [line.closed[0][0] for line in stage.lines]
    heeding = [at + line.told[0][1]["after"] for at, line in zip(closed, stage.lines, strict=True)]
    for arrivals in (closed, heeding):
        assert max(arrivals) - min(arrivals) >= over - 1.0 - 1.0 / planned, "the whole window is used"
        for width in (1.0, 5.0) if planned > 10 else (5.0,):  # fewer than that a second come one by one
            peak = max(Counter(int(at / width) for at in arrivals).values())
            assert peak <= 1.2 * planned * width + 1


@pytest.mark.parametrize("still", [0.5, 3.0, 20.0])
def test_stalled_loop_does_not_close_in_a_burst(stage: Stage, still: float) -> None:
    count, over = 6_000, 60.0
    stage.reconnects.schedule(stage.connections(count), over=over, reason="shutdown")
    stage.clock.advance(10.0)
    stage.clock.stall(still)
    stage.clock.advance(2 * over)
    arrivals = [line.closed[0][0] + line.told[0][1]["after"] for line in stage.lines]
    peak = max(Counter(int(at) for at in arrivals).values())
    assert peak <= MAX_PEAK * count / over
    assert max(line.closed[0][0] for line in stage.lines) <= 1000.0 + over + still + 1.0, "and it makes good for it"


def test_scheduled_connection_is_not_scheduled_again(stage: Stage) -> None:
    connections = stage.connections(3)
    assert stage.reconnects.schedule(connections[:2], over=4.0, reason="rebalance") == 2
    assert stage.reconnects.schedule(connections, over=4.0, reason="age") == 1
    assert [stage.reconnects.is_scheduled(one) for one in connections] == [True] * 3
    assert len(stage.reconnects) == 3
    stage.clock.advance(5.0)
    assert [line.told[0][1]["reason"] for line in stage.lines] == ["rebalance", "rebalance", "age"]
    assert [len(line.told) for line in stage.lines] == [1, 1, 1]
    assert stage.reconnects.schedule(connections, over=4.0, reason="age") == 0, "they are closing"


def test_ended_connection_is_skipped(stage: Stage) -> None:
    connections = stage.connections(10)
    stage.reconnects.schedule(connections, over=20.0, reason="rebalance")
    for one in connections[::2]:
        one.connection_lost()
        stage.reconnects.remove(one)
    assert len(stage.reconnects) == 5
    connections[1].close(CloseCode.FORBIDDEN, "banned")
    stage.clock.advance(21.0)
    assert [len(line.told) for line in stage.lines] == [0, 0] + [0, 1] * 4
    assert [[code for _, code in line.closed] for line in stage.lines] == [[], [4403]] + [[], [1012]] * 4
    assert stage.asked("rebalance") == 4
    for one in connections:
        stage.reconnects.remove(one)
    assert len(stage.reconnects) == 0
    assert stage.clock.pending == 0, "nothing is left to wait for"


def test_unnotified_reconnects_are_cancelled(stage: Stage) -> None:
    connections = stage.connections(10)
    stage.reconnects.schedule(connections, over=100.0, reason="rebalance")
    stage.clock.advance(50.0 - NOTICE / 2)
    stage.reconnects.cancel_unnotified()
    stay = [one for one in connections if not stage.reconnects.is_scheduled(one)]
    assert stay == connections[5:]
    stage.clock.advance(200.0)
    assert [len(line.closed) for line in stage.lines] == [1] * 5 + [0] * 5, "who has been told, goes"
    assert stage.reconnects.schedule(stay, over=1.0, reason="shutdown") == 5
    stage.clock.advance(2.0)
    assert all(line.closed for line in stage.lines)


def test_skip_delays_closes_in_slices(stage: Stage) -> None:
    count = 3 * SLICE
    stage.reconnects.schedule(stage.connections(count), over=100.0, reason="shutdown")
    stage.clock.advance(10.0)
    gone = sum(bool(line.closed) for line in stage.lines)
    assert gone == pytest.approx(count / 10, abs=2)
    stage.reconnects.skip_delays()
    assert sum(bool(line.closed) for line in stage.lines) == gone + SLICE, "in slices: others want to be served"
    stage.clock.advance(3 * TICK)
    assert all(line.closed and line.told for line in stage.lines)


def test_scheduler_uses_one_timer(stage: Stage) -> None:
    for _ in range(5):
        stage.reconnects.schedule(stage.connections(200), over=30.0, reason="age")
        stage.clock.advance(0.5)
        assert stage.clock.pending == 1
    stage.reconnects.close()
    assert stage.clock.pending == 0


@pytest.mark.parametrize(
    ("count", "rate", "shutdown", "window"),
    [(10, 200.0, 20.0, 0.05), (300, 20.0, 20.0, 15.0), (1_500, 20.0, 120.0, 75.0), (1_500, 10.0, 120.0, 90.0)],
)
async def test_drain_keeps_its_rate_where_there_is_time(
    stage: Stage, count: int, rate: float, shutdown: float, window: float, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = ConnectionRegistry(stage.metrics)
    for connection in stage.connections(count):
        registry.add(connection)
    runtime = Runtime.create(stage.clock, stage.metrics)
    calls = Calls(Gate(Contract([])), None, 1, runtime)
    rollout, deadlines = Rollout(drain_rate=rate), Deadlines(shutdown=shutdown)
    drain = Drain(registry, stage.reconnects, calls, rollout, deadlines, stage.metrics)
    began = stage.clock.monotonic()
    draining = asyncio.create_task(drain.run())
    await asyncio.sleep(0)
    stage.clock.advance(window + 2 * TICK)
    last = max(closed for line in stage.lines for closed, _ in line.closed)
    assert last - began == pytest.approx(window, abs=2 * TICK)
    draining.cancel()
    await asyncio.gather(draining, return_exceptions=True)
    is_hurried = count / rate > window
    assert ("drain_rate_exceeded" in capsys.readouterr().out) is is_hurried
