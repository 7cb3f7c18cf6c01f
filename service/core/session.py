"""A session: the identity of a connection, and its subscriptions. Pure.

The garbage collector skips these objects (`gc=False`): they are in no reference cycle.
"""

from __future__ import annotations

from enum import Enum
from typing import ClassVar

from msgspec import Struct

from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.protocol.features import NO_FEATURES


class Phase(Enum):
    """The state of a subscription."""

    PENDING = "pending"
    """Authorised. Nothing is delivered before `ready`."""
    SUBSCRIBING = "subscribing"
    """The snapshot is being read. Newer events wait until it is sent."""
    LIVE = "live"
    """`subscribed` has been sent. Events are delivered."""


class Start(Enum):
    """The place in the stream at which a subscription starts."""

    JOIN = "join"
    """At the subscribe."""
    POSITION = "position"
    """At the position that the client sent."""
    NO_HISTORY = "no history"
    """At the subscribe, although the client sent a position. It may not read history, so it gets `recovered: false`."""


class PresenceAccess(Enum):
    """How a subscription takes part in its channel's presence."""

    NONE = "none"
    """Not at all: the channel has no presence."""
    LISTED = "listed"
    """Others see its user; the user does not see them."""
    SEES = "sees"
    """Others see its user, and the user sees them."""


class Subscription(Struct, eq=False, gc=False):
    """One subscription of one session."""

    channel: ChannelKey
    request: str | None
    """The id of the `subscribe` request; None for a channel in the upgrade's URL."""
    since: Position | None = None
    """The position to resume from: the client's, or that of the subscribe. `start` says which."""
    start: Start = Start.JOIN
    presence: PresenceAccess = PresenceAccess.NONE
    phase: Phase = Phase.PENDING

    tail: ClassVar[int] = 0
    """The number of last events that `subscribed` brings."""
    grant: ClassVar[Identity | None] = None
    """The identity of the subscription's own token; its grants count in this channel, beside those of the connection."""
    by_server: ClassVar[bool] = False
    """True if the token or the backend has made the subscription. The client's own `subscribe` takes it over."""


class ExtendedSubscription(Subscription, eq=False, gc=False):
    """A subscription with values that few have. A type of its own, so that the others take no memory for them."""

    # Fields in place of the constants of all other subscriptions, which mypy does not know.
    tail: int = 0  # type: ignore[misc]  # see above
    grant: Identity | None = None  # type: ignore[misc]  # see above
    by_server: bool = False  # type: ignore[misc]  # see above


class Session(Struct, eq=False, gc=False):
    """The session of one connection. Only commands of the connection and of the backend change it."""

    identity: Identity
    is_ready: bool = False
    """True once the client has sent `ready`."""
    features: frozenset[str] = NO_FEATURES
    """The features that the client has announced and this node knows; shared by many sessions."""
    _subscriptions: Subscription | dict[str, Subscription] | None = None
    """One subscription, or several by channel. Most sessions have one, and a dictionary takes more memory than a session."""

    @property
    def subscriptions(self) -> tuple[Subscription, ...]:
        """The present subscriptions, in the order in which they were added."""
        held = self._subscriptions
        if held is None:
            return ()
        return tuple(held.values()) if isinstance(held, dict) else (held,)

    def check_can_subscribe(self, channel: str, max_subscriptions: int) -> None:
        """Raises ServiceError if the session is subscribed to the channel, or has `max_subscriptions`."""
        held = self._subscriptions
        if held is None and max_subscriptions > 0:
            return
        if self.find(channel) is not None:
            raise ServiceError(ErrorCode.ALREADY_SUBSCRIBED, f"{channel} is subscribed already", path="$.channel")
        if len(self.subscriptions) >= max_subscriptions:
            raise ServiceError(
                ErrorCode.TOO_MANY_SUBSCRIPTIONS,
                f"a connection has at most {max_subscriptions} channels",
                limit=max_subscriptions,
            )

    def add(self, subscription: Subscription) -> None:
        """Adds a subscription to a channel that has none."""
        held = self._subscriptions
        if held is None:
            self._subscriptions = subscription
        elif isinstance(held, dict):
            held[subscription.channel.name] = subscription
        else:
            self._subscriptions = {held.channel.name: held, subscription.channel.name: subscription}

    def remove(self, channel: str) -> Subscription | None:
        """Removes the subscription to a channel, and returns it. Returns None without one."""
        held = self._subscriptions
        if isinstance(held, dict):
            return held.pop(channel, None)
        if held is None or held.channel.name != channel:
            return None
        self._subscriptions = None
        return held

    def find(self, channel: str) -> Subscription | None:
        """Returns the subscription to a channel; None without one."""
        held = self._subscriptions
        if isinstance(held, dict):
            return held.get(channel)
        return None if held is None or held.channel.name != channel else held

    def subscription(self, channel: str) -> Subscription:
        """Returns the subscription. Raises ServiceError(NOT_SUBSCRIBED)."""
        found = self.find(channel)
        if found is None:
            raise ServiceError(ErrorCode.NOT_SUBSCRIBED, f"{channel} is not subscribed", path="$.channel")
        return found

    def identity_in(self, channel: str) -> Identity:
        """Returns the identity whose rights count in a channel: with the grants of the subscription's own token, if any."""
        found = self.find(channel)
        grant = None if found is None else found.grant
        return self.identity if grant is None else self.identity.with_grants(grant)

    def is_subscribed(self, channel: str) -> bool:
        """True if the session has a subscription to the channel."""
        held = self._subscriptions
        if isinstance(held, dict):
            return channel in held
        return held is not None and held.channel.name == channel
