"""Finds silently lost events: compares the positions of rooms with the heads of their streams."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from functools import partial
from itertools import islice

import structlog

from service.core.backoff import Backoff
from service.core.broker import Broker, DeliveredHead, StreamHead
from service.core.channel import ChannelKey
from service.core.clock import Timer
from service.core.stream_cursor import Repeats
from service.errors import ServiceError
from service.realtime.delivery.hub import Hub
from service.realtime.delivery.room import Room
from service.realtime.runtime import Runtime
from service.realtime.streams.gap_recovery import MAX_RETRY_INTERVAL, RETRY_INTERVAL

MAX_CALL_CHANNELS = 500
"""Channels whose heads are read in one call."""
IN_FLIGHT_DELAY = 0.1
"""Seconds in which events in flight may arrive. A room that is still behind its stream then has a gap."""

_log = structlog.get_logger("position_checker")


class PositionChecker:
    """Checks rooms on request, interrupted channels at once, and all rooms at an interval."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        runtime: Runtime,
        recover: Callable[[Room, str], None],
        *,
        interval: float,
    ) -> None:
        """`recover` starts gap recovery in a room, with a cause. `interval`: seconds between two checks of all rooms."""
        self._hub = hub
        self._broker = broker
        self._runtime = runtime
        self._recover = recover
        self._interval = interval
        self._requested: dict[ChannelKey, None] = {}
        """Channels to check at once, in the order of the requests."""
        self._delayed: dict[Room, Timer] = {}
        """Rooms that were behind, with the timers of their second checks after IN_FLIGHT_DELAY."""
        self._wake = asyncio.Event()
        self._timer: Timer | None = None
        self._is_full_check_due = False
        self._outage = runtime.outages.log(
            _log, "position_check_failed", "position_check_recovered", runtime.clock.monotonic
        )

    def start(self) -> None:
        """Starts the checks."""
        self._schedule_full_check(self._interval)
        self._runtime.tasks.spawn("position check", self._run(), critical=True)

    def close(self) -> None:
        """Cancels the timers. The node's task supervisor ends the task."""
        if self._timer is not None:
            self._timer.cancel()
        for timer in self._delayed.values():
            timer.cancel()
        self._delayed.clear()

    def check_room(self, room: Room) -> None:
        """Schedules a check of a room, and returns at once."""
        self._requested[room.key] = None
        self._wake.set()

    async def check_room_now(self, room: Room) -> None:
        """Checks a room and waits for the result. Raises ServiceError."""
        await self._check([room.key], lambda room, _: self._recover(room, "check"))

    def check_channels(self, channels: Collection[ChannelKey] | None) -> None:
        """Schedules a check of these channels after an interruption, and returns at once. None means all channels."""
        self._runtime.metrics.streams.interruptions.inc()
        self._requested.update(dict.fromkeys(self._hub.keys() if channels is None else channels))
        self._wake.set()

    def recover_if_behind(self, room: Room, head: StreamHead) -> None:
        """Starts gap recovery in a room, unless events in flight bring it to the head within IN_FLIGHT_DELAY."""
        cursor = room.sequencer.cursor
        if cursor is not None and cursor.head.epoch != head.epoch:
            self._recover(room, "check")  # events in flight cannot change the room's epoch
        elif room not in self._delayed:
            check = partial(self._check_again, room, head)
            self._delayed[room] = self._runtime.clock.call_later(IN_FLIGHT_DELAY, check)

    def _check_again(self, room: Room, head: StreamHead) -> None:
        self._delayed.pop(room, None)
        if _is_behind(room, head):
            self._recover(room, "check")

    async def _run(self) -> None:
        backoff = Backoff(RETRY_INTERVAL, MAX_RETRY_INTERVAL)
        while True:
            await self._wake.wait()
            self._wake.clear()
            is_full_check_due, self._is_full_check_due = self._is_full_check_due, False
            try:
                await self._check_requested()
                if is_full_check_due:
                    await self._check(list(self._hub.keys()), self.recover_if_behind)
                    self._schedule_full_check(self._interval)
                backoff.reset()
                self._outage.recovered()
            except ServiceError as error:
                self._outage.failed(code=error.code.code)
                self._schedule_full_check(backoff.next())

    def _schedule_full_check(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._runtime.clock.call_later(delay, self._start_full_check)

    def _start_full_check(self) -> None:
        self._is_full_check_due = True
        self._wake.set()

    async def _check_requested(self) -> None:
        while self._requested:
            channels = list(islice(self._requested, MAX_CALL_CHANNELS))
            for channel in channels:
                del self._requested[channel]  # a request that comes during the check needs another one
            try:
                await self._check(channels, lambda room, _: self._recover(room, "interruption"))
            except BaseException:
                self._requested.update(dict.fromkeys(channels))
                raise

    async def _check(self, channels: list[ChannelKey], on_behind: Callable[[Room, StreamHead], None]) -> None:
        for start in range(0, len(channels), MAX_CALL_CHANNELS):
            part = channels[start : start + MAX_CALL_CHANNELS]
            rooms = [self._hub.get(channel) for channel in part]
            delivered = [None if room is None else _delivered_head(room) for room in rooms]
            repeats = [None if room is None else _repeats(room) for room in rooms]
            heads = await self._broker.stream_heads(part, delivered)
            for channel, head, checked in zip(part, heads, repeats, strict=True):
                room = self._hub.get(channel)
                if room is None or head is None or (cursor := room.sequencer.cursor) is None:
                    continue
                if head.epoch == cursor.head.epoch:
                    room.sequencer.clear_repeats(checked)
                if _is_behind(room, head):
                    on_behind(room, head)


def _delivered_head(room: Room) -> DeliveredHead | None:
    cursor = room.sequencer.cursor
    return None if cursor is None or not room.is_listening() else cursor.head_to_check


def _repeats(room: Room) -> Repeats | None:
    cursor = room.sequencer.cursor
    return None if cursor is None else cursor.repeats


def _is_behind(room: Room, head: StreamHead) -> bool:
    """True if a room with listening members has not reached a head. False while its stream is being read."""
    cursor = room.sequencer.cursor
    if room.sequencer.is_reading or cursor is None or not room.is_listening():
        return False
    return not cursor.has_reached(head)
