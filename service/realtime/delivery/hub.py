"""The hub: channel → connections on this node, and the fan-out of what the relay brings."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

from service.contract.model import ChannelSpec
from service.core.broker import Snapshot
from service.core.channel import ChannelKey
from service.core.clock import Timer
from service.core.event import Event
from service.core.position import Position
from service.core.presence import is_presence_event
from service.core.session import Phase, PresenceAccess, Subscription
from service.core.stream_cursor import StreamCursor
from service.protocol.close import CloseCode
from service.realtime.connections.context import RoomContext
from service.realtime.connections.frame import Frame, SnapshotFilter, batches
from service.realtime.delivery.broadcast import Audience

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection


_NOW, _NEVER = float("-inf"), float("inf")
"""When a room's frames are due, if not at some time."""


class Room:
    """One channel on this node: its members, and the frames waiting to go out.

    `lock` is held across the first join and the last leave, and is the only lock in the realtime core.

    Members who may not see presence are an audience of their own, made for the first of them: presence events go to the other
    one only. Every event is encoded once all the same.
    """

    __slots__ = (
        "_audience",
        "_clock",
        "_due",
        "_flushed_at",
        "_is_queued",
        "_pending",
        "_quiet",
        "_restricted",
        "_serial",
        "_timer",
        "_turn",
        "_ways",
        "carried",
        "dropped",
        "key",
        "lock",
        "metrics",
        "occupants",
        "replaying",
        "sequence",
        "spec",
        "subscribing",
        "viewing",
        "waiting",
    )

    def __init__(self, key: ChannelKey, spec: ChannelSpec, ways: RoomContext) -> None:
        self.key = key
        self.spec = spec
        self.metrics = ways.metrics
        self.lock = asyncio.Lock()
        self.occupants: dict[Connection, Subscription] = {}
        """Everyone who has joined, held ones too."""
        self.subscribing: dict[Connection, list[Frame]] = {}
        """Those whose snapshot is being read, and what came meanwhile."""
        self.replaying: dict[Connection, tuple[Subscription, SnapshotFilter]] = {}
        """Those whose snapshot was ahead of the room: they get what is news to them until the room has come as far."""
        self.viewing: dict[Connection, list[Frame]] | None = None
        """Live members who have just got the right to see presence: who is there is being read, and these presence events
        came meanwhile."""
        self.sequence: StreamCursor | None = None
        """How far the room has come; None while nobody listens, and until the first snapshot is there."""
        self.waiting: list[Event] | None = None
        """Events that came while the stream is being read; None while they go out as they come."""
        self.carried = False
        """Whether the broker delivers this channel."""
        self.dropped = False
        """Whether the hub has forgotten this room; whoever waited for its lock must start again."""
        self._clock = ways.clock
        self._turn = ways.turn
        self._ways = ways
        self._audience = Audience(ways)
        """Everybody but those of `_restricted`."""
        self._restricted: Audience | None = None
        """Those who may not see presence; None while there is nobody."""
        self._pending: dict[int | tuple[str, str, str], Frame] = {}
        self._serial = count()
        self._flushed_at = _NOW
        self._due = _NEVER
        self._timer: Timer | None = None
        self._is_queued = False
        """Whether the turn will ask this room to write."""
        self._quiet: asyncio.Event | None = None

    @property
    def _is_writing(self) -> bool:
        return bool(self._audience.broadcasts or (self._restricted is not None and self._restricted.broadcasts))

    @property
    def is_listening(self) -> bool:
        """Whether anyone would get a frame now. Held members read what they missed from the broker."""
        return bool(
            self._audience.live or self.subscribing or self.replaying or (self._restricted and self._restricted.live)
        )

    @property
    def live(self) -> Collection[Connection]:
        """Those who get deliveries."""
        return self._audience.live if self._restricted is None else (*self._audience.live, *self._restricted.live)

    def push(self, frame: Frame, window: float) -> None:
        """Takes a frame; it goes out within `window` seconds of the last one, at once after a longer silence.

        A frame with a shorter window takes along all that wait before it: order within a channel holds across types.
        """
        if frame.ordered and frame.key is not None:
            self._pending.pop(frame.key, None)
        self._pending[frame.key if frame.key is not None else next(self._serial)] = frame
        if not window:
            self._write_now()
            return
        now = self._clock.monotonic()
        due = self._flushed_at + window
        if due <= now:
            self._write_now()
        elif due < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            self._timer = self._clock.call_later(due - now, self._window_over)

    def _queue(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._turn.schedule(self)

    def _window_over(self) -> None:
        self._timer = None
        self._write_now()

    def _write_now(self) -> None:
        self._due = _NOW
        self._queue()

    def flush(self) -> None:
        """Draws a line: what waits is for those who are members now, and kept for those who are joining; what comes later
        is not mixed with it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = _NEVER
        if not self._pending:
            return
        frames, self._pending = self._pending, {}
        self._flushed_at = self._clock.monotonic()
        for waiting in self.subscribing.values():
            waiting.extend(frames.values())
        if self.viewing:
            told = [frame for frame in frames.values() if is_presence_event(frame.type)]
            for waiting in self.viewing.values():
                waiting.extend(told)
        caught_up = self._catch_up(frames.values()) if self.replaying else ()
        if self._restricted is not None:
            self._deliver_to_both(frames.values(), self._audience, self._restricted)
        elif self._audience.live:
            self._count(frames.values(), len(self._audience.live))
            self._audience.take(batches(frames.values(), self._ways.max_batch, self._ways.encoder))
            self._queue()
        for connection in caught_up:
            subscription, _ = self.replaying.pop(connection)
            self._audience_of(subscription).live[connection] = subscription

    def _deliver_to_both(self, frames: Collection[Frame], seeing: Audience, restricted: Audience) -> None:
        """Starts to deliver frames: the same bursts to both audiences, unless there is presence among them."""
        public = [frame for frame in frames if not is_presence_event(frame.type)]
        told = [frame for frame in frames if is_presence_event(frame.type)]
        self._count(public, len(seeing.live) + len(restricted.live))
        self._count(told, len(seeing.live))
        made = list(batches(frames, self._ways.max_batch, self._ways.encoder))
        if seeing.live:
            seeing.take(made)
        if restricted.live:
            restricted.take(batches(public, self._ways.max_batch, self._ways.encoder) if told else made)
        self._queue()

    def _audience_of(self, subscription: Subscription) -> Audience:
        if subscription.presence is not PresenceAccess.LISTED:
            return self._audience
        if self._restricted is None:
            self._restricted = Audience(self._ways)
        return self._restricted

    def _catch_up(self, frames: Iterable[Frame]) -> list[Connection]:
        caught_up = []
        for connection, (subscription, snapshot_filter) in tuple(self.replaying.items()):
            if not connection.send(
                _allowed(subscription, [frame for frame in frames if snapshot_filter.passes(frame)])
            ):
                connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
            elif self.sequence is not None and self.sequence.has_reached(snapshot_filter.mark):
                caught_up.append(connection)
        return caught_up

    def _count(self, frames: Iterable[Frame], members: int) -> None:
        for frame in frames if members else ():
            sent, size = self.metrics.messages.out(frame.type)
            sent.inc(members)
            size.inc(members * len(frame.payload))
            self.metrics.delivery.fanout_members.observe(members)

    def fan_out(self, most: int) -> bool:
        """See turn.Room."""
        audience = self._audience
        if self._restricted is not None:
            self._fan_out_to_both(most, audience, self._restricted)
        else:
            if not audience.broadcasts and self._due == _NOW:
                self.flush()
            while audience.broadcasts and most > 0:
                most -= audience.write(most)
        if audience.broadcasts or self._due == _NOW or (self._restricted is not None and self._restricted.broadcasts):
            return True
        self._is_queued = False
        if self._quiet is not None:
            self._quiet.set()
        return False

    def _fan_out_to_both(self, most: int, seeing: Audience, restricted: Audience) -> None:
        if not (seeing.broadcasts or restricted.broadcasts) and self._due == _NOW:
            self.flush()
        share = most // 2  # neither waits for all that the other has
        for audience, some in ((restricted, share), (seeing, most - share), (restricted, most)):
            some = min(some, most)
            while audience.broadcasts and some > 0:
                written = audience.write(some)
                some -= written
                most -= written

    def fail(self) -> None:
        """See turn.Room. Something was lost on its way to the members: they are ended, so that they come back and resume."""
        self._forget()
        self._is_queued = False
        if self._quiet is not None:
            self._quiet.set()
        for member in (*self.live, *self.subscribing, *self.replaying):
            member.fail()

    async def written(self, most: float) -> None:
        """Waits until every live member has written what it has been given, or `most` seconds: nobody waits for the slow."""
        self.flush()
        with suppress(TimeoutError):
            async with asyncio.timeout(most):
                while self._is_writing:
                    if self._quiet is None:
                        self._quiet = asyncio.Event()
                    self._quiet.clear()
                    await self._quiet.wait()
                for member in (*self.live, *self.replaying):
                    await member.drained()

    @property
    def top(self) -> Position | None:
        """Where the next event follows on, as this node knows it, without asking the broker. None if it does not know, or if
        there is more to tell of the channel than its position."""
        sequence = self.sequence
        if sequence is None or self.waiting is not None or self.spec.has_state or not self.is_listening:
            return None
        return sequence.position

    def local_snapshot(self) -> Snapshot | None:
        """The channel at its `top`; None without one."""
        top, sequence = self.top, self.sequence
        return None if top is None or sequence is None else Snapshot(top, (), (), None, sequence.state_version)

    def admit(self, connection: Connection, subscription: Subscription) -> None:
        """From here on the connection gets what comes after `local_snapshot`."""
        self.flush()
        subscription.phase = Phase.LIVE
        self._audience_of(subscription).live[connection] = subscription

    def begin(self, connection: Connection, subscription: Subscription) -> None:
        """Opens the buffer in which live events wait behind the snapshot."""
        if not self.is_listening:  # nobody has minded the order so far
            self.sequence, self.waiting = None, []
        self.flush()
        subscription.phase = Phase.SUBSCRIBING
        self.subscribing[connection] = []

    def continues(self, connection: Connection, snapshot: Snapshot) -> bool:
        """Whether what has come for a joining connection follows on its snapshot, without a hole."""
        self.flush()
        snapshot_filter = SnapshotFilter(snapshot.head)
        for frame in self.subscribing[connection]:
            before = snapshot_filter.mark.offset
            if not snapshot_filter.passes(frame) or frame.restarts:
                continue
            if frame.offset is not None and frame.offset != before + 1:
                return False
            snapshot_filter.reach(frame)
        sequence = self.sequence
        if sequence is None:
            return True
        mark, reached = sequence.head, snapshot_filter.mark
        if mark.epoch != reached.epoch:
            return self.waiting is not None  # a repair is under way that will tell everyone of the new epoch
        return mark.offset <= reached.offset and mark.state_version <= reached.state_version

    def go_live(self, connection: Connection, subscription: Subscription, snapshot: Snapshot) -> list[Frame]:
        """From here on the connection gets what the snapshot does not hold; returns what of that has come already."""
        self.flush()
        snapshot_filter = SnapshotFilter(snapshot.head)
        waiting = _allowed(
            subscription, [frame for frame in self.subscribing.pop(connection) if snapshot_filter.passes(frame)]
        )
        subscription.phase = Phase.LIVE
        if self.sequence is None or self.sequence.has_reached(snapshot_filter.mark):
            self._audience_of(subscription).live[connection] = subscription
        else:
            self.replaying[connection] = (subscription, snapshot_filter)
        return waiting

    def begin_to_view(self, connection: Connection) -> None:
        """Opens the buffer in which presence events wait behind the view that a live member is about to get."""
        self.flush()
        if self.viewing is None:
            self.viewing = {}
        self.viewing[connection] = []

    def end_viewing(self, connection: Connection) -> list[Frame] | None:
        """Closes that buffer; returns what has come, or None if the member has left meanwhile."""
        self.flush()
        return None if self.viewing is None else self.viewing.pop(connection, None)

    def grant_presence(self, connection: Connection, subscription: Subscription, access: PresenceAccess) -> None:
        """From here on the connection gets presence events, or none any more. It misses nothing else: what is on its way to
        it goes out first."""
        self.flush()
        before = self._audience_of(subscription)
        subscription.presence = access
        after = self._audience_of(subscription)
        if after is not before and connection in before.live:
            after.live[connection] = subscription
            before.release(connection)

    def detach(self, connection: Connection) -> None:
        """Stops delivery to a connection that stays in the room; harmless if it gets none."""
        self._audience.remove(connection)
        if self._restricted is not None:
            self._restricted.remove(connection)
            if not self._restricted.live and not self._restricted.broadcasts:
                self._restricted = None
        self.subscribing.pop(connection, None)
        self.replaying.pop(connection, None)
        if self.viewing is not None:
            self.viewing.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Takes a connection out; harmless if it is not in."""
        self.occupants.pop(connection, None)
        self.detach(connection)

    def discard(self) -> None:
        """Marks the room as forgotten and lets its timer go."""
        self.dropped = True
        self._forget()

    def _forget(self) -> None:
        self._pending.clear()
        self._audience.broadcasts.clear()
        if self._restricted is not None:
            self._restricted.broadcasts.clear()
        self._due = _NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _allowed(subscription: Subscription, frames: list[Frame]) -> list[Frame]:
    """Those of the frames that may be shown to a subscription."""
    if subscription.presence is not PresenceAccess.LISTED:
        return frames
    return [frame for frame in frames if not is_presence_event(frame.type)]


class Hub:
    """All rooms of this node."""

    def __init__(self, ways: RoomContext) -> None:
        self._ways = ways
        self._metrics = ways.metrics
        self._rooms: dict[ChannelKey, Room] = {}

    def get(self, key: ChannelKey) -> Room | None:
        """The channel's room, if anyone is or was just in it."""
        return self._rooms.get(key)

    def open(self, key: ChannelKey, spec: ChannelSpec) -> Room:
        """The channel's room, made if there is none."""
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = Room(key, spec, self._ways)
            self._metrics.subscriptions.channels.inc()
        return room

    def drop(self, room: Room) -> None:
        """Forgets an empty room."""
        room.discard()
        if self._rooms.pop(room.key, None) is not None:
            self._metrics.subscriptions.channels.dec()

    def keys(self) -> Collection[ChannelKey]:
        """The channels of all rooms, as they are now."""
        return self._rooms.keys()

    def rooms(self) -> Iterator[Room]:
        """Every room."""
        return iter(tuple(self._rooms.values()))

    def close(self) -> None:
        """Lets every room go."""
        for room in self.rooms():
            self.drop(room)
