"""Which connections a node names to the store as come, still there and gone, and which ones it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

import pytest

from service.core.identity import Identity, anonymous
from service.core.limits import Limits
from service.core.quota import Held, QuotaClaim, QuotaScope, SessionHold, SessionOrderUpdate
from service.errors import ErrorCode, ServiceError
from service.realtime.admission import session_evictor
from service.realtime.admission.quota import RELEASE_DELAY, RENEWAL_INTERVAL
from service.realtime.admission.session_evictor import REPORT_DELAY, ReplacedSessions, SessionEvictor
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock

ANN = Identity("acme", "ann")
OF_ANN = QuotaScope("acme", "ann")


class Store:
    """Notes what it is told, and finds too many when a test says so."""

    is_shared = True

    def __init__(self) -> None:
        self.said: list[tuple[list[str], list[str], list[str]]] = []
        self.oldest: list[str] = []
        self.away = False

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        raise AssertionError("nothing is counted here")

    async def hold_sessions(self, holds: Sequence[SessionHold]) -> Sequence[Held]:
        raise AssertionError("no session is held here")

    async def update_session_order(self, steps: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        if self.away:
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")
        for step in steps:
            assert (step.scope, step.max_connections) == (OF_ANN, 2)
            self.said.append((list(step.added), list(step.renewed), list(step.removed)))
        oldest, self.oldest = self.oldest, []
        return [oldest] + [[]] * (len(steps) - 1)


class Stage:
    def __init__(self, limits: Limits) -> None:
        self.clock, self.store, self.ended = FakeClock(), Store(), list[str]()
        self.runtime = Runtime.create(self.clock, Metrics())
        self.evictor = SessionEvictor(self.store, limits, self.runtime, self.end)
        self.evictor.start()

    def end(self, scope: QuotaScope, connections: Sequence[str]) -> None:
        assert scope == OF_ANN
        self.ended += connections

    async def pass_time(self, seconds: float) -> list[tuple[list[str], list[str], list[str]]]:
        """What was said meanwhile: came, stay, went."""
        self.clock.advance(seconds)
        while running := self.runtime.tasks.running:
            await asyncio.wait(running)
        said = list(self.store.said)
        self.store.said.clear()
        return said

    async def close(self) -> None:
        self.evictor.close()
        await self.runtime.tasks.close()
        assert self.clock.pending == 0


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(Limits(connections_per_user=2, on_user_cap="replace"))
    yield stage
    await stage.close()


async def test_changes_are_reported_once_and_open_sessions_renewed(stage: Stage) -> None:
    stage.evictor.add(ANN, "a")
    stage.evictor.add(ANN, "b")
    stage.evictor.add(anonymous("acme"), "x")
    assert await stage.pass_time(RELEASE_DELAY) == [(["a", "b"], [], [])]
    stage.evictor.add(ANN, "c")
    stage.evictor.remove(ANN, "a")
    stage.evictor.remove(ANN, "a")
    assert await stage.pass_time(RELEASE_DELAY) == [(["c"], [], ["a"])]
    assert await stage.pass_time(RENEWAL_INTERVAL) == [([], ["b", "c"], [])]
    stage.evictor.remove(ANN, "b")
    stage.evictor.remove(ANN, "c")
    assert await stage.pass_time(RELEASE_DELAY) == [([], [], ["b", "c"])]
    assert await stage.pass_time(2 * RENEWAL_INTERVAL) == []


async def test_sessions_over_the_cap_are_closed(stage: Stage) -> None:
    stage.store.oldest = ["elsewhere"]
    stage.evictor.add(ANN, "a")
    await stage.pass_time(RELEASE_DELAY)
    assert stage.ended == ["elsewhere"]


async def test_failed_report_is_repeated_with_the_next_renewal(stage: Stage) -> None:
    stage.store.away = True
    stage.evictor.add(ANN, "a")
    stage.evictor.add(ANN, "b")
    assert await stage.pass_time(RELEASE_DELAY) == []
    stage.evictor.remove(ANN, "b")
    assert await stage.pass_time(RELEASE_DELAY) == []
    stage.store.away = False
    assert await stage.pass_time(RENEWAL_INTERVAL) == [(["a"], [], [])]
    assert await stage.pass_time(RENEWAL_INTERVAL) == [([], ["a"], [])]


async def test_refuse_mode_keeps_no_session_order() -> None:
    stage = Stage(Limits(connections_per_user=2))
    stage.evictor.add(ANN, "a")
    stage.evictor.remove(ANN, "a")
    assert await stage.pass_time(2 * RENEWAL_INTERVAL) == []
    assert stage.clock.pending == 0
    await stage.close()


async def test_replaced_sessions_are_ended_together_and_again_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_evictor, "MAX_REPLACED", 3)
    clock, ended, failures = FakeClock(), list[list[str]](), [ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")]
    runtime = Runtime.create(clock, Metrics())

    async def close(sessions: Mapping[str, QuotaScope]) -> None:
        if failures:
            raise failures.pop()
        ended.append(list(sessions))

    replaced = ReplacedSessions(close, runtime)
    for number in range(5):
        replaced.add(OF_ANN, [f"c-{number}"])
    for _ in range(3):
        clock.advance(REPORT_DELAY)
        while running := runtime.tasks.running:
            await asyncio.wait(running)
    assert ended == [["c-2", "c-3", "c-4"]]
    assert runtime.metrics.limits.limit_hits.labels(limit="replaced_sessions").value == 2
    assert clock.pending == 0
