"""Which tokens are good no more."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from service.core.identity import Identity, anonymous, backend
from service.core.revocation import Revocation, RevocationTable, Target

ANN = Identity("acme", "ann", issued_at=100.0, token_id="t")


def of_user(before: float, until: float = 1000.0, user: str = "ann", tenant: str = "acme") -> Revocation:
    return Revocation(Target.USER, tenant, user, until, 100.0, before)


def of_token(id: str, until: float = 1000.0, tenant: str = "acme", life: float = 100.0) -> Revocation:
    return Revocation(Target.TOKEN, tenant, id, until, life)


def table(*revocations: Revocation, most: int = 10, total: int = 100) -> RevocationTable:
    made = RevocationTable(most, total)
    for revocation in revocations:
        made.add(revocation, 0.0)
    return made


def names(known: RevocationTable, tenant: str = "acme") -> list[str]:
    return [entry.name for entry in known.of_tenant(tenant)]


@pytest.mark.parametrize(
    ("revocation", "identity", "revoked"),
    [
        (of_user(100.5), ANN, True),
        (of_user(100.0), ANN, False),
        (of_user(99.0), ANN, False),
        (of_user(1.0), replace(ANN, issued_at=None), True),
        (of_user(200.0, user="ben"), ANN, False),
        (of_user(200.0, tenant="other"), ANN, False),
        (of_user(200.0, user="t"), ANN, False),
        (of_token("t"), ANN, True),
        (of_token("t"), replace(ANN, user="ben"), True),
        (of_token("u"), ANN, False),
        (of_token("t", tenant="other"), ANN, False),
        (of_token("t"), replace(ANN, token_id=None), False),
        (of_token("ann"), ANN, False),
        (of_user(200.0, user=""), anonymous("acme"), False),
        (of_user(200.0, user=""), backend("acme"), False),
    ],
)
def test_revocation_applies_to_earlier_tokens_of_its_subject(
    revocation: Revocation, identity: Identity, revoked: bool
) -> None:
    assert table(revocation).find(identity) == (revocation if revoked else None)


def test_find_checks_user_and_token_id() -> None:
    assert table(of_user(50.0), of_token("t")).find(ANN) == of_token("t")


def test_add_merges_with_the_known_revocation() -> None:
    known = table(of_user(200.0, 900.0), of_user(100.0, 1000.0))
    assert known.find(ANN) == of_user(200.0, 1000.0)
    assert len(known) == 1


# --- bounds ---------------------------------------------------------------------------------------------------------------


def test_add_at_tenant_limit_evicts_the_oldest() -> None:
    known = table(of_token("a"), of_token("b"), most=2)
    assert known.add(of_token("a", 2000.0), 0.0)  # there is more of it: it goes to the end
    assert not known.add(of_token("c"), 0.0)
    assert names(known) == ["a", "c"]


def test_add_of_the_same_changes_nothing() -> None:
    known = table(of_token("a"), of_token("b"), most=2)
    assert known.add(of_token("a"), 50.0)
    assert names(known) == ["a", "b"]
    known.evict_expired(100.0, 5000.0)
    assert names(known) == []


def test_add_of_large_tenant_evicts_its_own() -> None:
    known = table(of_token("kept", tenant="other"), most=3)
    assert [known.add(of_token(str(number)), 0.0) for number in range(5)] == [True, True, True, False, False]
    assert (names(known), names(known, "other")) == (["2", "3", "4"], ["kept"])


def test_add_at_total_limit_evicts_from_the_largest_tenant() -> None:
    known = table(*(of_token(str(number)) for number in range(4)), of_token("x", tenant="other"), total=5)
    assert not known.add(of_token("y", tenant="other"), 0.0)
    assert (names(known), names(known, "other")) == (["1", "2", "3"], ["x", "y"])
    assert not known.add(of_token("4"), 0.0)
    assert (names(known), names(known, "other")) == (["2", "3", "4"], ["x", "y"])


TENANTS = ("a", "b", "c", "d")
ADDED = st.lists(st.tuples(st.sampled_from((*TENANTS, "a", "a", "a")), st.integers(0, 12)), max_size=120)


@given(ADDED, st.integers(1, 8), st.integers(1, 20))
def test_add_keeps_tenants_within_an_equal_share(added: list[tuple[str, int]], most: int, total: int) -> None:
    known = table(most=most, total=total)
    model: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}
    for time, (tenant, number) in enumerate(added):
        before = {one: names(known, one) for one in TENANTS}
        kept = known.add(of_token(str(number), tenant=tenant), float(time))
        after = {one: names(known, one) for one in TENANTS}
        if str(number) not in model[tenant]:
            model[tenant].append(str(number))
        gone = [(one, name) for one in TENANTS for name in model[one] if name not in after[one]]
        assert len(gone) == (not kept)
        sharing = [one for one in TENANTS if before[one] or one == tenant]
        for one, name in gone:
            assert name == model[one].pop(0), "the oldest of whoever gives way"
            if one != tenant:
                assert len(before[one]) > total // len(sharing), "a fair share is safe"
                assert len(before[one]) >= len(after[tenant])
        assert after == model
        assert str(number) in after[tenant], "what was added last is in force"
        assert all(len(held) <= most for held in after.values())
        assert len(known) == sum(map(len, after.values())) <= total
        assert set(known.tenants) == {one for one in TENANTS if after[one]}


@given(ADDED, st.integers(1, 8), st.data())
def test_add_keeps_the_newest_of_each_tenant(added: list[tuple[str, int]], most: int, data: st.DataObject) -> None:
    """As long as there is room for all, each tenant holds exactly what it would hold if it were alone."""
    known, alone = table(most=most, total=most * len(TENANTS)), {one: table(most=most) for one in TENANTS}
    for tenant, number in added:
        for each in (known, alone[tenant]):
            each.add(of_token(str(number), tenant=tenant), 0.0)
        assert {one: names(known, one) for one in TENANTS} == {one: names(alone[one], one) for one in TENANTS}


# --- time -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("monotonic", "wall", "held"),
    [
        (109.0, 1001.0, True),  # its time is not over
        (109.0, 90_000.0, True),  # the wall clock is a day ahead
        (110.0, 1000.0, False),
        (110.0, 90_000.0, False),
        (110.0, 999.0, True),  # the wall clock is behind: tokens that have expired are still taken here
        (209.0, 999.0, True),
        (210.0, 999.0, False),  # … but not for ever: until may be what is wrong
    ],
)
def test_evict_expired_removes_what_no_token_can_meet(monotonic: float, wall: float, held: bool) -> None:
    known = table()
    known.add(of_token("a", until=1000.0, life=100.0), 10.0)
    known.evict_expired(monotonic, wall)
    assert (names(known) == ["a"], len(known)) == (held, int(held))


def test_evict_expired_skips_one_that_stays() -> None:
    known = table(of_token("a", until=5000.0), of_token("b", until=900.0), of_token("c", tenant="other"))
    known.evict_expired(100.0, 1000.0)
    assert (names(known), names(known, "other")) == (["a"], [])


def test_add_of_a_wider_one_restarts_its_life() -> None:
    known = table(of_user(200.0, 1000.0), of_token("t", 1000.0))
    known.add(of_user(200.0, 1050.0), 50.0)
    known.evict_expired(149.0, 2000.0)
    assert names(known) == ["ann"]
    known.evict_expired(150.0, 2000.0)
    assert len(known) == 0


CLOCKS = st.lists(st.tuples(st.floats(0, 30), st.floats(-100_000, 100_000)), max_size=30)


@given(CLOCKS, st.floats(-100_000, 100_000))
def test_evict_expired_with_any_wall_clock_is_neither_early_nor_never(
    steps: list[tuple[float, float]], until: float
) -> None:
    known = table()
    known.add(of_token("a", until, life=100.0), 0.0)
    now = 0.0
    for passed, wall in steps:
        now += passed
        known.evict_expired(now, wall)
        if now < 100.0:
            assert len(known) == 1
        if now >= 200.0:
            assert len(known) == 0


# --- joining --------------------------------------------------------------------------------------------------------------


REVOCATIONS = st.builds(
    Revocation,
    st.just(Target.USER),
    st.just("acme"),
    st.just("ann"),
    st.floats(0, 1000),
    st.floats(0, 1000),
    st.none() | st.floats(0, 1000),
)


@given(REVOCATIONS, REVOCATIONS)
def test_merged_covers_both_in_either_order(one: Revocation, other: Revocation) -> None:
    joined = one.merged(other)
    assert joined.covers(one)
    assert joined.covers(other)
    assert joined == other.merged(one)
    assert one.covers(other) == (joined == one)


@given(REVOCATIONS, REVOCATIONS, st.none() | st.floats(0, 1000))
def test_covers_implies_applies_to(one: Revocation, other: Revocation, issued_at: float | None) -> None:
    if one.covers(other) and other.applies_to(issued_at):
        assert one.applies_to(issued_at)


@pytest.mark.parametrize(("newer", "older", "merged"), [("b", "a", "b"), ("", "a", "a"), ("b", "", "b")])
def test_merged_has_the_newest_reason_that_was_given(newer: str, older: str, merged: str) -> None:
    one, other = (dataclasses.replace(of_user(200.0), reason=reason) for reason in (newer, older))
    assert one.merged(other).reason == merged
