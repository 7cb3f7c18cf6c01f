"""Whose part a refusal is, and how many addresses are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from service.adapters.memory.quota import MemoryQuota
from service.core.limits import Limits, Rollout
from service.errors import ErrorCode, ServiceError
from service.realtime.admission.admission import Admission
from service.realtime.admission.message_rates import MessageRates
from service.realtime.admission.quota import ConnectionQuota
from service.realtime.admission.refusals import MAX_ADDRESSES, WINDOW, Refusals
from service.realtime.admission.slots import MIN_PROXY_CONNECTIONS as MANY
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock

HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"


class Stage:
    """Refusals of a node, and what it exports of them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.metrics = Metrics()
        rates = MessageRates(Limits())
        caps = ConnectionQuota(MemoryQuota(), Limits(), rates, Runtime.create(self.clock, self.metrics))
        self.admission = Admission(Limits(), Rollout(), rates, caps, self.clock, self.metrics)
        self.refusals = Refusals(self.admission.slots, self.clock, self.metrics)

    def count(self, cause: str) -> float:
        return sum(
            tally.value
            for (labelled, _, _), tally in self.metrics.clients.upgrade_refusals.children.items()
            if labelled == cause
        )

    @property
    def addresses(self) -> float:
        value = self.metrics.registry.get_sample_value("tidewire_refused_addresses")
        assert value is not None
        return value


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ServiceError(ErrorCode.INVALID_TOKEN, ""), "client"),
        (ServiceError(ErrorCode.ORIGIN_REFUSED, ""), "client"),
        (ServiceError(ErrorCode.UNKNOWN_CHANNEL, ""), "client"),
        (ServiceError(ErrorCode.DEADLINE, ""), "client"),
        (ServiceError(ErrorCode.RATE_LIMITED, ""), "client"),
        (ServiceError(ErrorCode.TOO_MANY_CONNECTIONS, "", scope="connections_per_ip"), "client"),
        (ServiceError(ErrorCode.TOO_MANY_CONNECTIONS, "", scope="connections_per_user"), "client"),
        (ServiceError(ErrorCode.TOO_MANY_CONNECTIONS, "", scope="connections_per_tenant"), "service"),
        (ServiceError(ErrorCode.TOO_MANY_CONNECTIONS, "", scope="connections"), "service"),
        (ServiceError(ErrorCode.TOO_MANY_CONNECTIONS, "", scope="pending"), "service"),
        (ServiceError(ErrorCode.OVERLOADED, ""), "service"),
        (ServiceError(ErrorCode.BROKER_UNAVAILABLE, ""), "service"),
        (ServiceError(ErrorCode.INTERNAL, ""), "service"),
        (ServiceError(ErrorCode.DRAINING, ""), "draining"),
    ],
    ids=lambda value: (
        f"{value.code.code} {value.details.get('scope', '')}" if isinstance(value, ServiceError) else value
    ),
)
def test_refusal_has_the_cause_of_its_error(stage: Stage, error: ServiceError, cause: str) -> None:
    stage.refusals.count(error, "upgrade", HERE)
    assert stage.count(cause) == 1
    assert stage.addresses == (1 if cause == "client" else 0)


@pytest.mark.parametrize(
    ("taken", "cause"),
    [
        (lambda number: HERE, "service"),
        (lambda number: HERE if number % 3 else ELSEWHERE, "service"),
        (lambda number: HERE if number % 2 else ELSEWHERE, "client"),
    ],
    ids=["all from one address", "two thirds", "half"],
)
def test_limit_of_a_shared_address_has_the_cause_service(stage: Stage, taken: Callable[[int], str], cause: str) -> None:
    """It is a proxy's, and `proxy.hops` is too low: one client's limit refuses everybody."""
    for number in range(MANY):
        stage.admission.slots.acquire(taken(number))
    stage.refusals.count(ServiceError(ErrorCode.RATE_LIMITED, ""), "upgrade", HERE)
    stage.refusals.count(ServiceError(ErrorCode.TOO_MANY_CONNECTIONS, "", scope="connections_per_ip"), "upgrade", HERE)
    assert stage.count(cause) == 2
    stage.refusals.count(ServiceError(ErrorCode.INVALID_TOKEN, ""), "upgrade", HERE)
    assert stage.count("client") == (3 if cause == "client" else 1), "a bad token stays the client's"


def test_address_with_most_of_a_few_connections_is_no_proxy(stage: Stage) -> None:
    for _ in range(MANY - 1):
        stage.admission.slots.acquire(HERE)
    stage.refusals.count(ServiceError(ErrorCode.RATE_LIMITED, ""), "upgrade", HERE)
    assert stage.count("client") == 1


def test_refused_address_counts_once_until_its_window_ends(stage: Stage) -> None:
    refused = ServiceError(ErrorCode.INVALID_TOKEN, "")
    for _ in range(1_000):
        stage.refusals.count(refused, "upgrade", HERE)
    assert stage.addresses == 1
    stage.clock.advance(WINDOW / 2)
    stage.refusals.count(refused, "hello", ELSEWHERE)
    assert stage.addresses == 2
    stage.clock.advance(WINDOW / 2 + 1)
    assert stage.addresses == 1
    stage.clock.advance(WINDOW)
    assert stage.addresses == 0


def test_refused_addresses_are_bounded(stage: Stage) -> None:
    refused = ServiceError(ErrorCode.INVALID_TOKEN, "")
    for number in range(MAX_ADDRESSES + 25):
        stage.refusals.count(refused, "ticket", str(number))
    assert stage.addresses == MAX_ADDRESSES
