"""The hub: channel → connections on this node, and the fan-out of what the relay brings."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import count, pairwise, takewhile
from typing import TYPE_CHECKING

import structlog

from service.contract.model import ChannelSpec
from service.core.broker import Snapshot
from service.core.channel import ChannelKey
from service.core.clock import Timer
from service.core.event import Event
from service.core.sequence import Sequence
from service.core.session import Phase, Subscription
from service.protocol.close import CloseCode
from service.realtime.frame import MAX_BURST_BYTES, Burst, Floor, Frame, bursts
from service.realtime.socket import Sender
from service.realtime.ways import Ways

if TYPE_CHECKING:
    from service.realtime.connection import Connection


_log = structlog.get_logger("hub")

_NOW, _NEVER = float("-inf"), float("inf")
"""When a room's frames are due, if not at some time."""


FEW = 10
"""Members to whom a burst is written one by one: for so few a call of the sender hardly saves what it costs (ADR 19)."""


class _Round:
    """A burst on its way to the members there were when it was cut."""

    __slots__ = ("burst", "gone", "is_merged", "members", "next")

    def __init__(self, burst: Burst, members: tuple[Connection, ...], *, is_merged: bool = False) -> None:
        self.burst = burst
        self.members = members
        self.is_merged = is_merged
        """Whether it holds what came in several; see Room._merge."""
        self.next = 0
        """The member whose turn it is."""
        self.gone: set[Connection] | None = None
        """Those who have left since."""


