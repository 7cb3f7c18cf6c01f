"""When the tokens of subscriptions are looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.core.limits import Deadlines
from service.core.revocation import Revocation, RevocationTable, Target
from service.core.session import ExtendedSubscription
from service.realtime.streams.subscription_grants import SubscriptionGrants
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock

DEADLINES = Deadlines()
NOTICE, GRACE = DEADLINES.expiry_notice, DEADLINES.expiry_grace


class Watching:
    """A subscription with a token, and what becomes of it."""

    def __init__(self, grants: SubscriptionGrants, expires_at: float | None) -> None:
        self.grants = grants
        self.subscription = ExtendedSubscription(ChannelKey("acme", "room:1"), None)
        self.calls: list[int | str] = []
        self.watch(expires_at)

    def watch(self, expires_at: float | None) -> None:
        grant = Identity("acme", "ann", expires_at=expires_at)
        self.grants.watch(self.subscription, grant, self.calls.append, self.end)

    def end(self) -> None:
        self.calls.append("end")
        self.grants.discard(self.subscription)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def revoked() -> RevocationTable:
    return RevocationTable(10, 10)


@pytest.fixture
def grants(revoked: RevocationTable, clock: FakeClock) -> Iterator[SubscriptionGrants]:
    grants = SubscriptionGrants(revoked, clock, DEADLINES, Metrics())
    yield grants
    grants.close()


def test_token_is_announced_once_and_ends_after_the_grace(grants: SubscriptionGrants, clock: FakeClock) -> None:
    one = Watching(grants, clock.wall() + NOTICE + 100)
    clock.advance(99)
    assert one.calls == []
    clock.advance(1)
    assert one.calls == [NOTICE]
    clock.advance(NOTICE + GRACE - 1)
    assert one.calls == [NOTICE]
    clock.advance(1)
    assert one.calls == [NOTICE, "end"]


def test_token_that_has_expired_long_ago_ends_no_subscription_at_once(
    grants: SubscriptionGrants, clock: FakeClock
) -> None:
    one = Watching(grants, clock.wall() - GRACE - 100)
    assert one.calls == [], "the subscription is not complete yet"
    clock.advance(0)
    assert one.calls == ["end"]


def test_new_token_replaces_the_old_one(grants: SubscriptionGrants, clock: FakeClock) -> None:
    one = Watching(grants, clock.wall() + 1)
    one.watch(clock.wall() + NOTICE + GRACE + 1_000)
    clock.advance(500)
    assert one.calls == []


def test_grant_without_an_end_ends_only_by_a_revocation(
    grants: SubscriptionGrants, revoked: RevocationTable, clock: FakeClock
) -> None:
    one = Watching(grants, None)
    clock.advance(10**6)
    revoked.add(Revocation(Target.USER, "acme", "ben", 0.0, 10.0), clock.monotonic())
    grants.end_revoked()
    assert one.calls == []
    revoked.add(Revocation(Target.USER, "acme", "ann", 0.0, 10.0), clock.monotonic())
    grants.end_revoked()
    assert one.calls == ["end"]


def test_discarded_subscription_is_not_watched(grants: SubscriptionGrants, clock: FakeClock) -> None:
    one = Watching(grants, clock.wall() + 1)
    grants.discard(one.subscription)
    clock.advance(1_000)
    assert one.calls == []
