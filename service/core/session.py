"""A session: who is on a connection, and what they have joined. Pure.

The garbage collector does not look at these (`gc=False`): nothing that they hold leads back to them.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct, field

from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.core.position import Position
from service.errors import ErrorCode, ServiceError


class Phase(Enum):
    """How far a subscription has come."""

    PENDING = "held"
    """Authorised and joined; nothing is delivered before `ready`."""
    SUBSCRIBING = "joining"
    """The snapshot is being read; live events wait behind it."""
    LIVE = "live"
    """`subscribed` has been sent; events follow."""


class Start(Enum):
    """From where a subscription gets the channel's events."""

    JOIN = "join"
    """From the join on."""
    POSITION = "position"
    """From the position that the client has named."""
    GAP = "gap"
    """From the join on, though the client has named a position: it may not read what came in between, and is told so."""


class PresenceAccess(Enum):
    """What a subscription has to do with its channel's presence."""

    NONE = "none"
    """Nothing: the channel keeps none."""
    LISTED = "listed"
    """Its user is shown to others, and may not see them."""
    SEES = "sees"
    """Its user is shown to others, and sees them."""


class Subscription(Struct, eq=False, gc=False):
    """One channel of one session."""

    channel: ChannelKey
    request: str | None
    """The id of the `subscribe` that asked for it; None for a channel named in the address."""
    since: Position | None = None
    """Where to resume: the client's position, or the one at which the subscription joined (see `start`)."""
    start: Start = Start.JOIN
    presence: PresenceAccess = PresenceAccess.NONE
    phase: Phase = Phase.PENDING


class Session(Struct, eq=False, gc=False):
    """Belongs to one connection, and changes only by that connection's commands and the backend's."""

    identity: Identity
    most_subscriptions: int
    ready: bool = False
    subscriptions: dict[str, Subscription] = field(default_factory=dict)

    def check_room_for(self, channel: str) -> None:
        """Raises ServiceError if the channel is joined already or the session has joined as many as it may."""
        if channel in self.subscriptions:
            raise ServiceError(ErrorCode.ALREADY_SUBSCRIBED, f"{channel} is subscribed already", path="$.channel")
        if len(self.subscriptions) >= self.most_subscriptions:
            raise ServiceError(
                ErrorCode.TOO_MANY_SUBSCRIPTIONS,
                f"a connection has at most {self.most_subscriptions} channels",
                limit=self.most_subscriptions,
            )

    def subscription(self, channel: str) -> Subscription:
        """The subscription, or ServiceError(NOT_SUBSCRIBED)."""
        found = self.subscriptions.get(channel)
        if found is None:
            raise ServiceError(ErrorCode.NOT_SUBSCRIBED, f"{channel} is not subscribed", path="$.channel")
        return found

    def is_subscribed(self, channel: str) -> bool:
        """Whether the channel has been joined."""
        return channel in self.subscriptions
