"""What the descriptors of a process are for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.descriptors import RESERVE, plan
from service.core.limits import Limits

ENOUGH = 30_000


def test_plan_with_descriptors_enough_lowers_nothing() -> None:
    planned = plan(ENOUGH, 14, Limits())
    assert (planned.connections, planned.http_connections, planned.ops_connections) == (15_000, 10_000, 32)
    assert planned.first_reserved == ENOUGH - RESERVE


@pytest.mark.parametrize(
    ("limit", "connections", "http_connections", "ops_connections"),
    [(80, 30, 16, 10), (400, 282, 40, 32), (1_024, 828, 118, 32), (4_096, 3_762, 256, 32), (16_384, 15_000, 1_306, 32)],
)
def test_plan_of_few_descriptors(limit: int, connections: int, http_connections: int, ops_connections: int) -> None:
    planned = plan(limit, 14, Limits())
    assert (planned.connections, planned.http_connections, planned.ops_connections) == (
        connections,
        http_connections,
        ops_connections,
    )


def test_plan_keeps_room_to_make_every_connection_to_a_cluster_anew() -> None:
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
