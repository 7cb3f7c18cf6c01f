"""Finding and closing gaps: between what the broker delivered to this node and what is in its streams.

Clients of this node notice nothing of a gap that can be closed. One that can't is announced: `subscribed` in place, with
`recovered: false`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import islice

import structlog

from service.aio.timers import sleep
from service.core.backoff import Backoff
from service.core.broker import Broker, DeliveredHead, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.clock import Timer
from service.core.event import Event
from service.core.limits import RepairLimits
from service.core.position import Position
from service.errors import ServiceError
from service.realtime.connections.encoder import MAX_BATCH_BYTES
from service.realtime.connections.frame import restart_frame
from service.realtime.delivery.event_sequencer import StreamRead
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.realtime.runtime import Runtime

MAX_READS = 64
"""Streams read at a time, so that thousands of doubtful channels do not crowd out everything else."""
PORTION = 100
"""Missed events delivered at a time, of MAX_BURST_BYTES at most: all at once would not fit into anyone's outbox."""
PAGE = 500
"""Events of a new epoch read in one call."""
SLICE = 500
"""Channels whose positions are asked for in one call."""
GRACE = 0.1
"""Seconds for events on their way to arrive, before a position behind the stream's counts as a gap."""
RETRY = 0.1
MAX_RETRY = 2.0
"""Seconds between two tries while the broker is away: the first, and the longest."""

_log = structlog.get_logger("repair")


