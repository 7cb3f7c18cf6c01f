"""The relay: hub ⇄ broker. First join, last leave, and the merge of a snapshot with what came while it was read.

Lock order: a room's lock is the only lock, taken by `join` and `leave`; nothing is awaited under it but the broker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from service.contract.model import ChannelSpec
from service.core.broker import Broker, Snapshot
from service.core.clock import Clock
from service.core.event import Event
from service.core.limits import OutboxLimits
from service.core.session import Phase, Subscription
from service.errors import ServiceError
from service.protocol.messages import PresenceView
from service.realtime.frame import Frame, event_frame
from service.realtime.hub import Hub, Room
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.realtime.connection import Connection

_log = structlog.get_logger("relay")


@dataclass(frozen=True, slots=True)
class Joined:
    """A subscription that is live: what to tell the client first, then what to send after it."""

    snapshot: Snapshot
    presence: PresenceView | None
    after: list[Frame]


class Relay:
    """The broker's sink on this node."""

    def __init__(self, hub: Hub, broker: Broker, clock: Clock, limits: OutboxLimits, metrics: Metrics) -> None:
        self._hub = hub
        self._broker = broker
        self._clock = clock
        self._limits = limits
        self._metrics = metrics

    def deliver(self, event: Event) -> None:
        """Takes one event from the broker (see core/broker.py EventSink): encodes it once and hands it to its room."""
        room = self._hub.get(event.channel)
        if room is None or not room.is_listening:
            return
        spec = room.spec.events.get(event.type)
        room.push(event_frame(event, self._clock.monotonic()), spec.window if spec is not None else 0.0)

    async def join(self, connection: Connection, subscription: Subscription, spec: ChannelSpec) -> None:
        """Adds the connection to the channel's room; the first one makes the broker deliver. Rolled back on failure."""
        while True:
            room = self._hub.open(subscription.channel, spec)
            async with room.lock:
                if room.dropped:
                    continue
                room.occupants[connection] = subscription
                try:
                    if not room.carried:
                        await self._broker.subscribe(room.key)
                        room.carried = True
                except BaseException:
                    room.remove(connection)
                    self._drop_if_empty(room)
                    raise
                break
        self._metrics.subscriptions.inc()

    async def hold(self, subscription: Subscription) -> None:
        """Notes where a held subscription joined, so that what comes before `ready` can be read then."""
        if subscription.since is None:
            snapshot = await self._broker.snapshot(subscription.channel, None, 0, 0)
            subscription.since = snapshot.top

    async def go_live(
        self, connection: Connection, subscription: Subscription, view: Callable[[], Awaitable[PresenceView]] | None
    ) -> Joined | None:
        """Reads the snapshot, and who is there, and starts delivery behind both; None if the connection left meanwhile."""
        room = self._hub.get(subscription.channel)
        if room is None or connection not in room.occupants:
            return None
        room.begin(connection, subscription)
        try:
            presence = await view() if view is not None else None
            snapshot = await self._broker.snapshot(
                subscription.channel, subscription.since, self._limits.recovery_events, self._limits.recovery_bytes
            )
        except BaseException:
            room.joining.pop(connection, None)
            subscription.phase = Phase.HELD
            raise
        if connection not in room.joining:
            return None
        waiting = room.go_live(connection, subscription)
        return Joined(snapshot, presence, [frame for frame in waiting if _is_new(frame, snapshot)])

    def detach(self, connection: Connection, subscription: Subscription) -> None:
        """Stops delivery at once; `leave` must follow."""
        room = self._hub.get(subscription.channel)
        if room is not None:
            room.live.pop(connection, None)
            room.joining.pop(connection, None)

    async def leave(self, connection: Connection, subscription: Subscription) -> None:
        """Takes the connection out of the room; with the last one the broker stops delivering."""
        room = self._hub.get(subscription.channel)
        if room is None or connection not in room.occupants:
            return
        room.remove(connection)
        self._metrics.subscriptions.dec()
        if room.occupants:
            return
        async with room.lock:
            if room.occupants or room.dropped:
                return
            try:
                if room.carried:
                    await self._broker.unsubscribe(room.key)
                    room.carried = False
            except ServiceError as error:  # the broker is away: what it still delivers meets no room
                _log.warning("unsubscribe failed", code=error.code.code)
            finally:
                self._drop_if_empty(room)

    def _drop_if_empty(self, room: Room) -> None:
        if not room.occupants:
            self._hub.drop(room)


def _is_new(frame: Frame, snapshot: Snapshot) -> bool:
    if frame.offset is not None:
        return frame.offset > snapshot.top.offset
    if frame.rev is not None and snapshot.state:
        return frame.rev > (snapshot.state[-1].rev or 0)
    return True
