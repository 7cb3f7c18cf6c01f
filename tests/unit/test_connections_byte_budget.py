"""ByteBudget.used_ratio: how near a node is to its limit."""

from __future__ import annotations

import pytest

from service.realtime.connections.byte_budget import ByteBudget


def test_used_ratio_of_a_node_without_tenants_is_zero() -> None:
    assert ByteBudget(1_000).used_ratio == 0


def test_used_ratio_is_that_of_the_node_while_tenants_are_far_from_their_shares() -> None:
    budget = ByteBudget(1_000, tenant_share=0.9)
    accounts = [budget.account(f"tenant-{number}") for number in range(4)]
    for account in accounts:
        account.add(200)
    assert budget.used_ratio == pytest.approx(0.8)


@pytest.mark.parametrize("share", [0.9, 0.5])
def test_used_ratio_is_one_when_a_tenant_has_no_capacity(share: float) -> None:
    """A single tenant reaches its share before the node reaches its limit."""
    budget = ByteBudget(1_000, tenant_share=share)
    account = budget.account("the only one")
    while account.has_capacity(1):
        assert budget.used_ratio < 1
        account.add(1)
    assert budget.used_ratio == pytest.approx(1.0)


def test_used_ratio_with_a_limit_of_zero_is_at_least_one() -> None:
    budget = ByteBudget(0)
    budget.account("one").add(10)
    assert budget.used_ratio >= 1
