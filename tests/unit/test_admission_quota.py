"""Caps over all nodes: kept while the store answers, this node's own while it does not, and nobody counted for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from service.core.identity import Identity, anonymous
from service.core.limits import Limits, Rollout
from service.core.quota import Held, HoldChange, QuotaClaim, QuotaScope, SessionHold, SessionOrderUpdate, node_number
from service.errors import ErrorCode, ServiceError
from service.realtime.admission.admission import Admission
from service.realtime.admission.message_rates import MessageRates
from service.realtime.admission.quota import (
    MOVE_DELAY,
    RELEASE_DELAY,
    RENEWAL_INTERVAL,
    RETRY_INTERVAL,
    ConnectionQuota,
)
from service.realtime.admission.slots import ConnectionSlot, SessionSlot
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.exported import exported

ANN, BEN = Identity("acme", "ann"), Identity("acme", "ben")
OF_ACME, OF_ANN, OF_BEN = QuotaScope("acme"), QuotaScope("acme", "ann"), QuotaScope("acme", "ben")


class Store:
    """What other nodes hold stands here; what this one claimed last too."""

    is_shared = True

    def __init__(self) -> None:
        self.elsewhere: dict[QuotaScope, int] = {}
        self.claimed: dict[QuotaScope, int] = {}
        self.holds: list[SessionHold] = []
        self.holder = 0
        """The number of the node that held the sessions before."""
        self.calls = 0
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def claim(self, claims: Sequence[QuotaClaim]) -> Sequence[int]:
        self.calls += 1
        if self.away:
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")
        await self.gate.wait()
        totals = []
        for claim in claims:
            total = self.elsewhere.get(claim.scope, 0) + claim.connections
            totals.append(total)
            if claim.max_connections is None or total <= claim.max_connections:
                self.claimed[claim.scope] = claim.connections
        return totals

    async def hold_sessions(self, holds: Sequence[SessionHold]) -> Sequence[Held]:
        self.calls += 1
        if self.away:
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")
        self.holds += holds
        return [Held(1 + self.elsewhere.get(hold.scope, 0), self.holder) for hold in holds]

    async def update_session_order(self, steps: Sequence[SessionOrderUpdate]) -> Sequence[Sequence[str]]:
        raise AssertionError("nobody is replaced here")


class Stage:
    """One node's admission over a store, and its time."""

    def __init__(self, limits: Limits) -> None:
        self.clock, self.store, self.metrics = FakeClock(), Store(), Metrics()
        self.runtime = Runtime.create(self.clock, self.metrics)
        rates = MessageRates(limits)
        self.quota = ConnectionQuota(self.store, limits, rates, self.runtime)
        self.admission = Admission(limits, Rollout(), rates, self.quota, self.clock, self.metrics)
        self.quota.start()

    async def enter(self, identity: Identity) -> ConnectionSlot:
        slot = self.admission.slots.acquire("192.0.2.1")
        try:
            waiting = slot.identify(identity)
            assert waiting is not None
            await waiting
        except BaseException:
            slot.release()
            raise
        return slot

    async def refused(self, identity: Identity) -> str:
        with pytest.raises(ServiceError) as refusal:
            await self.enter(identity)
        assert refusal.value.code is ErrorCode.TOO_MANY_CONNECTIONS
        return str(refusal.value.details["scope"])

    async def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            while running := self.runtime.tasks.running:
                await asyncio.wait(running)

    @property
    def unshared(self) -> float:
        return exported(self.metrics, "caps_unshared_total")


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(Limits(connections_per_tenant=5, connections_per_user=3))
    yield stage
    stage.quota.close()
    await stage.runtime.tasks.close()
    assert stage.clock.pending == 0


async def test_cap_counts_the_connections_of_all_nodes(stage: Stage) -> None:
    stage.store.elsewhere = {OF_ACME: 3, OF_ANN: 2}
    await stage.enter(ANN)
    assert await stage.refused(ANN) == "connections_per_user"
    await stage.enter(BEN)
    assert await stage.refused(BEN) == "connections_per_tenant"
    assert await stage.refused(anonymous("acme")) == "connections_per_tenant"
    await stage.pass_time(2 * RELEASE_DELAY)
    assert stage.store.claimed == {OF_ACME: 2, OF_ANN: 1, OF_BEN: 1}


