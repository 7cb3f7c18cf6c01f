"""Asks the backend again about subscriptions that last long, where the contract says how often (`hook: {recheck: …}`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from zlib import crc32

from service.core.backoff import jittered
from service.core.clock import Timer
from service.core.hooks import Hook
from service.core.identity import Right
from service.core.session import Session, Subscription
from service.errors import ServiceError
from service.realtime.decisions import Decisions
from service.realtime.runtime import Runtime

MAX_AT_ONCE = 16
"""Subscriptions that one endpoint is asked about at once, so that clients who wait for an answer are not held up."""
MAX_ATTEMPTS = 3
"""Questions in a row without an answer after which a subscription ends, unless the contract allows it without an answer."""
RETRY_INTERVAL = 4.0
"""Seconds between two of them, up to twice as many."""
MAX_CHECK_INTERVAL = 300.0
"""Seconds between two looks at the clock. It may jump, and timers do not see it."""


class Rechecks:
    """Ends subscriptions that the backend refuses later. Only a subscription in a channel with `recheck` has a timer.

    A subscription is asked about at moments of its own: those at which the time, divided by the interval, leaves a rest that
    comes from the ids of session and channel. So many subscriptions are spread evenly, each is asked about at least once in an
    interval, and a session of long polls that moves between nodes cannot evade that.
    """

    def __init__(self, decisions: Decisions, runtime: Runtime) -> None:
        self._decisions = decisions
        self._clock = runtime.clock
        self._tasks = runtime.tasks
        self._slots: dict[str, asyncio.Semaphore] = {}
        self.watched: dict[Subscription, _Watched] = {}
        """What is watched; empty where no channel has `recheck`."""
        runtime.metrics.hooks.hook_subscriptions.set_function(lambda: len(self.watched))

    def watch(
        self, session: Session, connection: str, subscription: Subscription, hook: Hook, end: Callable[[], None]
    ) -> None:
        """Watches a subscription until `discard`. `end` is called once if it must end; it must lead to `discard`."""
        self.discard(subscription)
        rest = crc32(f"{connection} {subscription.channel.name}".encode()) / 0x1_0000_0000 * hook.recheck
        watched = self.watched[subscription] = _Watched(session, hook, rest, end)
        self._schedule(subscription, watched)

    def discard(self, subscription: Subscription) -> None:
        """Stops to watch a subscription. Does nothing for one that is not watched."""
        watched = self.watched.pop(subscription, None)
        if watched is not None and watched.timer is not None:
            watched.timer.cancel()

    def close(self) -> None:
        """Cancels the timers."""
        for subscription in tuple(self.watched):
            self.discard(subscription)

    def _schedule(self, subscription: Subscription, watched: _Watched) -> None:
        interval = watched.hook.recheck
        left = interval - (self._clock.wall() - watched.rest) % interval
        if left < interval / 100:  # a timer that has fired early
            left += interval
        if left > MAX_CHECK_INTERVAL:
            watched.timer = self._clock.call_later(MAX_CHECK_INTERVAL, lambda: self._schedule(subscription, watched))
        else:
            watched.timer = self._clock.call_later(left, lambda: self._start(subscription, watched))

    def _start(self, subscription: Subscription, watched: _Watched) -> None:
        self._tasks.spawn("subscription recheck", self._check(subscription, watched))

    async def _check(self, subscription: Subscription, watched: _Watched) -> None:
        channel = subscription.channel.name
        slots = self._slots.setdefault(watched.hook.endpoint, asyncio.Semaphore(MAX_AT_ONCE))
        try:
            async with slots:
                if self.watched.get(subscription) is not watched:
                    return
                identity = watched.session.identity_in(channel)
                await self._decisions.wait_for_read(identity, channel, Right.SUBSCRIBE, is_recheck=True)
        except ServiceError as error:
            if self.watched.get(subscription) is not watched:
                return
            watched.failures += 1
            if not error.retryable or watched.failures == MAX_ATTEMPTS:
                watched.end()
                return
            wait = jittered(RETRY_INTERVAL)
            watched.timer = self._clock.call_later(wait, lambda: self._start(subscription, watched))
            return
        if self.watched.get(subscription) is watched:
            watched.failures = 0
            self._schedule(subscription, watched)


class _Watched:
    """When a subscription is asked about."""

    __slots__ = ("end", "failures", "hook", "rest", "session", "timer")

    def __init__(self, session: Session, hook: Hook, rest: float, end: Callable[[], None]) -> None:
        self.session = session
        self.hook = hook
        self.rest = rest
        """Seconds from each multiple of the interval to the question."""
        self.end = end
        self.failures = 0
        """Questions in a row without an answer."""
        self.timer: Timer | None = None
