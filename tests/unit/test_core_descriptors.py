"""What the descriptors of a process are for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.descriptors import (
    MIN_CLIENTS,
    RESERVE,
    TooFewFilesError,
    check_limit,
    min_limit,
    plan,
    sufficient_limit,
)
from service.core.limits import Limits

ENOUGH = 30_000


def test_plan_with_enough_descriptors_lowers_nothing() -> None:
    planned = plan(ENOUGH, 14, Limits())
    assert (planned.connections, planned.http_connections, planned.ops_connections) == (15_000, 10_000, 32)
    assert planned.first_reserved == ENOUGH - RESERVE


@pytest.mark.parametrize(
    ("limit", "connections", "http_connections", "ops_connections"),
    [
        (80, 18, 16, 13),
        (200, 115, 16, 25),
        (400, 278, 39, 32),
        (1_024, 824, 117, 32),
        (4_096, 3_757, 256, 32),
        (16_384, 15_000, 1_301, 32),
    ],
)
def test_plan_with_few_descriptors_lowers_the_caps(
    limit: int, connections: int, http_connections: int, ops_connections: int
) -> None:
    planned = plan(limit, 19, Limits())
    assert (planned.connections, planned.http_connections, planned.ops_connections) == (
        connections,
        http_connections,
        ops_connections,
    )


def test_plan_reserves_enough_to_reconnect_to_a_cluster() -> None:
    assert plan(4_096, 200, Limits()).reserve == 400


@given(limit=st.integers(64, 2_000_000), in_use=st.integers(8, 300), connections=st.integers(1, 200_000))
def test_plan_fits_the_limit(limit: int, in_use: int, connections: int) -> None:
    limits = Limits(connections=connections)
    planned = plan(limit, in_use, limits)
    assert 1 <= planned.connections <= connections
    assert 1 <= planned.http_connections <= limits.http_connections
    assert 1 <= planned.ops_connections <= limits.ops_connections
    assert planned.ops_connections < planned.reserve
    if in_use * 2 < limit:
        assert in_use + planned.connections + planned.http_connections + planned.reserve <= limit


@given(in_use=st.integers(8, 1_000), connections=st.integers(1, 200_000))
def test_plan_at_the_minimum_limit_can_reopen_everything(in_use: int, connections: int) -> None:
    planned = plan(min_limit(in_use), in_use, Limits(connections=connections))
    assert planned.reserve > in_use
    assert planned.client_descriptors >= MIN_CLIENTS


@given(in_use=st.integers(8, 1_000), connections=st.integers(1, 200_000))
def test_sufficient_limit_lowers_nothing(in_use: int, connections: int) -> None:
    limits = Limits(connections=connections)
    assert plan(sufficient_limit(in_use, limits), in_use, limits).connections == connections


def test_check_limit_below_minimum_names_the_numbers() -> None:
    check_limit(float("inf"), 19, Limits())
    check_limit(min_limit(19), 19, Limits())
    with pytest.raises(
        TooFewFilesError, match=r"may open 53 files, but it needs 54 .* LimitNOFILE.* \(15000\) needs 15339"
    ):
        check_limit(min_limit(19) - 1, 19, Limits())
