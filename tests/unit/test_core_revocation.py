"""Which tokens are good no more."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.identity import Identity, anonymous, backend
from service.core.revocation import Revocation, RevocationTable, Target

ANN = Identity("acme", "ann", issued_at=100.0, token_id="t")


def of_user(before: float, until: float = 1000.0, user: str = "ann", tenant: str = "acme") -> Revocation:
    return Revocation(Target.USER, tenant, user, until, before)


def of_token(id: str, until: float = 1000.0, tenant: str = "acme") -> Revocation:
    return Revocation(Target.TOKEN, tenant, id, until)


def table(*revocations: Revocation, most: int = 10) -> RevocationTable:
    made = RevocationTable(most)
    for revocation in revocations:
        made.add(revocation)
    return made


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
def test_whom_a_revocation_concerns(revocation: Revocation, identity: Identity, revoked: bool) -> None:
    assert table(revocation).find(identity) == (revocation if revoked else None)


def test_a_token_is_looked_for_by_both_its_user_and_its_id() -> None:
    assert table(of_user(50.0), of_token("t")).find(ANN) == of_token("t")


def test_what_has_been_revoked_stays_so() -> None:
    known = table(of_user(200.0, 900.0), of_user(100.0, 1000.0))
    assert known.find(ANN) == of_user(200.0, 1000.0)
    assert len(known) == 1


def test_the_one_that_has_been_there_longest_is_forgotten_first() -> None:
    known = table(of_token("a"), of_token("b"), most=2)
    assert known.add(of_token("a"))  # a second time: it goes to the end
    assert not known.add(of_token("c"))
    assert [entry.name for entry in known] == ["a", "c"]


def test_what_no_living_token_can_meet_is_dropped() -> None:
    known = table(of_token("a", 10.0), of_token("b", 20.0))
    known.forget(10.0)
    assert [entry.name for entry in known] == ["b"]


REVOCATIONS = st.builds(
    Revocation,
    st.just(Target.USER),
    st.just("acme"),
    st.just("ann"),
    st.floats(0, 1000),
    st.none() | st.floats(0, 1000),
)


@given(REVOCATIONS, REVOCATIONS)
def test_two_joined_cover_both_in_either_order(one: Revocation, other: Revocation) -> None:
    joined = one.joined(other)
    assert joined.covers(one)
    assert joined.covers(other)
    assert joined == other.joined(one)
    assert one.covers(other) == (joined == one)


@given(REVOCATIONS, REVOCATIONS, st.none() | st.floats(0, 1000))
def test_one_that_covers_another_concerns_whatever_that_does(
    one: Revocation, other: Revocation, issued_at: float | None
) -> None:
    if one.covers(other) and other.concerns(issued_at):
        assert one.concerns(issued_at)
