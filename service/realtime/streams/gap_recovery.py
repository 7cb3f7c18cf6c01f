"""Reads events from the stream that the broker did not deliver to this node.

Clients do not notice a recovered gap. For a gap that cannot be recovered, they get `subscribed` again: with `recovered: false` if
durable events may be missing, else with the state alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import structlog

from service.aio.timers import sleep
from service.core.backoff import Backoff
from service.core.broker import Broker, DeliveredHead, Snapshot
from service.core.event import Event
from service.core.limits import RepairLimits
from service.core.position import Position
from service.errors import ServiceError
from service.realtime.connections.encoder import MAX_BATCH_BYTES
from service.realtime.connections.frame import resync_frame
from service.realtime.delivery.event_sequencer import StreamRead
from service.realtime.delivery.room import Room
from service.realtime.runtime import Runtime

MAX_CONCURRENT_READS = 64
"""Streams read at the same time. The limit leaves the broker time for other calls when thousands of channels have gaps."""
MAX_PORTION_EVENTS = 100
"""Missed events delivered at a time, of at most MAX_BATCH_BYTES, so that they fit into an outbox."""
MAX_PAGE_EVENTS = 500
"""Events of a new epoch read in one call."""
RETRY_INTERVAL = 0.1
MAX_RETRY_INTERVAL = 2.0
"""Seconds between two reads while the broker is away: the first interval, and the longest."""
MAX_WRITE_WAIT = 2.0
"""Seconds that the next portion waits for members that read slowly."""

_log = structlog.get_logger("gap_recovery")


@dataclass(frozen=True, slots=True)
class _Repair:
    """What a room lacks."""

    snapshot: Snapshot
    changes: Sequence[Event]
    """The values and removals above the room's state version, in order."""
    is_state_complete: bool = True
    """False if a removal may be missing in `changes`."""


