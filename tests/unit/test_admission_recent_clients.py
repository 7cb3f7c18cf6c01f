"""How many different clients are behind connects, closes and slow consumers."""

from __future__ import annotations

import pytest

from service.adapters.memory.quota import MemoryQuota
from service.core.identity import Identity, anonymous
from service.core.limits import Limits, Rollout
from service.core.recent_keys import RecentKeys
from service.realtime.admission.admission import Admission
from service.realtime.admission.message_rates import MessageRates
from service.realtime.admission.quota import ConnectionQuota
from service.realtime.admission.recent_clients import CLOSE_WINDOW, CONNECT_WINDOW, RecentClients
from service.realtime.admission.slots import MIN_PROXY_CONNECTIONS as MANY
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock

HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"
ANN, BEN, NOBODY = Identity("red", "ann"), Identity("red", "ben"), anonymous("red")


class Stage:
    """The recent clients of a node, and what it exports of them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics()
        limits = Limits(connections_per_user=1_000)
        rates = MessageRates(limits)
        caps = ConnectionQuota(MemoryQuota(), limits, rates, Runtime.create(self.clock, self.metrics))
        self.admission = Admission(limits, Rollout(), rates, caps, self.clock, self.metrics)
        self.clients = RecentClients(self.admission.slots, limits.connections, self.clock, self.metrics)

    def value(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(f"tidewire_recent_{name}_clients")
        assert value is not None
        return value


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_client_that_reconnects_in_a_loop_counts_once(stage: Stage) -> None:
    for _ in range(600):
        stage.clients.record_connect(HERE, ANN)
        stage.clients.record_slow_consumer(HERE, ANN)
        stage.clients.record_close(HERE, ANN, 1006)
        stage.clock.advance(1.0)
    assert [stage.value(name) for name in ("connect", "close", "abnormal_close", "slow")] == [1, 1, 1, 1]


def test_users_at_one_address_and_one_user_at_two_addresses_are_different_clients(stage: Stage) -> None:
    for network, identity in ((HERE, ANN), (HERE, BEN), (ELSEWHERE, ANN), (HERE, Identity("blue", "ann"))):
        stage.clients.record_connect(network, identity)
    assert stage.value("connect") == 4


def test_anonymous_connections_of_an_address_are_one_client(stage: Stage) -> None:
    for network in (HERE, HERE, ELSEWHERE):
        stage.clients.record_connect(network, NOBODY)
        stage.clients.record_close(network, None, 4408)
    assert stage.value("connect") == stage.value("close") == 2


@pytest.mark.parametrize(
    ("code", "abnormal"),
    [(1000, 0), (1001, 0), (1012, 0), (4401, 0), (4450, 0), (1006, 1), (1011, 1), (1013, 1), (4408, 1)],
)
def test_abnormal_close_is_recognised_by_its_code(stage: Stage, code: int, abnormal: int) -> None:
    stage.clients.record_close(HERE, ANN, code)
    assert (stage.value("close"), stage.value("abnormal_close")) == (1, abnormal)


def test_clients_are_evicted_after_their_window(stage: Stage) -> None:
    stage.clients.record_connect(HERE, ANN)
    stage.clients.record_close(HERE, ANN, 1006)
    stage.clients.record_slow_consumer(HERE, ANN)
    stage.clock.advance(CONNECT_WINDOW + 1)
    assert (stage.value("connect"), stage.value("close")) == (0, 1)
    stage.clock.advance(CLOSE_WINDOW - CONNECT_WINDOW)
    assert [stage.value(name) for name in ("close", "abnormal_close", "slow")] == [0, 0, 0]


@pytest.mark.parametrize("identity", [NOBODY, ANN], ids=["anonymous", "one user"])
async def test_connections_of_a_shared_client_count_one_by_one(stage: Stage, identity: Identity) -> None:
    """They come through a proxy that `proxy.hops` leaves out. They leave before they come back, so it must be remembered."""
    seats = [stage.admission.slots.acquire(HERE) for _ in range(MANY)]
    for slot in seats:
        slot.identify(identity)
    for slot in seats:
        stage.clients.record_close(HERE, identity, 1006)
        slot.release()
    for _ in range(MANY):
        stage.clients.record_connect(HERE, identity)
    assert [stage.value(name) for name in ("abnormal_close", "connect")] == pytest.approx([MANY, MANY], abs=3)
    stage.clock.advance(CLOSE_WINDOW + 1)
    for _ in range(MANY):
        stage.clients.record_connect(HERE, identity)
    assert stage.value("connect") == 1, "it has not been so many for long"


async def test_user_in_a_loop_behind_a_shared_proxy_counts_once(stage: Stage) -> None:
    for number in range(MANY):
        stage.admission.slots.acquire(HERE).identify(Identity("red", f"user-{number}"))
    for _ in range(100):
        stage.clients.record_connect(HERE, ANN)
    assert stage.value("connect") == 1


async def test_address_with_most_of_a_few_connections_is_one_client(stage: Stage) -> None:
    for _ in range(MANY - 1):
        stage.admission.slots.acquire(HERE).identify(NOBODY)
        stage.clients.record_connect(HERE, NOBODY)
    assert stage.value("connect") == 1


def test_recent_keys_evict_the_oldest_above_the_maximum() -> None:
    clock = FakeClock()
    keys: RecentKeys[int] = RecentKeys(clock, 60.0, 10)
    for number in range(25):
        keys.add(number)
        clock.advance(1.0)
    assert len(keys) == 10
    clock.advance(50.0)  # 24 was added 51 s ago, 15 was added 60 s ago
    assert len(keys) == 10
    keys.add(15)
    clock.advance(1.5)
    assert len(keys) == 9, "16 is too old; 15 was added again"
