"""The hub: channel → connections on this node, and the fan-out of what the relay brings."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING

from service.contract.model import ChannelSpec
from service.core.broker import Snapshot
from service.core.channel import ChannelKey
from service.core.clock import Clock, Timer
from service.core.event import Event
from service.core.sequence import Sequence
from service.core.session import Phase, Subscription
from service.protocol.close import CloseCode
from service.realtime.frame import Floor, Frame, bursts
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.realtime.connection import Connection


class Room:
    """One channel on this node: its members, and the frames waiting for the next flush.

    `lock` is held across the first join and the last leave, and is the only lock in the realtime core.
    """

    __slots__ = (
        "_clock",
        "_due",
        "_flushed",
        "_most",
        "_pending",
        "_serial",
        "_timer",
        "carried",
        "catching_up",
        "dropped",
        "joining",
        "key",
        "live",
        "lock",
        "metrics",
        "occupants",
        "sequence",
        "spec",
        "waiting",
    )

    def __init__(self, key: ChannelKey, spec: ChannelSpec, clock: Clock, metrics: Metrics, most: int) -> None:
        self.key = key
        self.spec = spec
        self.metrics = metrics
        self.lock = asyncio.Lock()
        self.occupants: dict[Connection, Subscription] = {}
        """Everyone who has joined, held ones too."""
        self.live: dict[Connection, Subscription] = {}
        """Those who get deliveries."""
        self.joining: dict[Connection, list[Frame]] = {}
        """Those whose snapshot is being read, and what came meanwhile."""
        self.catching_up: dict[Connection, tuple[Subscription, Floor]] = {}
        """Those whose snapshot was ahead of the room: they get what is news to them until the room has come as far."""
        self.sequence: Sequence | None = None
        """How far the room has come; None while nobody listens, and until the first snapshot is there."""
        self.waiting: list[Event] | None = None
        """Events that came while the stream is being read; None while they go out as they come."""
        self.carried = False
        """Whether the broker delivers this channel."""
        self.dropped = False
        """Whether the hub has forgotten this room; whoever waited for its lock must start again."""
        self._clock = clock
        self._most = most
        self._pending: dict[int | tuple[str, str, str], Frame] = {}
        self._serial = count()
        self._flushed = float("-inf")
        self._due = float("inf")
        self._timer: Timer | None = None

    @property
    def is_listening(self) -> bool:
        """Whether anyone would get a frame now. Held members read what they missed from the broker."""
        return bool(self.live or self.joining or self.catching_up)

    def push(self, frame: Frame, window: float) -> None:
        """Takes a frame; it goes out within `window` seconds of the last flush, at once after a longer silence.

        A frame with a shorter window takes along all that wait before it: order within a channel holds across types.
        """
        if frame.ordered and frame.key is not None:
            self._pending.pop(frame.key, None)
        self._pending[frame.key if frame.key is not None else next(self._serial)] = frame
        now = self._clock.monotonic()
        due = max(now, self._flushed + window) if window > 0 else now
        if due < self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._due = due
            self._timer = self._clock.call_later(due - now, self.flush)

    def flush(self) -> None:
        """Sends what waits to every live member, and keeps it for those who are joining."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = float("inf")
        if not self._pending:
            return
        frames, self._pending = self._pending, {}
        self._flushed = self._clock.monotonic()
        for waiting in self.joining.values():
            waiting.extend(frames.values())
        caught_up = self._catch_up(frames.values()) if self.catching_up else ()
        self._fan_out(frames)
        for connection in caught_up:
            self.live[connection], _ = self.catching_up.pop(connection)

    def _catch_up(self, frames: Iterable[Frame]) -> list[Connection]:
        caught_up = []
        for connection, (_, floor) in tuple(self.catching_up.items()):
            if not connection.send([frame for frame in frames if floor.passes(frame)]):
                connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
            elif self.sequence is not None and self.sequence.has_reached(floor.mark):
                caught_up.append(connection)
        return caught_up

    def _fan_out(self, frames: dict[int | tuple[str, str, str], Frame]) -> None:
        if not self.live:
            return
        self._count(frames)
        last = next(reversed(self.live))
        for burst in bursts(frames.values(), self._most):
            slow = [member for member in self.live if not member.deliver(burst, measured=member is last)]
            for connection in slow:  # at once: it must not get the next burst, with a hole before it
                connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")

    def _count(self, frames: dict[int | tuple[str, str, str], Frame]) -> None:
        members = len(self.live)
        for frame in frames.values():
            sent, size = self.metrics.out(frame.type)
            sent.inc(members)
            size.inc(members * len(frame.payload))
            self.metrics.fanout.observe(members)

    async def written(self, most: float) -> None:
        """Waits until every live member has written what it has been given, or `most` seconds: nobody waits for the slow."""
        self.flush()
        members = [asyncio.ensure_future(member.drained()) for member in (*self.live, *self.catching_up)]
        try:
            if members:
                await asyncio.wait(members, timeout=most)
        finally:
            for member in members:
                member.cancel()

    def begin(self, connection: Connection, subscription: Subscription) -> None:
        """Opens the buffer in which live events wait behind the snapshot."""
        if not self.is_listening:  # nobody has minded the order so far
            self.sequence, self.waiting = None, []
        self.flush()
        subscription.phase = Phase.JOINING
        self.joining[connection] = []

    def continues(self, connection: Connection, snapshot: Snapshot) -> bool:
        """Whether what has come for a joining connection follows on its snapshot, without a hole."""
        self.flush()
        floor = Floor(snapshot.mark)
        for frame in self.joining[connection]:
            before = floor.mark.offset
            if not floor.passes(frame) or frame.restarts:
                continue
            if frame.offset is not None and frame.offset != before + 1:
                return False
            floor.reach(frame)
        sequence = self.sequence
        if sequence is None:
            return True
        mark, reached = sequence.mark, floor.mark
        if mark.epoch != reached.epoch:
            return self.waiting is not None  # a repair is under way that will tell everyone of the new epoch
        return mark.offset <= reached.offset and mark.rev <= reached.rev

    def go_live(self, connection: Connection, subscription: Subscription, snapshot: Snapshot) -> list[Frame]:
        """From here on the connection gets what the snapshot does not hold; returns what of that has come already."""
        self.flush()
        floor = Floor(snapshot.mark)
        waiting = [frame for frame in self.joining.pop(connection) if floor.passes(frame)]
        subscription.phase = Phase.LIVE
        if self.sequence is None or self.sequence.has_reached(floor.mark):
            self.live[connection] = subscription
        else:
            self.catching_up[connection] = (subscription, floor)
        return waiting

    def detach(self, connection: Connection) -> None:
        """Stops delivery to a connection that stays in the room; harmless if it gets none."""
        self.live.pop(connection, None)
        self.joining.pop(connection, None)
        self.catching_up.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Takes a connection out; harmless if it is not in."""
        self.occupants.pop(connection, None)
        self.detach(connection)

    def discard(self) -> None:
        """Marks the room as forgotten and lets its timer go."""
        self.dropped = True
        self._pending.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Hub:
    """All rooms of this node."""

    def __init__(self, clock: Clock, metrics: Metrics, most_batch: int) -> None:
        self._clock = clock
        self._metrics = metrics
        self._most_batch = most_batch
        self._rooms: dict[ChannelKey, Room] = {}

    def get(self, key: ChannelKey) -> Room | None:
        """The channel's room, if anyone is or was just in it."""
        return self._rooms.get(key)

    def open(self, key: ChannelKey, spec: ChannelSpec) -> Room:
        """The channel's room, made if there is none."""
        room = self._rooms.get(key)
        if room is None:
            room = self._rooms[key] = Room(key, spec, self._clock, self._metrics, self._most_batch)
            self._metrics.channels.inc()
        return room

    def drop(self, room: Room) -> None:
        """Forgets an empty room."""
        room.discard()
        if self._rooms.pop(room.key, None) is not None:
            self._metrics.channels.dec()

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