async def test_refused_connection_leaves_no_claim(stage: Stage) -> None:
    stage.store.elsewhere = {OF_ANN: 3}
    assert await stage.refused(ANN) == "connections_per_user"
    assert stage.store.claimed == {OF_ACME: 1}, "the tenant had room for it"
    await stage.pass_time(2 * RELEASE_DELAY)
    assert stage.store.claimed == {OF_ACME: 0, OF_ANN: 0}
    assert stage.quota.scopes == 0


async def test_cap_reached_on_this_node_calls_no_store(stage: Stage) -> None:
    for _ in range(3):
        await stage.enter(ANN)
    calls = stage.store.calls
    assert await stage.refused(ANN) == "connections_per_user"
    assert stage.store.calls == calls


async def test_many_releases_make_one_call_of_the_store(stage: Stage) -> None:
    seats = [await stage.enter(identity) for identity in (ANN, ANN, BEN)]
    calls = stage.store.calls
    for slot in seats:
        slot.release()
        slot.release()
    await stage.pass_time(2 * RELEASE_DELAY)
    assert stage.store.claimed == {OF_ACME: 0, OF_ANN: 0, OF_BEN: 0}
    assert stage.store.calls == calls + 1


async def test_claims_are_renewed_periodically(stage: Stage) -> None:
    await stage.enter(ANN)
    for _ in range(3):
        stage.store.claimed.clear()
        await stage.pass_time(RENEWAL_INTERVAL + 0.2)
        assert stage.store.claimed == {OF_ACME: 1, OF_ANN: 1}


async def test_caps_of_this_node_hold_while_the_store_is_away(stage: Stage) -> None:
    stage.store.elsewhere = {OF_ANN: 3}
    stage.store.away = True
    for _ in range(3):
        await stage.enter(ANN)
    assert await stage.refused(ANN) == "connections_per_user"
    assert stage.unshared == 3
    assert stage.store.calls == 1, "one waits for the store to fail, not everybody"


async def test_store_gets_all_claims_after_its_return(stage: Stage) -> None:
    stage.store.away = True
    seats = [await stage.enter(identity) for identity in (ANN, ANN, BEN)]
    await stage.pass_time(3 * RENEWAL_INTERVAL)
    seats[-1].release()
    stage.store.away = False
    await stage.pass_time(RETRY_INTERVAL + 2 * RELEASE_DELAY)
    assert stage.store.claimed == {OF_ACME: 2, OF_ANN: 2}
    stage.store.elsewhere = {OF_ANN: 1}
    assert await stage.refused(ANN) == "connections_per_user"
    assert stage.unshared == 3


async def test_connection_that_ends_during_a_claim_is_released(stage: Stage) -> None:
    stage.store.gate.clear()
    entering = asyncio.create_task(stage.enter(ANN))
    await asyncio.sleep(0)
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    stage.store.gate.set()
    await stage.pass_time(2 * RELEASE_DELAY)
    assert stage.store.claimed == {OF_ACME: 0, OF_ANN: 0}
    assert stage.quota.scopes == 0


# --- sessions of long polls -------------------------------------------------------------------------------------------


async def open_session(stage: Stage, session: str, moved: list[str], identity: Identity = ANN) -> SessionSlot:
    slot = stage.admission.slots.acquire_session("192.0.2.1", session)
    try:
        await slot.hold(identity, lambda: moved.append(session))
    except BaseException:
        slot.release()
        raise
    return slot