class GapRecovery:
    """Reads the missing events of a room, and delivers them before any newer event."""

    def __init__(
        self, broker: Broker, runtime: Runtime, limits: RepairLimits, deliver: Callable[[Room, Event], None]
    ) -> None:
        """`deliver` passes an event to its room."""
        self._broker = broker
        self._runtime = runtime
        self._limits = limits
        self._deliver = deliver
        self._read_slots = asyncio.Semaphore(MAX_CONCURRENT_READS)
        self._outage = runtime.outages.log(_log, "stream_read_failed", "stream_read_recovered", runtime.clock.monotonic)

    def recover(self, room: Room, cause: str) -> None:
        """Starts to read a room's stream from its cursor. Newer events wait. Does nothing if a read is in progress.

        `cause` is a label of `tidewire_gaps_total`.
        """
        read = room.sequencer.start_read()
        if read is not None:
            self._runtime.metrics.streams.gaps.labels(cause=cause).inc()
            self._runtime.tasks.spawn("gap recovery", self._recover(room, read))

    def start_order(self, room: Room, snapshot: Snapshot) -> None:
        """Starts a room's order at its first snapshot, and delivers the events that waited for it."""
        if not room.sequencer.start(snapshot, partial(self._deliver, room)):
            self.recover(room, "jump")

    async def _recover(self, room: Room, read: StreamRead) -> None:
        sequencer = room.sequencer
        try:
            while (repair := await self._read(room, read)) is not None:
                if not await self._apply(room, repair, read):
                    continue
                if sequencer.deliver_waiting(read, partial(self._deliver, room)):
                    return
        finally:
            sequencer.end_read(read)  # does nothing if the room was empty meanwhile, which restarts its order

    async def _read(self, room: Room, read: StreamRead) -> _Repair | None:
        """Reads the events after the room's position, with retries. Returns None if no member needs them any more."""
        backoff = Backoff(RETRY_INTERVAL, MAX_RETRY_INTERVAL)
        sequencer = room.sequencer
        try:
            while sequencer.is_current(read) and (cursor := sequencer.cursor) is not None and room.is_listening():
                try:
                    async with self._read_slots:
                        # The waiting events were published before this read, so it returns them unless the store lost them.
                        read.clear()
                        delivered = cursor.delivered
                        snapshot = await self._read_after(room, delivered)
                        repair = await self._read_removals(room, snapshot, delivered)
                except ServiceError as error:
                    self._runtime.metrics.streams.repair_failures.inc()
                    self._outage.failed(room, code=error.code.code)
                    await sleep(self._runtime.clock, backoff.next())
                    continue
                return repair if sequencer.is_current(read) and room.is_listening() else None
            return None
        finally:
            self._outage.recovered(room)

    async def _read_after(self, room: Room, delivered: DeliveredHead) -> Snapshot:
        """Returns the events after the room's position, or in a new epoch all events since its start."""
        epoch = delivered.position.epoch
        snapshot = await self._broker.snapshot(room.key, delivered.position, self._limits.events, self._limits.bytes)
        if not snapshot.recovered and snapshot.position.epoch == epoch:
            # The gap is too large, or the store has lost the stream's end. In the second case, this call starts a new epoch.
            [head] = await self._broker.stream_heads([room.key], [delivered])
            if head is not None and head.epoch != epoch:
                snapshot = await self._broker.snapshot(
                    room.key, delivered.position, self._limits.events, self._limits.bytes
                )
        if snapshot.position.epoch == epoch:
            return snapshot
        return await self._read_from_epoch_start(room, snapshot)

    async def _read_removals(self, room: Room, snapshot: Snapshot, delivered: DeliveredHead) -> _Repair:
        """Adds the values that were removed since the room's state version.

        A state version that is neither in the state nor a removal belongs to a value that was replaced or has ended, or to a
        removal that the broker has forgotten. The read cannot tell which, so the members get the whole state.
        """
        before = delivered.state_version
        changes = [event for event in snapshot.state if (event.state_version or 0) > before]
        missing = snapshot.state_version - before - len(changes)
        if not snapshot.recovered or missing <= 0 or not room.spec.is_removable:
            return _Repair(snapshot, changes)
        for event in await self._broker.removed_values(room.key, before):
            if event.epoch == snapshot.position.epoch and (event.state_version or 0) <= snapshot.state_version:
                changes.append(event)
                missing -= 1
        changes.sort(key=lambda event: event.state_version or 0)
        return _Repair(snapshot, changes, is_state_complete=missing <= 0)

    async def _read_from_epoch_start(self, room: Room, snapshot: Snapshot) -> Snapshot:
        """Returns a snapshot at the start of the epoch, with all events since.

        Returns the given snapshot if the start is unknown, if some events have expired, or if they exceed the limits.
        """
        epoch_start, end = snapshot.epoch_start, snapshot.position
        if epoch_start is None or room.spec.history is None or not 0 < end.offset - epoch_start <= self._limits.events:
            return snapshot
        events: list[Event] = []
        after = max(0, epoch_start - 1)  # also reads the event at the start, because the position includes its id
        while after < end.offset:
            page = await self._broker.history(room.key, after, None, min(MAX_PAGE_EVENTS, end.offset - after))
            events += page.events
            is_too_large = sum(len(event.data) for event in events) > self._limits.bytes
            if page.position.epoch != end.epoch or not page.events or is_too_large:
                return snapshot
            after = events[-1].offset or 0
        start_id = events.pop(0).id if events[0].offset == epoch_start else None
        if [event.offset for event in events] != list(range(epoch_start + 1, end.offset + 1)):
            return snapshot
        return Snapshot(
            Position(end.epoch, epoch_start, start_id),
            snapshot.state,
            events,
            recovered=False,
            state_version=snapshot.state_version,
            epoch_start=epoch_start,
        )

    async def _apply(self, room: Room, repair: _Repair, read: StreamRead) -> bool:
        """Delivers what was read. False if all members left meanwhile."""
        sequencer, snapshot = room.sequencer, repair.snapshot
        if sequencer.cursor is None:
            return False
        metrics = self._runtime.metrics.streams
        if snapshot.position.epoch != sequencer.cursor.head.epoch:
            metrics.epoch_changes.inc()
        if not snapshot.recovered:
            self._resync(room, snapshot, recovered=False)
            sequencer.reset(snapshot)
            metrics.repairs.labels(outcome="announced").inc()
        for portion in _portions(snapshot.missed):
            for event in portion:
                sequencer.advance(event)
                self._deliver(room, event)
            with suppress(TimeoutError):  # a member that does not read must not delay the others
                async with asyncio.timeout(MAX_WRITE_WAIT):
                    await room.wait_written()
            if not sequencer.is_current(read):
                return False
        if not snapshot.recovered:
            return True
        if repair.is_state_complete:
            for event in repair.changes:
                self._deliver(room, event)
        else:
            self._resync(room, snapshot, recovered=True)
        sequencer.reset(snapshot)
        metrics.repairs.labels(outcome="repaired").inc()
        metrics.repaired_events.inc(len(snapshot.missed) + len(repair.changes))
        return True

    def _resync(self, room: Room, snapshot: Snapshot, *, recovered: bool) -> None:
        # Without history, there are no durable events to recover.
        told = recovered if room.spec.history is not None else None
        room.push(resync_frame(room.key, snapshot, self._runtime.clock.monotonic(), recovered=told), 0.0)


def _portions(events: Sequence[Event]) -> Iterator[list[Event]]:
    portion: list[Event] = []
    size = 0
    for event in events:
        if portion and (len(portion) >= MAX_PORTION_EVENTS or size + len(event.data) > MAX_BATCH_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(event)
        size += len(event.data)
    if portion:
        yield portion
