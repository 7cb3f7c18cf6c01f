"""One channel on this node: its members, and the delivery of its events to them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from service.contract.model import ChannelSpec
from service.core.broker import DeliveredHead, Snapshot
from service.core.channel import ChannelKey
from service.core.position import Position
from service.core.session import PresenceAccess, Subscription
from service.realtime.connections.context import RoomContext
from service.realtime.connections.frame import Frame, SnapshotFilter
from service.realtime.delivery.batcher import Batcher
from service.realtime.delivery.event_sequencer import EventSequencer
from service.realtime.delivery.members import Members

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection


class Room:
    """The members of one channel on this node.

    An event passes its parts in this order: the sequencer orders events, the batcher joins their frames, and `Members` writes
    batches to members. Only a part itself changes its state.
    """

    __slots__ = (
        "_batcher",
        "_has_removals",
        "_idle",
        "_is_scheduled",
        "_members",
        "_scheduler",
        "is_broker_subscribed",
        "is_discarded",
        "key",
        "lock",
        "sequencer",
        "spec",
    )

    def __init__(self, key: ChannelKey, spec: ChannelSpec, context: RoomContext) -> None:
        self.key = key
        self.spec = spec
        self.lock = asyncio.Lock()
        """Held during the first join and the last leave. Its holder awaits only the broker."""
        self.is_broker_subscribed = False
        """True while the broker delivers this channel to the node."""
        self.is_discarded = False
        """True once the hub has removed this room. A task that has waited for the lock must then open a new room."""
        self.sequencer = EventSequencer()
        self._batcher = Batcher(context.clock)
        self._members = Members(context)
        self._scheduler = context.scheduler
        self._has_removals = False
        """True if a frame that waits in the batcher may be a removal."""
        self._is_scheduled = False
        """True while the scheduler will call `fan_out`."""
        self._idle: asyncio.Event | None = None
        """Set when nothing is left to write; None until something waits for it."""

    # --- frames -------------------------------------------------------------------------------------------------------

    def push(self, frame: Frame, window: float) -> None:
        """Delivers a frame at the end of its batching window: at once if nothing was delivered in the last `window` seconds."""
        batcher = self._batcher
        if not window and frame.key is None and not batcher.pending and self._members.gather(frame):
            batcher.flushed_at = frame.received_at
        else:
            if frame.is_removal:
                self._has_removals = True
            batcher.add(frame, window, self._schedule)

    def push_except(self, frame: Frame, window: float, connection: Connection) -> None:
        """Does the same as `push`, for a frame that one member does not get."""
        self._members.exclude(connection, frame)
        self._batcher.add(frame, window, self._schedule)

    def flush(self) -> None:
        """Gives the pending frames to the current members. Later frames go into a new batch."""
        frames = self._batcher.take()
        if frames:
            has_removals, self._has_removals = self._has_removals, False
            if self._members.deliver(frames, self.sequencer, has_removals=has_removals):
                self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._scheduler.schedule(self)

    def fan_out(self, max_members: int) -> bool:
        """Writes to at most `max_members` members. True if there is more to write now."""
        batcher, members = self._batcher, self._members
        if batcher.is_due and (not members.is_writing or members.can_extend):
            self.flush()
        if members.write(max_members) or batcher.is_due:
            return True
        self._end_writing()
        return False

    def _end_writing(self) -> None:
        self._is_scheduled = False
        if self._idle is not None:
            self._idle.set()

    def fail(self) -> None:
        """Closes all listening members after a fault of the service. They have missed an event, so they must reconnect."""
        self._drop_frames()
        self._end_writing()
        for member in self._members.listening:
            member.fail()

    async def wait_written(self) -> None:
        """Waits until all pending frames are written to the live members. This takes long if a member does not read."""
        self.flush()
        while self._members.is_writing:
            if self._idle is None:
                self._idle = asyncio.Event()
            self._idle.clear()
            await self._idle.wait()
        for member in self._members.receiving:
            await member.wait_written()

    # --- members ------------------------------------------------------------------------------------------------------

    @property
    def member_count(self) -> int:
        """The number of members, including pending ones."""
        return self._members.count

    def is_empty(self) -> bool:
        """True if the room has no member."""
        return not self._members.count

    def has_member(self, connection: Connection) -> bool:
        """True if the connection is a member."""
        return self._members.has(connection)

    def is_listening(self) -> bool:
        """True if any member needs frames now, so that the sequencer must keep the order."""
        return self._members.is_listening()

    def add_member(self, connection: Connection) -> None:
        """Adds a pending member."""
        self._members.add(connection)

    def remove(self, connection: Connection) -> None:
        """Removes a member, and stops delivery to it. Does nothing if it is no member."""
        self._members.remove(connection)

    def detach(self, connection: Connection) -> None:
        """Stops delivery to a connection, which stays a member. Does nothing if there is no delivery to it."""
        self._members.detach(connection)

    # --- from pending to live -----------------------------------------------------------------------------------------

    @property
    def local_position(self) -> Position | None:
        """The channel's last position, if this node knows it without a call of the broker; else None.

        Also None for a channel with state: its snapshot needs more than a position.
        """
        cursor = self.sequencer.settled_cursor
        if cursor is None or self.spec.has_state or not self._members.is_listening():
            return None
        return cursor.position

    def has_news(self, known: DeliveredHead) -> bool | None:
        """Whether anything has come after a head. None if only the store can tell: this room is not in order, or is behind."""
        cursor = self.sequencer.settled_cursor
        if cursor is None:
            return None
        head, position = cursor.head, known.position
        version = known.state_version if self.spec.has_state else head.state_version
        if head.epoch != position.epoch or head.offset < position.offset or head.state_version < version:
            return None
        return cursor.position != position or head.state_version != version

    def make_live(self, connection: Connection, subscription: Subscription) -> None:
        """Delivers to a member every frame after `local_position`."""
        self.flush()
        self._members.make_live(connection, subscription)

    def start_subscribing(self, connection: Connection, subscription: Subscription) -> None:
        """Keeps a member's frames in a buffer while its snapshot is read."""
        if not self.is_listening():  # until now no order was kept
            self.sequencer.restart()
        self.flush()
        self._members.start_subscribing(connection, subscription)

    def is_subscribing(self, connection: Connection) -> bool:
        """True while the member's snapshot is read."""
        return self._members.is_subscribing(connection)

    def cancel_subscribing(self, connection: Connection, subscription: Subscription) -> None:
        """Makes a member pending again, because its snapshot could not be read."""
        self._members.cancel_subscribing(connection, subscription)

    def is_contiguous(self, connection: Connection, snapshot: Snapshot) -> bool:
        """True if the member's snapshot and its buffered frames reach the room's position without a gap."""
        self.flush()
        snapshot_filter = SnapshotFilter(snapshot.head)
        for frame in self._members.buffered(connection):
            before = snapshot_filter.head.offset
            if not snapshot_filter.passes(frame) or frame.is_resync:
                continue
            if frame.offset is not None and frame.offset != before + 1:
                return False
            snapshot_filter.record(frame)
        cursor = self.sequencer.cursor
        if cursor is None:
            return True
        room, member = cursor.head, snapshot_filter.head
        if room.epoch != member.epoch:
            return self.sequencer.is_reading  # gap recovery will resync all members
        return room.offset <= member.offset and room.state_version <= member.state_version

    def finish_subscribing(self, connection: Connection, subscription: Subscription, snapshot: Snapshot) -> list[Frame]:
        """Delivers to a member every frame after its snapshot. Returns the buffered ones, which the caller sends."""
        self.flush()
        snapshot_filter = SnapshotFilter(snapshot.head)
        buffered = self._members.take_buffered(connection, subscription, snapshot_filter)
        cursor = self.sequencer.cursor
        if cursor is None or cursor.has_reached(snapshot_filter.head):
            self._members.make_live(connection, subscription)
        else:
            self._members.start_replaying(connection, subscription, snapshot_filter)
        return buffered

    # --- presence -----------------------------------------------------------------------------------------------------

    def start_presence_buffer(self, connection: Connection) -> None:
        """Keeps presence events for a live member in a buffer while its presence view is read."""
        self.flush()
        self._members.start_presence_buffer(connection)

    def take_presence_buffer(self, connection: Connection) -> list[Frame] | None:
        """Removes the buffer, and returns its events; None if the member has left meanwhile."""
        self.flush()
        return self._members.take_presence_buffer(connection)

    def set_presence_access(self, connection: Connection, subscription: Subscription, access: PresenceAccess) -> None:
        """Shows or hides later presence events. The member misses no other event."""
        self.flush()
        self._members.set_presence_access(connection, subscription, access)

    # --- the broker ---------------------------------------------------------------------------------------------------

    def broker_subscribed(self) -> None:
        """Records that the broker delivers this channel to the node."""
        self.is_broker_subscribed = True

    def broker_unsubscribed(self) -> None:
        """Records that the broker no longer delivers this channel."""
        self.is_broker_subscribed = False

    def discard(self) -> None:
        """Drops all frames and cancels the timer. Called when the hub removes the room."""
        self.is_discarded = True
        self._drop_frames()

    def _drop_frames(self) -> None:
        self._batcher.clear()
        self._members.drop_broadcasts()
