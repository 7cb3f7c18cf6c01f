"""The subscriptions whose rights come from a token of their own. Each ends with its token."""

from __future__ import annotations

from collections.abc import Callable

from service.core.clock import Clock, Timer
from service.core.identity import Identity
from service.core.limits import Deadlines
from service.core.revocation import RevocationTable
from service.core.session import Subscription
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics

MAX_CHECK_INTERVAL = 30.0
"""Seconds between two looks at the clock by which a token expires. That clock may jump, and timers do not see it."""


class SubscriptionGrants:
    """Ends subscriptions at the expiry of their tokens, and when these are revoked. Only such a subscription has a timer."""

    def __init__(self, revoked: RevocationTable, clock: Clock, deadlines: Deadlines, metrics: Metrics) -> None:
        """`revoked`: the revocations that this node knows."""
        self._revoked = revoked
        self._clock = clock
        self._deadlines = deadlines
        self._watched: dict[Subscription, _Watched] = {}
        metrics.subscriptions.granted_subscriptions.set_function(lambda: len(self._watched))

    def check(self, grant: Identity) -> None:
        """Raises ServiceError(FORBIDDEN) if the token of a subscription is revoked.

        Call it in the same step as `watch`: a subscribe that has waited may have missed `end_revoked`.
        """
        if self._revoked.find(grant) is not None:
            raise ServiceError(
                ErrorCode.FORBIDDEN, "the rights of this subscription have been revoked", path="$.channel"
            )

    def watch(
        self, subscription: Subscription, grant: Identity, notify: Callable[[int], None], end: Callable[[], None]
    ) -> None:
        """Watches the token of a subscription, in place of an earlier one, until `discard`.

        Calls neither at once. `notify` is called once before the token expires, with the seconds that are left. `end` is
        called once after it has expired or was revoked; it must lead to `discard`.
        """
        self.discard(subscription)
        watched = self._watched[subscription] = _Watched(grant, notify, end)
        self._schedule(subscription, watched)

    def discard(self, subscription: Subscription) -> None:
        """Stops to watch a subscription. Does nothing for one that is not watched."""
        watched = self._watched.pop(subscription, None)
        if watched is not None and watched.timer is not None:
            watched.timer.cancel()

    def end_revoked(self) -> None:
        """Ends the subscriptions whose tokens are revoked."""
        for watched in [one for one in self._watched.values() if self._revoked.find(one.grant) is not None]:
            watched.end()

    def close(self) -> None:
        """Cancels the timers."""
        for subscription in tuple(self._watched):
            self.discard(subscription)

    def _schedule(self, subscription: Subscription, watched: _Watched) -> None:
        expires_at = watched.grant.expires_at
        if expires_at is None:
            return
        ttl = expires_at - self._clock.wall()
        deadlines = self._deadlines
        left = ttl + deadlines.expiry_grace if watched.is_notified else ttl - deadlines.expiry_notice
        watched.timer = self._clock.call_later(
            min(max(0.0, left), MAX_CHECK_INTERVAL), lambda: self._check(subscription, watched, expires_at)
        )

    def _check(self, subscription: Subscription, watched: _Watched, expires_at: float) -> None:
        ttl = expires_at - self._clock.wall()
        if ttl <= -self._deadlines.expiry_grace:
            watched.end()
            return
        if ttl <= self._deadlines.expiry_notice and not watched.is_notified:
            watched.is_notified = True
            watched.notify(max(0, round(ttl)))
        self._schedule(subscription, watched)


class _Watched:
    """The token of one subscription."""

    __slots__ = ("end", "grant", "is_notified", "notify", "timer")

    def __init__(self, grant: Identity, notify: Callable[[int], None], end: Callable[[], None]) -> None:
        self.grant = grant
        self.notify = notify
        self.end = end
        self.is_notified = False
        self.timer: Timer | None = None
