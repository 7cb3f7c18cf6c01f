"""Following one of the service's own channels: nothing is missed, nothing is taken twice."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection

import structlog

from service.aio.timers import sleep
from service.core.backoff import Backoff
from service.core.broker import Broker, DeliveredHead, Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.stream_cursor import EventOrder, StreamCursor
from service.errors import ServiceError
from service.realtime.runtime import Runtime

MAX_BYTES = 16_777_216
"""Bytes of missed events in one reading; commands are small."""
RETRY = 0.1
MAX_RETRY = 1.0
"""Seconds between two tries while the broker is away: the first, and the longest. `cluster.revocations` asserts that a
revocation still takes effect in time."""

_log = structlog.get_logger("control")


def _nothing(snapshot: Snapshot) -> None:
    pass


class ChannelFollower:
    """A tap of the relay on one channel.

    `take` gets every durable event that is published after `start` once and in order, also what comes while this node cannot
    hear, for as long as the stream holds it; the state as it is at the start, and each change of it; ephemeral events as they
    come. `restarted` is called when the channel was found to have started anew, after its state has been taken.
    """

    def __init__(
        self,
        channel: ChannelKey,
        broker: Broker,
        runtime: Runtime,
        take: Callable[[Event], None],
        *,
        kept: int = 0,
        restarted: Callable[[Snapshot], None] = _nothing,
    ) -> None:
        """`kept`: how many durable events the stream holds at most."""
        self.channel = channel
        self._broker = broker
        self._runtime = runtime
        self._take = take
        self._kept = kept
        self._restarted = restarted
        self._sequence: StreamCursor | None = None
        # Ids outlive epochs: a store that has started anew may still hold what was taken before. Twice what the stream holds,
        # as another replica's stream may end elsewhere.
        self._taken: OrderedDict[str, None] = OrderedDict()
        self._behind = False
        self._reading: asyncio.Task[None] | None = None
        outages = runtime.outages
        self._outage = outages.log(_log, "reading waits for the broker", "reading goes on", runtime.clock.monotonic)
        self._event_failed = outages.limited(_log, "control event failed", runtime.clock.monotonic, level="exception")
        self._not_joined_up = outages.limited(_log, "control channel could not be joined up", runtime.clock.monotonic)

    @property
    def known(self) -> DeliveredHead | None:
        """How far the channel has been taken; None before the start."""
        return None if self._sequence is None else self._sequence.delivered

    @property
    def epoch(self) -> str:
        """The channel's; empty before the start."""
        return "" if self._sequence is None else self._sequence.head.epoch

    async def start(self) -> None:
        """Subscribes and reads the state. Raises ServiceError."""
        await self._broker.subscribe(self.channel)
        snapshot = await self._broker.snapshot(self.channel, None, 0, 0)
        if self._kept:
            page = await self._broker.history(self.channel, None, None, self._kept)
            for event in page.events:
                if (event.offset or 0) <= snapshot.position.offset:
                    self._is_new(event)
        for event in snapshot.state:
            self._give(event)
        self._sequence = StreamCursor(snapshot)
        if self._behind:
            self._read_soon()

    def deliver(self, event: Event) -> None:
        """See EventSink."""
        verdict = EventOrder.GAP if self._sequence is None else self._sequence.advance(event)
        if verdict is EventOrder.GAP:  # the reading shows this event too
            self._read_soon()
        elif verdict is EventOrder.NEXT and (event.offset is None or self._is_new(event)):
            self._give(event)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """See EventSink."""
        self._read_soon()

    def compare(self, mark: StreamHead) -> None:
        """Reads the channel if it has come further than what was taken. Finds what was lost without anyone telling."""
        if self._sequence is not None and not self._sequence.has_reached(mark):
            self._read_soon()

    def _read_soon(self) -> None:
        self._behind = True
        if self._sequence is not None and (self._reading is None or self._reading.done()):
            self._reading = self._runtime.tasks.spawn("control reading", self.resync())

    async def resync(self) -> None:
        """Reads until nothing is missing; tries again while the broker is away. Harmless when nothing is."""
        backoff = Backoff(RETRY, MAX_RETRY)
        while self._behind:
            self._behind = False
            try:
                await self._read()
                backoff.reset()
                self._outage.recovered(self, channel=self.channel.name)
            except ServiceError as error:
                self._behind = True
                self._outage.failed(self, channel=self.channel.name, code=error.code.code)
                await sleep(self._runtime.clock, backoff.next())

    async def _read(self) -> None:
        sequence = self._sequence
        if sequence is None:
            return
        self._runtime.metrics.cluster.control_readings.inc()
        since = sequence.position if self._kept else None
        snapshot = await self._broker.snapshot(self.channel, since, self._kept, MAX_BYTES)
        missed: Collection[Event] = snapshot.missed
        if snapshot.recovered is False:
            missed = (await self._broker.history(self.channel, None, None, self._kept)).events
            self._not_joined_up(channel=self.channel.name, kept=len(missed))
        before = sequence.head
        restarted = snapshot.position.epoch != before.epoch
        for event in missed:
            if self._is_new(event):
                self._give(event)
        for event in snapshot.state:
            if restarted or (event.state_version or 0) > before.state_version:
                self._give(event)
        if not sequence.has_reached(snapshot.head):
            sequence.reset(snapshot)
        if restarted:
            self._restarted(snapshot)

    def _is_new(self, event: Event) -> bool:
        if event.id in self._taken:
            return False
        self._taken[event.id] = None
        if len(self._taken) > 2 * self._kept:
            self._taken.popitem(last=False)
        return True

    def _give(self, event: Event) -> None:
        try:
            self._take(event)
        except Exception:  # one event that is not understood must not keep the others from being taken
            self._event_failed(channel=self.channel.name, type=event.type)
