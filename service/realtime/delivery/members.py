"""The members of a room, grouped by the phase of their subscriptions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

import structlog

from service.core.presence import is_presence_event
from service.core.session import Phase, PresenceAccess, Subscription
from service.core.stream_cursor import StreamCursor
from service.protocol.close import CloseCode
from service.realtime.connections.connection import MAX_GATHERED_EVENT
from service.realtime.connections.context import RoomContext
from service.realtime.connections.encoder import split_batches
from service.realtime.connections.frame import Frame, SnapshotFilter
from service.realtime.delivery.event_sequencer import EventSequencer
from service.realtime.delivery.live_members import REMOVAL, LiveMembers, without

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection

_log = structlog.get_logger("delivery")

NO_EXCLUSIONS: Mapping[Connection, Collection[Frame]] = MappingProxyType({})
_NONE: dict[Connection, Any] = cast("dict[Connection, Any]", MappingProxyType({}))
"""Takes the place of an empty dictionary in all rooms, to save memory. It cannot be changed."""


class Members:
    """Decides which frames each member gets, and when.

    1. *pending*: before `ready`. The member gets no frames.
    2. *subscribing*: while its snapshot is read. Its frames are kept in a buffer.
    3. *replaying*: while its snapshot is newer than the room. It gets the frames that are newer than the snapshot.
    4. *live*: it gets every frame.
    """

    __slots__ = (
        "_context",
        "_exclusions",
        "_live",
        "_presence_buffers",
        "_replaying",
        "_restricted",
        "_silent",
        "_subscribing",
    )

    def __init__(self, context: RoomContext) -> None:
        self._context = context
        self._silent: dict[Connection, None] | None = None
        """Members that get no frames: pending and detached ones. None while there are none."""
        self._subscribing: dict[Connection, list[Frame]] = _NONE
        self._replaying: dict[Connection, tuple[Subscription, SnapshotFilter]] = _NONE
        self._live = LiveMembers(context)
        """The live members that get every frame: all but those of `_restricted`."""
        self._restricted: LiveMembers | None = None
        """Live members that may not see presence; None while there are none."""
        self._presence_buffers: dict[Connection, list[Frame]] | None = None
        """Presence events kept for live members that have just got the right to presence, while their presence view is read."""
        self._exclusions: dict[Connection, list[Frame]] | None = None
        """Frames of the next delivery that a member does not get; None while there are none."""

    @property
    def count(self) -> int:
        """The number of members, including pending ones."""
        silent, restricted = self._silent, self._restricted
        count = len(self._live.members) + len(self._subscribing) + len(self._replaying)
        if silent is not None:
            count += len(silent)
        return count if restricted is None else count + len(restricted.members)

    def has(self, connection: Connection) -> bool:
        """True if the connection is a member."""
        return (
            connection in self._live.members
            or (self._silent is not None and connection in self._silent)
            or connection in self._subscribing
            or connection in self._replaying
            or (self._restricted is not None and connection in self._restricted.members)
        )

    def _remove_silent(self, connection: Connection) -> None:
        silent = self._silent
        if silent is not None:
            silent.pop(connection, None)
            if not silent:
                self._silent = None

    def is_listening(self) -> bool:
        """True if any member needs frames now. Pending members do not: they read missed events from the stream later."""
        return bool(
            self._live.members
            or self._subscribing
            or self._replaying
            or (self._restricted is not None and self._restricted.members)
        )

    @property
    def is_writing(self) -> bool:
        """True if a broadcast is unfinished."""
        return bool(self._live.broadcasts or (self._restricted is not None and self._restricted.broadcasts))

    @property
    def can_extend(self) -> bool:
        """True if frames need not wait for the end of `is_writing`."""
        return self._restricted is None and self._live.can_extend

    @property
    def live(self) -> Collection[Connection]:
        """The live members."""
        live, restricted = self._live.members, self._restricted
        return live if restricted is None else (*live, *restricted.members)

    @property
    def receiving(self) -> tuple[Connection, ...]:
        """The live and the replaying members."""
        return (*self.live, *self._replaying)

    @property
    def listening(self) -> tuple[Connection, ...]:
        """The subscribing, replaying and live members."""
        return (*self.live, *self._subscribing, *self._replaying)

    # --- a subscription's phases --------------------------------------------------------------------------------------

    def add(self, connection: Connection) -> None:
        """Adds a member that gets no frames: a pending or a detached one."""
        if self._silent is None:
            self._silent = {}
        self._silent[connection] = None

    def make_live(self, connection: Connection, subscription: Subscription) -> None:
        """Gives the member every frame from now on."""
        subscription.phase = Phase.LIVE
        self._remove_silent(connection)
        self._group_of(subscription).add(connection, subscription)

    def start_subscribing(self, connection: Connection, subscription: Subscription) -> None:
        """Buffers the member's frames from now on."""
        subscription.phase = Phase.SUBSCRIBING
        self._remove_silent(connection)
        if self._subscribing is _NONE:
            self._subscribing = {}
        self._subscribing[connection] = []

    def cancel_subscribing(self, connection: Connection, subscription: Subscription) -> None:
        """Makes the member pending again, and drops its buffer."""
        if connection in self._subscribing:
            del self._subscribing[connection]
            self.add(connection)
        subscription.phase = Phase.PENDING

    def is_subscribing(self, connection: Connection) -> bool:
        """True while the member's frames are buffered."""
        return connection in self._subscribing

    def buffered(self, connection: Connection) -> Iterable[Frame]:
        """The frames in the member's buffer."""
        return self._subscribing[connection]

    def take_buffered(self, connection: Connection, subscription: Subscription, since: SnapshotFilter) -> list[Frame]:
        """Removes the member's buffer, and returns its frames that are newer than the member's snapshot."""
        buffered = self._subscribing.pop(connection)
        if not self._subscribing:
            self._subscribing = _NONE
        return _visible(connection, subscription, [frame for frame in buffered if since.passes(frame)])

    def start_replaying(self, connection: Connection, subscription: Subscription, since: SnapshotFilter) -> None:
        """Gives the member only frames that are newer than its snapshot, until the room reaches the snapshot's position."""
        subscription.phase = Phase.LIVE
        if self._replaying is _NONE:
            self._replaying = {}
        self._replaying[connection] = (subscription, since)

    def detach(self, connection: Connection) -> None:
        """Stops delivery to a member. Does nothing if there is no delivery to it."""
        if self._stop(connection):
            self.add(connection)

    def remove(self, connection: Connection) -> None:
        """Removes a member. Does nothing if it is no member."""
        if not self._stop(connection):
            self._remove_silent(connection)

    def _stop(self, connection: Connection) -> bool:
        """Stops delivery to a member. True if there was delivery to it."""
        was_found = self._live.remove(connection)
        restricted = self._restricted
        if restricted is not None:
            was_found |= restricted.remove(connection)
            if not restricted.members and not restricted.broadcasts:
                self._restricted = None
        if self._subscribing:
            was_found |= self._subscribing.pop(connection, None) is not None
        if self._replaying:
            was_found |= self._replaying.pop(connection, None) is not None
        if self._presence_buffers is not None:
            self._presence_buffers.pop(connection, None)
        return was_found

    # --- presence -----------------------------------------------------------------------------------------------------

    def start_presence_buffer(self, connection: Connection) -> None:
        """Starts to keep presence events for a live member in a buffer."""
        if self._presence_buffers is None:
            self._presence_buffers = {}
        self._presence_buffers[connection] = []

    def take_presence_buffer(self, connection: Connection) -> list[Frame] | None:
        """Removes the buffer, and returns its events; None if delivery to the member has stopped."""
        return None if self._presence_buffers is None else self._presence_buffers.pop(connection, None)

    def set_presence_access(self, connection: Connection, subscription: Subscription, access: PresenceAccess) -> None:
        """Shows or hides later presence events. The member first gets the unfinished broadcasts."""
        before = self._group_of(subscription)
        subscription.presence = access
        after = self._group_of(subscription)
        if after is not before and connection in before.members:
            after.add(connection, subscription)
            before.flush_and_remove(connection)

    def _group_of(self, subscription: Subscription) -> LiveMembers:
        if subscription.presence is not PresenceAccess.LISTED:
            return self._live
        if self._restricted is None:
            self._restricted = LiveMembers(self._context)
        return self._restricted

    # --- delivery -----------------------------------------------------------------------------------------------------

    def gather(self, frame: Frame) -> bool:
        """Hands a small frame to the only member, without a batch. False, and nothing is done, if there is no such member, or if
        anything else waits for it here."""
        live, size = self._live, len(frame.payload)
        if (
            len(live.members) != 1
            or size > MAX_GATHERED_EVENT
            or live.broadcasts
            or self._restricted is not None
            or self._subscribing
            or self._replaying
            or self._presence_buffers
        ):
            return False
        (member,) = live.members
        if member.window_bits:
            return False  # a batch is compressed
        metrics = self._context.metrics
        metrics.messages.count_out(frame.type, size)
        metrics.delivery.fanout_members.observe(1)
        try:
            if not member.gather(frame):
                member.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
        except Exception:
            _log.exception("delivery_failed")
            member.fail()  # it has missed an event
        return True

    def exclude(self, connection: Connection, frame: Frame) -> None:
        """Keeps a frame, which is delivered next, from one member."""
        if self._exclusions is None:
            self._exclusions = {}
        self._exclusions.setdefault(connection, []).append(frame)

    def deliver(self, frames: Collection[Frame], sequencer: EventSequencer, *, has_removals: bool) -> bool:
        """Gives the frames to the current members. True if there is something to `write`.

        `has_removals`: some of the frames are removals.
        """
        if self._exclusions is not None:
            return self._deliver_except(frames, sequencer, self._exclusions, has_removals=has_removals)
        if self._subscribing:
            for buffer in self._subscribing.values():
                buffer.extend(frames)
        if self._presence_buffers:
            _buffer_presence(self._presence_buffers, frames)
        caught_up = self._replay(frames, sequencer.cursor) if self._replaying else ()
        live, restricted = self._live, self._restricted
        if has_removals:
            self._broadcast_with_removals(frames)
        elif restricted is not None:
            self._broadcast_to_both(frames, restricted)
        elif members := len(live.members):
            self._count(frames, members)
            live.broadcast(split_batches(frames, self._context.max_batch, self._context.encoder))
        self._end_replay(caught_up)
        return restricted is not None or bool(live.broadcasts)

    def _deliver_except(
        self,
        frames: Collection[Frame],
        sequencer: EventSequencer,
        exclusions: Mapping[Connection, Collection[Frame]],
        *,
        has_removals: bool,
    ) -> bool:
        """Does the same as `deliver`, but for the frames that some members do not get."""
        self._exclusions = None
        for connection, buffer in self._subscribing.items():
            buffer.extend(without(frames, exclusions.get(connection, ())))
        if self._presence_buffers:
            _buffer_presence(self._presence_buffers, frames)
        caught_up = self._replay(frames, sequencer.cursor, exclusions)
        if has_removals:
            exclusions = self._with_removals(frames, exclusions)
        self._broadcast_except(self._live, frames, exclusions)
        if self._restricted is not None:
            public = [frame for frame in frames if not is_presence_event(frame.type)]
            self._broadcast_except(self._restricted, public, exclusions)
        self._end_replay(caught_up)
        return self.is_writing

    def _with_removals(
        self, frames: Collection[Frame], exclusions: Mapping[Connection, Collection[Frame]]
    ) -> Mapping[Connection, Collection[Frame]]:
        """Returns the exclusions, with the removals for live members whose client does not know them."""
        removals = [frame for frame in frames if frame.is_removal]
        unknowing = (member for member in self.live if REMOVAL not in member.session.features)
        return {**exclusions, **{member: [*exclusions.get(member, ()), *removals] for member in unknowing}}

    def _broadcast_except(
        self, group: LiveMembers, frames: Collection[Frame], exclusions: Mapping[Connection, Collection[Frame]]
    ) -> None:
        excluded = {connection: held for connection, held in exclusions.items() if connection in group.members}
        self._count(frames, len(group.members) - len(excluded))
        for held in excluded.values():
            for frame in without(frames, held):
                self._context.metrics.messages.count_out(frame.type, len(frame.payload))
        group.broadcast_except(frames, excluded)

    def _end_replay(self, caught_up: Iterable[Connection]) -> None:
        for connection in caught_up:
            subscription, _ = self._replaying.pop(connection)
            self._group_of(subscription).add(connection, subscription)

    def _broadcast_to_both(self, frames: Collection[Frame], restricted: LiveMembers) -> None:
        """Gives the frames to both groups, presence events only to `_live`. Without presence events both share the batches."""
        live, context = self._live, self._context
        public = [frame for frame in frames if not is_presence_event(frame.type)]
        presence = [frame for frame in frames if is_presence_event(frame.type)]
        self._count(public, len(live.members) + len(restricted.members))
        self._count(presence, len(live.members))
        made = split_batches(frames, context.max_batch, context.encoder)
        if live.members:
            live.broadcast(made)
        if restricted.members:
            restricted.broadcast(split_batches(public, context.max_batch, context.encoder) if presence else made)

    def _broadcast_with_removals(self, frames: Collection[Frame]) -> None:
        """Gives the frames to both groups: presence events only to `_live`, removals only to clients that know them."""
        for group in (self._live, self._restricted):
            if group is None or not group.members:
                continue
            visible = frames
            if group is self._restricted:
                visible = [frame for frame in frames if not is_presence_event(frame.type)]
            knowing = group.knows_removals()
            self._count([frame for frame in visible if not frame.is_removal], len(group.members))
            self._count([frame for frame in visible if frame.is_removal], knowing)
            group.broadcast_with_removals(visible, knowing)

    def _replay(
        self,
        frames: Collection[Frame],
        cursor: StreamCursor | None,
        exclusions: Mapping[Connection, Collection[Frame]] = NO_EXCLUSIONS,
    ) -> list[Connection]:
        """Sends the frames to the replaying members. Returns the members whose snapshot is no longer newer than the room."""
        caught_up = []
        for connection, (subscription, since) in tuple(self._replaying.items()):
            theirs = without(frames, exclusions.get(connection, ()))
            visible = _visible(connection, subscription, [frame for frame in theirs if since.passes(frame)])
            if not connection.send(visible):
                connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
            elif cursor is not None and cursor.has_reached(since.head):
                caught_up.append(connection)
        return caught_up

    def _count(self, frames: Collection[Frame], members: int) -> None:
        """Counts frames that are delivered to so many members."""
        if not members or not frames:
            return
        metrics = self._context.metrics
        metrics.delivery.fanout_members.observe_repeated(members, len(frames))
        type_, size, number = "", 0, 0
        for frame in frames:  # mostly of one type
            if frame.type != type_:
                if number:
                    metrics.messages.count_out(type_, size, members, number)
                type_, size, number = frame.type, 0, 0
            size += len(frame.payload)
            number += 1
        metrics.messages.count_out(type_, size, members, number)

    def write(self, max_members: int) -> bool:
        """Writes to at most `max_members` members. True if there is more to write."""
        live, restricted = self._live, self._restricted
        if restricted is not None:
            self._write_to_both(max_members, restricted)
            return self.is_writing
        broadcasts = live.broadcasts
        while broadcasts and max_members > 0:
            max_members -= live.write(max_members)
        return bool(broadcasts)

    def _write_to_both(self, max_members: int, restricted: LiveMembers) -> None:
        half = max_members // 2  # so that no group waits until the other has finished
        for group, limit in ((restricted, half), (self._live, max_members - half), (restricted, max_members)):
            left = min(limit, max_members)
            while group.broadcasts and left > 0:
                written = group.write(left)
                left -= written
                max_members -= written

    def drop_broadcasts(self) -> None:
        """Drops the unfinished broadcasts."""
        self._exclusions = None
        self._live.drop_broadcasts()
        if self._restricted is not None:
            self._restricted.drop_broadcasts()


def _visible(connection: Connection, subscription: Subscription, frames: list[Frame]) -> list[Frame]:
    """Returns the frames that the subscription's right to presence allows, and that the client knows."""
    if subscription.presence is PresenceAccess.LISTED:
        frames = [frame for frame in frames if not is_presence_event(frame.type)]
    if not any(frame.is_removal for frame in frames) or REMOVAL in connection.session.features:
        return frames
    return [frame for frame in frames if not frame.is_removal]


def _buffer_presence(buffers: Mapping[Connection, list[Frame]], frames: Iterable[Frame]) -> None:
    presence = [frame for frame in frames if is_presence_event(frame.type)]
    for buffer in buffers.values():
        buffer.extend(presence)
