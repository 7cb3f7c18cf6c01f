"""Takes a subscription through its phases: join, snapshot, live delivery, leave.

The first join and the last leave hold the room's lock. Under the lock, they await only the broker.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct

from service.contract.model import ChannelSpec
from service.core.broker import Broker, DeliveredHead, Snapshot, StreamHead
from service.core.limits import OutboxLimits
from service.core.position import Position
from service.core.session import Phase, PresenceAccess, Start, Subscription
from service.errors import ServiceError
from service.protocol.messages import PresenceView
from service.realtime.connections.frame import Frame
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.realtime.facts.facts import Facts
from service.realtime.runtime import Runtime
from service.realtime.streams.gap_recovery import GapRecovery
from service.realtime.streams.position_checker import PositionChecker

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection

_log = structlog.get_logger("membership")


class Joined(Struct, frozen=True):
    """The result of `go_live`: the content of `subscribed`, and the frames to send after it."""

    snapshot: Snapshot
    presence: PresenceView | None
    recovered: bool | None
    """True if all missed events were found. None in a channel without durable events, which has nothing to recover."""
    after: list[Frame]


class ChannelMembership:
    """Adds connections to rooms and removes them. Subscribes at the broker for the first member, unsubscribes after the last."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        recovery: GapRecovery,
        checker: PositionChecker,
        limits: OutboxLimits,
        facts: Facts | None,
        runtime: Runtime,
    ) -> None:
        """`facts`: None if nobody is told of channels."""
        self._hub = hub
        self._broker = broker
        self._recovery = recovery
        self._checker = checker
        self._limits = limits
        self._facts = facts
        self._metrics = runtime.metrics
        self._unsubscribe_failed = runtime.outages.limited(_log, "broker_unsubscribe_failed", runtime.clock.monotonic)

    def join_now(self, connection: Connection, subscription: Subscription) -> bool:
        """Does the same as `join`, if that needs no wait. Otherwise does nothing and returns False: call `join`."""
        room = self._hub.get(subscription.channel)
        if room is None or not room.is_broker_subscribed or room.lock.locked():
            return False  # a first join or a last leave comes first
        self._add(room, connection)
        return True

    async def join(self, connection: Connection, subscription: Subscription, spec: ChannelSpec) -> None:
        """Adds a connection to the channel's room; the first one subscribes at the broker. On failure, nothing has changed."""
        while True:
            room = self._hub.open(subscription.channel, spec)
            if room.is_broker_subscribed and not room.lock.locked():  # no first join and no last leave is in progress
                self._add(room, connection)
                return
            async with room.lock:
                if room.is_discarded:
                    continue
                self._add(room, connection)
                try:
                    if not room.is_broker_subscribed:
                        await self._broker.subscribe(room.key)
                        room.broker_subscribed()
                        if self._facts is not None and spec.webhook is not None:
                            self._facts.channel_occupied(room.key, spec.webhook)
                except BaseException:
                    if room.has_member(connection):  # else it has left meanwhile
                        room.remove(connection)
                        self._metrics.subscriptions.subscriptions.dec()
                    self._drop_if_empty(room)
                    raise
                break

    def _add(self, room: Room, connection: Connection) -> None:
        room.add_member(connection)
        self._metrics.subscriptions.subscriptions.value += 1

    def record_position_now(self, subscription: Subscription) -> bool:
        """Does the same as `record_position`, if that needs no wait. Otherwise does nothing and returns False."""
        if subscription.since is None:
            subscription.since = self._local_position(subscription)
        return subscription.since is not None

    async def record_position(self, subscription: Subscription) -> None:
        """Records the current position in a pending subscription without one. After `ready`, its snapshot starts there."""
        if not self.record_position_now(subscription):
            subscription.since = await self._read_position(subscription)

    async def forgo_history(self, subscription: Subscription) -> None:
        """Starts a subscription at the current position instead of the requested one: its user may not read history."""
        position = self._local_position(subscription) or await self._read_position(subscription)
        if subscription.since != position:
            subscription.since, subscription.start = position, Start.NO_HISTORY

    def _local_position(self, subscription: Subscription) -> Position | None:
        room = self._hub.get(subscription.channel)
        return room.local_position if room is not None and self._broker.delivers_synchronously else None

    async def _read_position(self, subscription: Subscription) -> Position:
        return (await self._broker.snapshot(subscription.channel, None, 0, 0)).position

    def go_live_now(self, connection: Connection, subscription: Subscription) -> Position | None:
        """Starts delivery at the position that is returned, if nothing has to be read. Otherwise does nothing: call `go_live`.

        That is so if this node knows all that a snapshot would hold, and the client has missed nothing since its join. The
        subscription must not show presence.
        """
        if subscription.start is not Start.JOIN or not self._broker.delivers_synchronously:
            return None
        room = self._hub.get(subscription.channel)
        if room is None or not room.has_member(connection):
            return None
        position = room.local_position
        if position is None or (subscription.since is not None and subscription.since != position):
            return None
        room.make_live(connection, subscription)
        return position

    async def go_live(
        self,
        connection: Connection,
        subscription: Subscription,
        view: Callable[[], Awaitable[PresenceView]] | None,
        tail: int,
    ) -> Joined | None:
        """Reads the snapshot, with the last `tail` events, and the presence view, then starts delivery.

        Returns None if the connection has left meanwhile.
        """
        room = self._hub.get(subscription.channel)
        if room is None or not room.has_member(connection):
            return None
        room.start_subscribing(connection, subscription)
        try:
            presence = await view() if view is not None else None
            while True:
                snapshot = await self._broker.snapshot(
                    subscription.channel,
                    subscription.since,
                    self._limits.recovery_events,
                    self._limits.recovery_bytes,
                    tail,
                )
                if not room.is_subscribing(connection):
                    return None
                self._align_room(room, snapshot)
                if room.is_contiguous(connection, snapshot):
                    break
                # Another member's newer snapshot has started the room's order, so this one lacks events and is read again. If the
                # store has lost the stream's end, reads lack events until the check starts a new epoch.
                await self._checker.check_room_now(room)
        except BaseException:
            room.cancel_subscribing(connection, subscription)
            raise
        recovered = False if subscription.start is Start.NO_HISTORY else snapshot.recovered
        if room.spec.history is None:
            recovered = None
        return Joined(snapshot, presence, recovered, room.finish_subscribing(connection, subscription, snapshot))

    async def continue_live(
        self, connection: Connection, subscriptions: Sequence[Subscription], known: Sequence[DeliveredHead]
    ) -> list[tuple[Subscription, list[Frame]]]:
        """Starts delivery in the channels whose head is the known one; the others stay pending.

        A room that is in order knows its head. One call of the broker reads the heads of all others. Returns the subscriptions
        whose delivery has started, each with the frames to send.
        """
        started: list[tuple[Subscription, list[Frame]]] = []
        unknown: list[tuple[Room, Subscription, DeliveredHead]] = []
        for subscription, last in zip(subscriptions, known, strict=True):
            room = self._hub.get(subscription.channel)
            if room is None or not room.has_member(connection):
                continue
            room.start_subscribing(connection, subscription)
            has_news = room.has_news(last)
            if has_news is None:
                unknown.append((room, subscription, last))
            elif not has_news and (frames := self._continue(room, connection, subscription, last)) is not None:
                started.append((subscription, frames))
            else:
                room.cancel_subscribing(connection, subscription)
        if unknown:
            started += await self._continue_at_heads(connection, unknown)
        return started

    async def _continue_at_heads(
        self, connection: Connection, waiting: Sequence[tuple[Room, Subscription, DeliveredHead]]
    ) -> list[tuple[Subscription, list[Frame]]]:
        started: list[tuple[Subscription, list[Frame]]] = []
        try:
            heads = await self._broker.stream_heads(
                [room.key for room, _, _ in waiting], [one for _, _, one in waiting]
            )
        except BaseException:
            for room, subscription, _ in waiting:
                if room.is_subscribing(connection):
                    room.cancel_subscribing(connection, subscription)
            raise
        for (room, subscription, last), head in zip(waiting, heads, strict=True):
            if not room.is_subscribing(connection):
                continue
            version = last.state_version if room.spec.has_state or head is None else head.state_version
            reached = DeliveredHead(last.position, version)
            if head == StreamHead(last.position.epoch, last.position.offset, version):
                frames = self._continue(room, connection, subscription, reached)
                if frames is not None:
                    started.append((subscription, frames))
                    continue
            room.cancel_subscribing(connection, subscription)
        return started

    def _continue(
        self, room: Room, connection: Connection, subscription: Subscription, last: DeliveredHead
    ) -> list[Frame] | None:
        """Starts delivery after a head. None, and nothing is done, if the room has news that the buffer has not."""
        cursor = room.sequencer.cursor
        version = last.state_version if room.spec.has_state or cursor is None else cursor.state_version
        snapshot = Snapshot(last.position, (), (), recovered=True, state_version=max(version, last.state_version))
        self._align_room(room, snapshot)
        if not room.is_contiguous(connection, snapshot):
            return None
        return room.finish_subscribing(connection, subscription, snapshot)

    def _align_room(self, room: Room, snapshot: Snapshot) -> None:
        """Starts a room's order at its first snapshot. A later snapshot ahead of the room is a sign of a gap in the room."""
        cursor = room.sequencer.cursor
        if cursor is None:
            self._recovery.start_order(room, snapshot)
        elif not cursor.has_reached(snapshot.head):
            self._checker.recover_if_behind(room, snapshot.head)

    async def grant_presence(
        self, connection: Connection, subscription: Subscription, view: Callable[[], Awaitable[PresenceView]]
    ) -> tuple[PresenceView, list[Frame]] | None:
        """Shows presence to a subscription. Returns the view, and the frames to send after it.

        Returns None if the subscription is not live; `go_live` shows presence later.
        """
        room = self._hub.get(subscription.channel)
        if room is None or subscription.phase is not Phase.LIVE:
            subscription.presence = PresenceAccess.SEES
            return None
        room.start_presence_buffer(connection)
        try:
            members = await view()
        finally:
            after = room.take_presence_buffer(connection)
        if after is None:
            return None
        room.set_presence_access(connection, subscription, PresenceAccess.SEES)
        return members, after

    def withdraw_presence(self, connection: Connection, subscription: Subscription) -> None:
        """Hides presence from a subscription."""
        room = self._hub.get(subscription.channel)
        if room is None:
            subscription.presence = PresenceAccess.LISTED
        else:
            room.set_presence_access(connection, subscription, PresenceAccess.LISTED)

    def pause(self, connection: Connection, subscription: Subscription) -> None:
        """Stops delivery until `continue_live` or `go_live`. It stays a member, so the broker delivers the channel."""
        self.detach(connection, subscription)
        subscription.phase, subscription.start, subscription.since = Phase.PENDING, Start.JOIN, None

    def detach(self, connection: Connection, subscription: Subscription) -> None:
        """Stops delivery at once. The caller must call `leave` afterwards."""
        room = self._hub.get(subscription.channel)
        if room is not None:
            room.detach(connection)

    def leave(self, connection: Connection, subscription: Subscription) -> Awaitable[None] | None:
        """Removes a connection from the room; the last one unsubscribes at the broker. Returns what has to be waited for."""
        room = self._hub.get(subscription.channel)
        if room is None or not room.has_member(connection):
            return None
        room.remove(connection)
        self._metrics.subscriptions.subscriptions.dec()
        return self._close_room(room) if room.is_empty() else None

    async def _close_room(self, room: Room) -> None:
        async with room.lock:
            if not room.is_empty() or room.is_discarded:
                return
            try:
                if room.is_broker_subscribed:
                    await self._broker.unsubscribe(room.key)
                    room.broker_unsubscribed()
            except ServiceError as error:  # the broker is away; events that it delivers later find no room
                self._unsubscribe_failed(code=error.code.code)
            finally:
                self._drop_if_empty(room)
                if self._facts is not None and room.spec.webhook is not None:
                    self._facts.channel_vacated(room.key, room.spec.webhook)

    def _drop_if_empty(self, room: Room) -> None:
        if room.is_empty():
            self._hub.drop(room)
