"""The sweep: who is cut, and who must not be. Time is the test's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from service.core.identity import anonymous
from service.core.limits import Compression, Deadlines, Limits, OutboxLimits, TokenBucket
from service.core.session import Session
from service.realtime.connection import Connection
from service.realtime.frame import Press
from service.realtime.outbox import Budget
from service.realtime.roster import Roster
from service.realtime.socket import Ear
from service.realtime.surroundings import Surroundings
from service.realtime.sweep import LATE, Sweep
from service.realtime.turn import Turn
from service.telemetry.metrics import Metrics
from tests.clock import FakeClock

HEARTBEAT = 25.0


class Line:
    """Stands for a socket."""

    ear: Ear
    write: Callable[[bytes], None]
    close_code = 1006
    is_paused = False
    is_held = False
    window_bits = 0
    fd = -1

    def __init__(self) -> None:
        self.heard = True
        self.pings = 0
        self.is_cut = False
        self.write = lambda data: None

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def ping(self) -> None:
        self.pings += 1

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None:
        self.is_cut = True


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def line(clock: FakeClock) -> Line:
    """One that has been asked for a sign of life, and has not answered."""
    metrics, line = Metrics(), Line()
    shared = Surroundings(
        clock,
        metrics,
        Turn(clock, lambda call: None),
        Press(Compression()),
        100,
        limits=OutboxLimits(),
        budget=Budget(10**6),
        on_close=lambda connection, code, reason: None,
    )
    session = Session(anonymous("t"), 10)
    connection = Connection(
        "c", line, session, cast(Any, None), TokenBucket(Limits().connection_rate, clock.monotonic()), shared
    )
    roster = Roster(metrics)
    roster.add(connection)
    sweep = Sweep(roster, Deadlines(heartbeat=HEARTBEAT), OutboxLimits(), clock, metrics, tidy=lambda now: None)
    sweep.start()
    sweep.welcome(connection)
    while not line.pings:
        clock.advance(0.5)
    return line


def test_who_does_not_answer_is_cut_after_half_a_heartbeat(line: Line, clock: FakeClock) -> None:
    clock.advance(HEARTBEAT / 2 - 1)
    assert not line.is_cut
    clock.advance(2)
    assert line.is_cut


def test_who_is_not_listened_to_is_not_missed(line: Line, clock: FakeClock) -> None:
    line.is_held = True
    clock.advance(HEARTBEAT * 4)
    assert not line.is_cut
    line.is_held = False
    clock.advance(1)
    assert line.is_cut, "but as soon as it is"


def test_after_the_loop_has_stood_still_answers_are_read_before_anyone_is_cut(line: Line, clock: FakeClock) -> None:
    timers = clock._timers  # a loop that stands still fires them late, and all at once
    clock.advance(0)
    for timer in timers:
        timer.due += HEARTBEAT + LATE
    late = min(timer.due for timer in timers if not timer.cancelled)
    clock.advance(late - clock.monotonic())
    assert not line.is_cut
    line.heard = True  # read in the turn in which the look was
    clock.advance(2)
    assert not line.is_cut
