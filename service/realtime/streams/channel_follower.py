"""Follows an internal channel: handles each durable event once, if the stream still holds it after an interruption."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

import structlog

from service.aio.timers import sleep
from service.core.backoff import Backoff
from service.core.broker import Broker, DeliveredHead, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.stream_cursor import EventOrder, StreamCursor
from service.errors import ServiceError
from service.realtime.runtime import Runtime

MAX_READ_BYTES = 16_777_216
"""Bytes of missed events in one read. Commands are small, so all of them fit."""
RETRY_INTERVAL = 0.1
MAX_RETRY_INTERVAL = 1.0
"""Seconds between two reads while the broker is away: the first and the longest interval. `cluster.revocations` asserts that a
revocation takes effect in time."""

_log = structlog.get_logger("control")


def _ignore(snapshot: object) -> None:
    pass


class ChannelFollower:
    """An internal subscriber of one channel.

    `handle` gets every durable event published after `start`, once and in order. After an interruption it gets the missed events
    that the stream still holds. It also gets the state at the start, each later change of the state, and ephemeral events.
    `on_new_epoch` is called after the state of a new epoch has been handled.
    """

    def __init__(
        self,
        channel: ChannelKey,
        broker: Broker,
        runtime: Runtime,
        handle: Callable[[Event], None],
        *,
        max_events: int = 0,
        on_new_epoch: Callable[[Snapshot], None] = _ignore,
        on_past: Callable[[Sequence[Event]], None] = _ignore,
    ) -> None:
        """`max_events`: the maximum number of durable events in the stream; 0 for a channel without durable events.
        `on_past` gets those that the stream holds at the start, which `handle` does not get."""
        self.channel = channel
        self._broker = broker
        self._runtime = runtime
        self._handle = handle
        self._max_events = max_events
        self._on_new_epoch = on_new_epoch
        self._on_past = on_past
        self._cursor: StreamCursor | None = None
        # A new epoch may hold events that were handled before, so events are recognized by id. Keeps twice as many ids as the
        # stream holds events, because another replica's stream may hold older ones.
        self._handled_ids: OrderedDict[str, None] = OrderedDict()
        self._is_behind = False
        self._read_task: asyncio.Task[None] | None = None
        outages = runtime.outages
        self._outage = outages.log(_log, "control_read_failed", "control_read_recovered", runtime.clock.monotonic)
        self._event_failed = outages.limited(_log, "control_event_failed", runtime.clock.monotonic, level="exception")
        self._events_lost = outages.limited(_log, "control_events_lost", runtime.clock.monotonic)

    @property
    def delivered(self) -> DeliveredHead | None:
        """The last position that was handled; None before the start."""
        return None if self._cursor is None else self._cursor.delivered

    @property
    def epoch(self) -> str:
        """The epoch of the channel; empty before the start."""
        return "" if self._cursor is None else self._cursor.head.epoch

    async def start(self) -> None:
        """Subscribes, and handles the current state. Raises ServiceError."""
        await self._broker.subscribe(self.channel)
        snapshot = await self._broker.snapshot(self.channel, None, 0, 0)
        if self._max_events:
            page = await self._broker.history(self.channel, None, None, self._max_events)
            past = [event for event in page.events if (event.offset or 0) <= snapshot.position.offset]
            for event in past:
                self._is_new(event)
            self._on_past(past)
        for event in snapshot.state:
            self._handle_safely(event)
        self._cursor = StreamCursor(snapshot)
        if self._is_behind:
            self._start_read()

    def deliver(self, event: Event) -> None:
        """Handles an event in order; a gap starts a read of the stream."""
        order = EventOrder.GAP if self._cursor is None else self._cursor.advance(event)
        if order is EventOrder.GAP:  # the read also returns this event
            self._start_read()
        elif order is EventOrder.NEXT and (event.offset is None or self._is_new(event)):
            self._handle_safely(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Reads the stream, because events may have been missed."""
        self._start_read()

    def check_head(self, head: StreamHead) -> None:
        """Reads the stream if its head is ahead of the handled events. This finds silently lost events."""
        if self._cursor is not None and not self._cursor.has_reached(head):
            self._start_read()

    def _start_read(self) -> None:
        self._is_behind = True
        if self._cursor is not None and (self._read_task is None or self._read_task.done()):
            self._read_task = self._runtime.tasks.spawn("control read", self.resync())

    async def resync(self) -> None:
        """Reads until no event is missing, with retries while the broker is away. Does nothing if none is missing."""
        backoff = Backoff(RETRY_INTERVAL, MAX_RETRY_INTERVAL)
        while self._is_behind:
            self._is_behind = False
            try:
                await self._read()
                backoff.reset()
                self._outage.recovered(self, channel=self.channel.name)
            except ServiceError as error:
                self._is_behind = True
                self._outage.failed(self, channel=self.channel.name, code=error.code.code)
                await sleep(self._runtime.clock, backoff.next())

    async def _read(self) -> None:
        cursor = self._cursor
        if cursor is None:
            return
        self._runtime.metrics.cluster.control_readings.inc()
        since = cursor.position if self._max_events else None
        snapshot = await self._broker.snapshot(self.channel, since, self._max_events, MAX_READ_BYTES)
        missed: Collection[Event] = snapshot.missed
        if snapshot.recovered is False:
            missed = (await self._broker.history(self.channel, None, None, self._max_events)).events
            self._events_lost(channel=self.channel.name, events=len(missed))
        before = cursor.head
        is_new_epoch = snapshot.position.epoch != before.epoch
        for event in missed:
            if self._is_new(event):
                self._handle_safely(event)
        for event in snapshot.state:
            if is_new_epoch or (event.state_version or 0) > before.state_version:
                self._handle_safely(event)
        if not cursor.has_reached(snapshot.head):
            cursor.reset(snapshot)
        if is_new_epoch:
            self._on_new_epoch(snapshot)

    def _is_new(self, event: Event) -> bool:
        if event.id in self._handled_ids:
            return False
        self._handled_ids[event.id] = None
        if len(self._handled_ids) > 2 * self._max_events:
            self._handled_ids.popitem(last=False)
        return True

    def _handle_safely(self, event: Event) -> None:
        try:
            self._handle(event)
        except Exception:  # an event that cannot be decoded must not stop the others
            self._event_failed(channel=self.channel.name, type=event.type)
