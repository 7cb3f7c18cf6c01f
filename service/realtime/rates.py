"""How much connections may send: each has buckets of its own, and shares others with its user, its address and its tenant.

Messages and subscribes have separate buckets: those for subscribes hold enough for everybody to get their channels back at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from service.core.limits import Limits, Rate, TokenBucket

VIOLATION_WINDOW = 10.0
"""Seconds within which `limits.rate_violations` frames above its rate end a connection."""

SCOPES = ("connection", "user", "ip", "tenant")
"""Whose buckets a message counts for, in the order in which refusals name them."""


class SharedRates:
    """The buckets of one user, address or tenant."""

    __slots__ = ("connections", "messages", "subscribes")

    def __init__(self, messages: Rate, subscribes: Rate, now: float) -> None:
        self.messages = TokenBucket(messages, now)
        self.subscribes = TokenBucket(subscribes, now)
        self.connections = 0
        """That use them at present."""

    def is_full(self, now: float) -> bool:
        """Whether they are as good as new ones."""
        return self.messages.is_full(now) and self.subscribes.is_full(now)


class KeyedRates:
    """The buckets of every key that has a connection, and of those that had one lately.

    Of the latter at most `tracked` are remembered; the one idle longest is forgotten first.
    """

    def __init__(self, messages: Rate, subscribes: Rate, tracked: int) -> None:
        self._messages = messages
        self._subscribes = subscribes
        self._tracked = tracked
        self._used: dict[Hashable, SharedRates] = {}
        self._idle: OrderedDict[Hashable, SharedRates] = OrderedDict()

    def acquire(self, key: Hashable, now: float) -> SharedRates:
        """The key's buckets, for one connection; `release` must follow."""
        rates = self._used.get(key)
        if rates is None:
            rates = self._idle.pop(key, None) or SharedRates(self._messages, self._subscribes, now)
            self._used[key] = rates
        rates.connections += 1
        return rates

    def release(self, key: Hashable) -> None:
        """The connection is gone."""
        rates = self._used[key]
        rates.connections -= 1
        if not rates.connections:
            del self._used[key]
            self._idle[key] = rates
            if len(self._idle) > self._tracked:
                self._idle.popitem(last=False)

    def forget_full(self, now: float, most: int) -> None:
        """Lets go of idle ones that are full again: at most so many."""
        for _ in range(most):
            key = next(iter(self._idle), None)
            if key is None or not self._idle[key].is_full(now):
                return
            del self._idle[key]

    def __len__(self) -> int:
        return len(self._used) + len(self._idle)


class ConnectionRates:
    """What one connection may send: its own buckets, which come first, and those that it shares."""

    __slots__ = ("_scopes", "_shared_refusals", "_violations", "messages", "subscribes")

    def __init__(self, limits: Limits, shared: Sequence[SharedRates], now: float) -> None:
        """`shared`: of the user, unless it is anonymous, the address and the tenant."""
        self.messages = (TokenBucket(limits.connection_rate, now), *(each.messages for each in shared))
        self.subscribes = (TokenBucket(limits.subscribe_rate, now), *(each.subscribes for each in shared))
        self._scopes = SCOPES if len(self.messages) == len(SCOPES) else ("connection", "ip", "tenant")
        self._violations: tuple[float, ...] = ()
        """When frames of it were above its rate, lately."""
        self._shared_refusals: TokenBucket | None = None
        """Frames that may be refused for what others have used up: as many as the connection may send anyway."""

    def scope(self, bucket: TokenBucket) -> str:
        """Whose bucket it is."""
        return next(
            scope
            for scope, pair in zip(self._scopes, zip(self.messages, self.subscribes, strict=True), strict=True)
            if bucket in pair
        )

    def is_abusive(self, scope: str, limits: Limits, now: float) -> bool:
        """Notes a frame that was refused; True once there were too many lately that were the connection's own fault.

        What others have used up is not: a connection is cut for that only if it keeps to no rate at all.
        """
        if scope != "connection":
            if self._shared_refusals is None:
                self._shared_refusals = TokenBucket(limits.connection_rate, now)
            if not self._shared_refusals.take(now):
                return False
        self._violations = (*(at for at in self._violations if at > now - VIOLATION_WINDOW), now)
        return len(self._violations) > limits.rate_violations
