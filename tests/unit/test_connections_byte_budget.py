"""How near a node is to the limit of the bytes that it holds for its peers."""

from __future__ import annotations

import pytest

from service.realtime.connections.byte_budget import ByteBudget


def test_used_ratio_of_a_node_without_tenants_is_zero() -> None:
    assert ByteBudget(1_000).used_ratio == 0


def test_used_ratio_is_the_nodes_where_tenants_are_far_from_their_parts() -> None:
    budget = ByteBudget(1_000, tenant_share=0.9)
    accounts = [budget.account(f"tenant-{number}") for number in range(4)]
    for account in accounts:
        account.add(200)
    assert budget.used_ratio == pytest.approx(0.8)


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_used_ratio_is_one_where_a_tenant_is_refused(share: float) -> None:
    """A tenant reaches its own limit before the node's: where it is the only one, nothing else would tell."""
    budget = ByteBudget(1_000, tenant_share=share)
    account = budget.account("the only one")
    while account.has_capacity(1):
        assert budget.used_ratio < 1
        account.add(1)
    assert budget.used_ratio == pytest.approx(1.0)


def test_used_ratio_of_a_node_without_a_limit_left_is_no_error() -> None:
    budget = ByteBudget(0)
    budget.account("one").add(10)
    assert budget.used_ratio >= 1
