"""Publishes the number of users in channels that are too large to announce each user."""

from __future__ import annotations

import structlog

from service.aio.timers import DelayedTask
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.presence import PresenceChange, PresenceStore
from service.errors import ServiceError
from service.realtime.presence.events import COUNT, PresenceEvents
from service.realtime.runtime import Runtime

COUNT_INTERVAL = 1.0
"""Minimum seconds between two counts of one channel."""

_log = structlog.get_logger("presence")


class CountPublisher:
    """Counts presence events in the metrics. In large channels, publishes the number of users in place of other events."""

    def __init__(self, store: PresenceStore, broker: Broker, events: PresenceEvents, runtime: Runtime) -> None:
        self._store = store
        self._broker = broker
        self._events = events
        self._runtime = runtime
        self._scheduled: dict[ChannelKey, DelayedTask] = {}
        self._outage = runtime.outages.log(
            _log, "presence_count_failed", "presence_count_recovered", runtime.clock.monotonic
        )

    def record_change(self, kind: str, channel: ChannelKey, change: PresenceChange) -> None:
        """Counts an event that the store has published. If it has published none, schedules a count."""
        if change.published:
            self._record_event(kind)
        elif change.changed and channel not in self._scheduled:
            publish = DelayedTask(
                self._runtime.clock, self._runtime.tasks, "presence count", lambda: self._publish(channel)
            )
            self._scheduled[channel] = publish
            publish.schedule(COUNT_INTERVAL)

    def close(self) -> None:
        """Cancels the scheduled counts."""
        for publish in self._scheduled.values():
            publish.close()
        self._scheduled.clear()

    def _record_event(self, kind: str) -> None:
        self._runtime.metrics.subscriptions.presence_events.labels(kind=kind.partition(".")[2]).inc()

    async def _publish(self, channel: ChannelKey) -> None:
        self._scheduled.pop(channel, None)
        try:
            count = await self._store.count(channel)
            await self._broker.publish(self._events.count(channel, count))
        except ServiceError as error:  # the store is away; the next presence view shows the number
            self._outage.failed(kind=COUNT, code=error.code.code)
        else:
            self._outage.recovered(kind=COUNT)
            self._record_event(COUNT)