class GapRecovery:
    """Reads what is missing from the streams, and delivers it before anything newer."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        runtime: Runtime,
        limits: RepairLimits,
        push: Callable[[Room, Event], None],
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._runtime = runtime
        self._limits = limits
        self._push = push
        self._reads = asyncio.Semaphore(MAX_READS)
        self._doubted: dict[ChannelKey, None] = {}
        self._suspected: dict[Room, Timer] = {}
        self._wake = asyncio.Event()
        self._timer: Timer | None = None
        outages = runtime.outages
        self._reading = outages.log(_log, "repair waits for the broker", "repair goes on", runtime.clock.monotonic)
        self._checking = outages.log(
            _log, "position check waits for the broker", "positions checked again", runtime.clock.monotonic
        )
        self._all_due = False
        """Whether it is time to compare all rooms."""

    def start(self) -> None:
        """Begins to compare positions: at once after an interruption, and all of them now and then."""
        self._look_after(self._limits.check)
        self._runtime.tasks.spawn("position check", self._check(), critical=True)

    def close(self) -> None:
        """Lets the timers go; the supervisor ends the tasks."""
        for timer in (*self._suspected.values(), *([self._timer] if self._timer else [])):
            timer.cancel()
        self._suspected.clear()

    # --- one room -----------------------------------------------------------------------------------------------------

    def begin(self, room: Room, cause: str) -> None:
        """Reads a room's stream from where the room stands. Events wait meanwhile."""
        read = room.sequencer.start_read()
        if read is not None:
            self._runtime.metrics.streams.gaps.labels(cause=cause).inc()
            self._runtime.tasks.spawn("repair", self._repair(room, read))

    def start_order(self, room: Room, snapshot: Snapshot) -> None:
        """Starts a room's order at its first snapshot, and delivers the events that waited for that."""
        if not room.sequencer.start(snapshot, partial(self._push, room)):
            self.begin(room, "jump")

    def suspect(self, room: Room, mark: StreamHead) -> None:
        """Looks again soon whether a room has come as far as its stream was; of another epoch nothing can be on its way."""
        cursor = room.sequencer.cursor
        if cursor is not None and cursor.head.epoch != mark.epoch:
            self.begin(room, "check")
        elif room not in self._suspected:
            self._suspected[room] = self._runtime.clock.call_later(GRACE, partial(self._look_again, room, mark))

    def compare(self, room: Room) -> None:
        """Has a room compared with its stream at once: what came to it does not fit what it has delivered."""
        self._doubted[room.key] = None
        self._wake.set()

    async def compare_now(self, room: Room) -> None:
        """The same, and returns when it is done. Raises ServiceError."""
        await self._compare([room.key], lambda room, _: self.begin(room, "check"))

    def _look_again(self, room: Room, mark: StreamHead) -> None:
        self._suspected.pop(room, None)
        if _is_behind(room, mark):
            self.begin(room, "check")

    async def _repair(self, room: Room, read: StreamRead) -> None:
        sequencer = room.sequencer
        try:
            while (snapshot := await self._read(room, read)) is not None:
                if not await self._apply(room, snapshot, read):
                    continue
                if sequencer.deliver_waiting(read, partial(self._push, room)):
                    return
        finally:
            sequencer.end_read(read)  # if nobody listened for a while, the order has started again

    async def _read(self, room: Room, read: StreamRead) -> Snapshot | None:
        """What the stream holds after the room's position; None if nobody is interested any more."""
        backoff = Backoff(RETRY, MAX_RETRY)
        sequencer = room.sequencer
        try:
            while sequencer.is_current(read) and (cursor := sequencer.cursor) is not None and room.is_listening:
                try:
                    async with self._reads:
                        # They were published before the stream is read, so that will show them, or they are lost.
                        read.clear()
                        snapshot = await self._read_after(room, cursor.delivered)
                except ServiceError as error:
                    self._runtime.metrics.streams.repair_failures.inc()
                    self._reading.failed(room, code=error.code.code)
                    await sleep(self._runtime.clock, backoff.next())
                    continue
                return snapshot if sequencer.is_current(read) and room.is_listening else None
            return None
        finally:
            self._reading.recovered(room)

    async def _read_after(self, room: Room, known: DeliveredHead) -> Snapshot:
        """What follows on how far the room has come, or how its new epoch began."""
        snapshot = await self._broker.snapshot(room.key, known.position, self._limits.events, self._limits.bytes)
        if not snapshot.recovered and snapshot.position.epoch == known.position.epoch:
            # Too much is missing; or the stream was set back, and this begins its new epoch.
            [mark] = await self._broker.stream_heads([room.key], [known])
            if mark is not None and mark.epoch != known.position.epoch:
                snapshot = await self._broker.snapshot(
                    room.key, known.position, self._limits.events, self._limits.bytes
                )
        if snapshot.position.epoch == known.position.epoch:
            return snapshot
        return await self._from_base(room, snapshot)

    async def _from_base(self, room: Room, snapshot: Snapshot) -> Snapshot:
        """A snapshot in a new epoch, as of where that began, with what has been published since; the same one if that is not
        there any more, is not known, or is too much."""
        base, top = snapshot.epoch_start, snapshot.position
        if base is None or room.spec.history is None or not 0 < top.offset - base <= self._limits.events:
            return snapshot
        events: list[Event] = []
        after = max(0, base - 1)  # with the event at the base, for its id
        while after < top.offset:
            page = await self._broker.history(room.key, after, None, min(PAGE, top.offset - after))
            events += page.events
            too_much = sum(len(event.data) for event in events) > self._limits.bytes
            if page.position.epoch != top.epoch or not page.events or too_much:
                return snapshot
            after = events[-1].offset or 0
        last = events.pop(0).id if events[0].offset == base else None
        if [event.offset for event in events] != list(range(base + 1, top.offset + 1)):
            return snapshot
        start = Position(top.epoch, base, last)
        return Snapshot(
            start, snapshot.state, events, recovered=False, state_version=snapshot.state_version, epoch_start=base
        )

    async def _apply(self, room: Room, snapshot: Snapshot, read: StreamRead) -> bool:
        """False if nobody was interested any more before all was delivered."""
        sequencer = room.sequencer
        if sequencer.cursor is None:
            return False
        before = sequencer.cursor.head
        if snapshot.position.epoch != before.epoch:
            self._runtime.metrics.streams.epoch_changes.inc()
        if not snapshot.recovered:
            lost = room.spec.history is not None  # without history there are no durable events to lose
            room.push(restart_frame(room.key, snapshot, self._runtime.clock.monotonic(), lost=lost), 0.0)
            sequencer.reset(snapshot)
            self._runtime.metrics.streams.repairs.labels(outcome="announced").inc()
        for portion in _portions(snapshot.missed):
            for event in portion:
                sequencer.advance(event)
                self._push(room, event)
            with suppress(TimeoutError):  # a member that does not read must not hold up the others
                async with asyncio.timeout(MAX_RETRY):
                    await room.wait_written()
            if not sequencer.is_current(read):
                return False
        if not snapshot.recovered:
            return True
        news = [event for event in snapshot.state if (event.state_version or 0) > before.state_version]
        for event in news:
            self._push(room, event)
        sequencer.reset(snapshot)
        self._runtime.metrics.streams.repairs.labels(outcome="repaired").inc()
        self._runtime.metrics.streams.repaired_events.inc(len(snapshot.missed) + len(news))
        return True

    # --- many rooms ---------------------------------------------------------------------------------------------------

    def doubt(self, channels: Collection[ChannelKey] | None) -> None:
        """Has these channels compared with their streams; None: all."""
        self._runtime.metrics.streams.interruptions.inc()
        self._doubted.update(dict.fromkeys(self._hub.keys() if channels is None else channels))
        self._wake.set()

    async def _check(self) -> None:
        backoff = Backoff(RETRY, MAX_RETRY)
        while True:
            await self._wake.wait()
            self._wake.clear()
            all_due, self._all_due = self._all_due, False
            try:
                await self._compare_doubted()
                if all_due:
                    await self._compare(list(self._hub.keys()), self.suspect)
                    self._look_after(self._limits.check)
                backoff.reset()
                self._checking.recovered()
            except ServiceError as error:
                self._checking.failed(code=error.code.code)
                self._look_after(backoff.next())

    def _look_after(self, seconds: float) -> None:
        """Has all rooms compared then."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._runtime.clock.call_later(seconds, self._all_are_due)

    def _all_are_due(self) -> None:
        self._all_due = True
        self._wake.set()

    async def _compare_doubted(self) -> None:
        while self._doubted:
            some = list(islice(self._doubted, SLICE))
            await self._compare(some, lambda room, _: self.begin(room, "interruption"))
            for channel in some:
                self._doubted.pop(channel, None)

    async def _compare(self, channels: list[ChannelKey], found: Callable[[Room, StreamHead], None]) -> None:
        for start in range(0, len(channels), SLICE):
            some = channels[start : start + SLICE]
            known = [None if (room := self._hub.get(channel)) is None else _known(room) for channel in some]
            for channel, mark in zip(some, await self._broker.stream_heads(some, known), strict=True):
                room = self._hub.get(channel)
                if room is None or mark is None or (cursor := room.sequencer.cursor) is None:
                    continue
                if mark.epoch == cursor.head.epoch:
                    room.sequencer.clear_repeats()
                if _is_behind(room, mark):
                    found(room, mark)


def _portions(events: Sequence[Event]) -> Iterator[list[Event]]:
    portion: list[Event] = []
    size = 0
    for event in events:
        if portion and (len(portion) >= PORTION or size + len(event.data) > MAX_BATCH_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(event)
        size += len(event.data)
    if portion:
        yield portion


def _known(room: Room) -> DeliveredHead | None:
    cursor = room.sequencer.cursor
    return None if cursor is None or not room.is_listening else cursor.delivered


def _is_behind(room: Room, mark: StreamHead) -> bool:
    """Whether a room that minds its order has not come as far as a mark."""
    cursor = room.sequencer.cursor
    if room.sequencer.is_reading or cursor is None or not room.is_listening:
        return False
    return not cursor.has_reached(mark)