async def test_session_is_a_claim_of_its_own_until_it_is_released(stage: Stage) -> None:
    slot = await open_session(stage, "s", [])
    await stage.enter(ANN)
    assert stage.store.claimed == {OF_ACME: 2, OF_ANN: 1}, "the session counts beside the node's own connections"
    await stage.pass_time(RENEWAL_INTERVAL + 0.2)
    slot.release()
    slot.release()
    await stage.pass_time(2 * RELEASE_DELAY)
    assert [(hold.session, hold.change) for hold in stage.store.holds] == [
        ("s", HoldChange.TAKE),
        ("s", HoldChange.RENEW),
        ("s", HoldChange.RELEASE),
    ]
    assert stage.store.claimed == {OF_ACME: 1, OF_ANN: 1}
    assert stage.admission.slots.total == 1


async def test_new_session_is_refused_at_the_cap_of_all_nodes_and_a_moved_one_is_not(stage: Stage) -> None:
    stage.store.elsewhere = {OF_ANN: 3}
    with pytest.raises(ServiceError) as refusal:
        await open_session(stage, "s", [])
    assert refusal.value.details["scope"] == "connections_per_user"
    assert (stage.admission.slots.total, stage.quota.scopes) == (0, 0)
    stage.store.holder = node_number("another")
    stage.store.elsewhere |= {OF_ACME: 5}
    await open_session(stage, "s", [])
    await open_session(stage, "x", [], anonymous("acme"))
    assert stage.quota.count(OF_ANN) == 1


async def test_session_that_another_node_has_taken_is_reported(stage: Stage) -> None:
    moved: list[str] = []
    slot = await open_session(stage, "s", moved)
    stage.store.holder = node_number("another")
    await stage.pass_time(RENEWAL_INTERVAL + 0.2)
    assert moved == ["s"]
    slot.is_moved = True
    slot.release()
    stage.store.holds.clear()
    await stage.pass_time(2 * RELEASE_DELAY)
    assert stage.store.holds == []


async def test_moved_session_counts_for_its_tenant_once_the_other_node_has_released_it(stage: Stage) -> None:
    stage.store.holder = node_number("another")
    stage.store.elsewhere = {OF_ACME: 4}  # one of them is the session
    slot = await open_session(stage, "s", [])
    await stage.enter(BEN)
    assert stage.store.claimed == {OF_ACME: 1, OF_BEN: 1}, "the session counts at the other node"
    assert await stage.refused(BEN) == "connections_per_tenant"
    stage.store.elsewhere = {OF_ACME: 3}
    await stage.pass_time(MOVE_DELAY + 0.1)
    assert stage.store.claimed == {OF_ACME: 2, OF_BEN: 1}
    assert await stage.refused(BEN) == "connections_per_tenant"
    slot.release()
    await stage.pass_time(2 * RELEASE_DELAY)
    assert stage.store.claimed[OF_ACME] == 1


async def test_session_that_ends_while_it_moves_is_subtracted_once(stage: Stage) -> None:
    stage.store.holder = node_number("another")
    slot = await open_session(stage, "s", [])
    slot.release()
    await stage.enter(BEN)
    await stage.pass_time(MOVE_DELAY + 0.1)
    assert stage.store.claimed == {OF_ACME: 1, OF_ANN: 0, OF_BEN: 1}


async def test_flush_sends_the_releases_that_wait(stage: Stage) -> None:
    slot = await stage.enter(ANN)
    slot.release()
    await stage.quota.flush()
    assert stage.store.claimed == {OF_ACME: 0, OF_ANN: 0}


async def test_session_that_polls_from_another_address_counts_there() -> None:
    stage = Stage(Limits(connections_per_ip=1))
    slot = await open_session(stage, "s", [])
    other = stage.admission.slots.acquire("192.0.2.2")
    with pytest.raises(ServiceError):
        slot.move("192.0.2.2")
    assert slot.network == "192.0.2.1"
    other.release()
    slot.move("192.0.2.2")
    stage.admission.slots.check("192.0.2.1")
    with pytest.raises(ServiceError):
        stage.admission.slots.check("192.0.2.2")
    slot.release()
    assert (stage.admission.slots.total, stage.admission.slots.networks) == (0, 0)
    stage.quota.close()
    await stage.runtime.tasks.close()