class Room:
    """One channel on this node: its members, and the frames waiting to go out.

    `lock` is held across the first join and the last leave, and is the only lock in the realtime core.
    """

    __slots__ = (
        "_clock",
        "_cut_at",
        "_due",
        "_is_queued",
        "_most",
        "_pending",
        "_press",
        "_quiet",
        "_rounds",
        "_sender",
        "_sent",
        "_serial",
        "_timer",
        "_turn",
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

    def __init__(self, key: ChannelKey, spec: ChannelSpec, ways: Ways) -> None:
        self.key = key
        self.spec = spec
        self.metrics = ways.metrics
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
        self._clock = ways.clock
        self._turn = ways.turn
        self._press = ways.press
        self._most = ways.most_batch
        self._sender = ways.sender
        self._sent = ways.metrics.sent_natively
        self._pending: dict[int | tuple[str, str, str], Frame] = {}
        self._serial = count()
        self._cut_at = _NOW
        self._due = _NEVER
        self._timer: Timer | None = None
        self._rounds: deque[_Round] = deque()
        self._is_queued = False
        """Whether the turn will ask this room to write."""
        self._quiet: asyncio.Event | None = None

    @property
    def is_listening(self) -> bool:
        """Whether anyone would get a frame now. Held members read what they missed from the broker."""
        return bool(self.live or self.joining or self.catching_up)

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
        due = self._cut_at + window
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
            self._turn.fan_out_later(self)

    def _window_over(self) -> None:
        self._timer = None
        self._write_now()

    def _write_now(self) -> None:
        self._due = _NOW
        self._queue()

    def cut(self) -> None:
        """Draws a line: what waits is for those who are members now, and kept for those who are joining; what comes later
        is not mixed with it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = _NEVER
        if not self._pending:
            return
        frames, self._pending = self._pending, {}
        self._cut_at = self._clock.monotonic()
        for waiting in self.joining.values():
            waiting.extend(frames.values())
        caught_up = self._catch_up(frames.values()) if self.catching_up else ()
        if self.live:
            self._count(frames)
            members = tuple(self.live)
            self._rounds.extend(_Round(burst, members) for burst in bursts(frames.values(), self._most, self._press))
            self._queue()
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

    def _count(self, frames: dict[int | tuple[str, str, str], Frame]) -> None:
        members = len(self.live)
        for frame in frames.values():
            sent, size = self.metrics.out(frame.type)
            sent.inc(members)
            size.inc(members * len(frame.payload))
            self.metrics.fanout.observe(members)

    def fan_out(self, most: int) -> bool:
        """See turn.Room."""
        if not self._rounds and self._due == _NOW:
            self.cut()
        while self._rounds and most > 0:
            most -= self._write(most)
        if self._rounds or self._due == _NOW:
            return True
        self._is_queued = False
        if self._quiet is not None:
            self._quiet.set()
        return False

    def fail(self) -> None:
        """See turn.Room. Something was lost on its way to the members: they are ended, so that they come back and resume."""
        self._forget()
        self._is_queued = False
        if self._quiet is not None:
            self._quiet.set()
        for member in (*self.live, *self.joining, *self.catching_up):
            member.fail()

    def _write(self, most: int) -> int:
        """Gives the round's burst to its next members; returns to how many."""
        if len(self._rounds) > 1 and not self._rounds[0].next:
            self._merge()
        now = self._rounds[0]
        burst, gone = now.burst, now.gone
        end = now.next + most
        members = now.members if end >= len(now.members) and not now.next else now.members[now.next : end]
        now.next = end
        wire, bits = burst.plain, 0
        slow: list[Connection] | None = None
        rest = members
        if self._sender is not None and len(members) > FEW:
            rest = self._send(self._sender, members, burst, gone or ())
        for member in rest:
            if gone is not None and member in gone:
                continue
            try:  # costs nothing as long as nothing is raised
                if member.is_clear:
                    if member.window_bits != bits:
                        wire = burst.wire(member.window_bits)
                        bits = member.window_bits
                    member.write(wire)
                elif not member.deliver(burst):
                    slow = slow or []
                    slow.append(member)
            except Exception:
                _log.exception("a delivery failed")
                member.fail()  # it alone: it has a hole now
        if end >= len(now.members):
            self._rounds.popleft()
            took = self._clock.monotonic() - burst.frames[0].accepted
            self.metrics.delivery_seconds.observe(max(0.0, took))
        if slow is not None:
            for member in slow:  # at once: it must not get the next burst, with a hole before it
                member.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
        return len(members) or 1

    def _send(
        self, sender: Sender, members: tuple[Connection, ...], burst: Burst, gone: Collection[Connection]
    ) -> tuple[Connection, ...]:
        """Gives the burst to all those who have nothing waiting, at once, unless they are few; returns the others.

        Nothing else runs until every call of the sender is done, and then who got a part gets the rest before anything else can
        be written to them.
        """
        ready = [member for member in members if member.is_clear and member.fd >= 0 and member not in gone]
        if len(ready) <= FEW:  # where everybody publishes, most have an ack waiting
            return members
        windows = {member.window_bits for member in ready}
        short: list[tuple[Connection, bytes]] = []
        failed: list[Connection] = []
        for bits in windows:
            batch = ready if len(windows) == 1 else [member for member in ready if member.window_bits == bits]
            try:
                wire = burst.wire(bits)
                taken = sender([member.fd for member in batch], wire)
                short += [(batch[index], wire[size:]) for index, size in taken]
            except Exception:
                _log.exception("a delivery failed")
                failed += batch
        whole, parts = self._sent
        whole.inc(len(ready) - len(short) - len(failed))
        parts.inc(len(short))
        for member, part in short:
            try:
                member.complete(part)
            except Exception:
                _log.exception("a delivery failed")
                failed.append(member)
        for member in failed:
            member.fail()  # they alone: they have a hole now
        if len(ready) == len(members):
            return ()
        given = set(ready)
        return tuple(member for member in members if member not in given)

    def _merge(self) -> None:
        """Makes one round of those that have not begun and fit in one message, and small ones for who came in between.

        Every join draws a line. Were each of them a write to every member, a room with much traffic would fall further and
        further behind while thousands come back to it.
        """
        rounds = self._rounds
        frames, size, last = list[Frame](), 0, 0
        for waiting in rounds:
            size += len(waiting.burst.payload)
            if waiting.is_merged or size > MAX_BURST_BYTES or len(frames) + len(waiting.burst.frames) > self._most:
                break
            frames += waiting.burst.frames
            last += 1
        if last < 2:
            return
        merged = [rounds.popleft() for _ in range(last)]
        first = merged[0]
        known = set(first.members).difference(first.gone or ())
        parts = [(0, tuple(member for member in first.members if member in known))]
        at = 0
        for before, after in pairwise(merged):
            at += len(before.burst.frames)
            # Whoever was in the round before and has not left is in this one too, and newcomers are at its end.
            newcomers = list(takewhile(lambda member: member not in known, reversed(after.members)))
            newcomers = [member for member in reversed(newcomers) if after.gone is None or member not in after.gone]
            if newcomers:
                known.update(newcomers)
                parts.append((at, tuple(newcomers)))
        rounds.extendleft(
            _Round(Burst(tuple(frames[start:]), self._press), members, is_merged=True)
            for start, members in reversed(parts)
        )

    async def written(self, most: float) -> None:
        """Waits until every live member has written what it has been given, or `most` seconds: nobody waits for the slow."""
        self.cut()
        with suppress(TimeoutError):
            async with asyncio.timeout(most):
                while self._rounds:
                    if self._quiet is None:
                        self._quiet = asyncio.Event()
                    self._quiet.clear()
                    await self._quiet.wait()
                for member in (*self.live, *self.catching_up):
                    await member.drained()

    def standing(self) -> Snapshot | None:
        """The channel as this node knows it, without asking the broker: where the next event follows on. None if it does not
        know, or if there is more to tell of the channel than its position."""
        sequence = self.sequence
        if sequence is None or self.waiting is not None or self.spec.has_state or not self.is_listening:
            return None
        return Snapshot(sequence.position, (), (), None, sequence.mark.rev)

    def admit(self, connection: Connection, subscription: Subscription) -> None:
        """From here on the connection gets what comes after `standing`."""
        self.cut()
        subscription.phase = Phase.LIVE
        self.live[connection] = subscription

    def begin(self, connection: Connection, subscription: Subscription) -> None:
        """Opens the buffer in which live events wait behind the snapshot."""
        if not self.is_listening:  # nobody has minded the order so far
            self.sequence, self.waiting = None, []
        self.cut()
        subscription.phase = Phase.JOINING
        self.joining[connection] = []

    def continues(self, connection: Connection, snapshot: Snapshot) -> bool:
        """Whether what has come for a joining connection follows on its snapshot, without a hole."""
        self.cut()
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
        self.cut()
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
        for under_way in self._rounds:
            if under_way.gone is None:
                under_way.gone = set()
            under_way.gone.add(connection)

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
        self._rounds.clear()
        self._due = _NEVER
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Hub:
    """All rooms of this node."""

    def __init__(self, ways: Ways) -> None:
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
