"""Looks up events whose intents have no result: their node has ended, or the store gave it no answer."""

from __future__ import annotations

from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.webhooks import EntryEvent
from service.realtime.webhooks.order import OpenIntent
from service.realtime.webhooks.records import Result

PAGE_EVENTS = 500
MAX_SEARCHED = 20_000
"""Events of a channel that are read for one intent. Beyond that, nobody can tell."""
MAX_SKEW = 60_000
"""Milliseconds by which the time of an event may differ from the order of the stream: it is taken before the backend is asked and
before the intent is written, and the clocks of two nodes differ a little."""


class EventLookup:
    """Finds out what became of an event from the history or the state of its channel."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def find(self, tenant: str, open_intent: OpenIntent) -> Result:
        """Returns the result of an intent so old that its publish cannot be under way any more. Raises ServiceError."""
        entry = open_intent.intent.entry
        event = entry.event
        if event is None or entry.channel is None:
            return Result(open_intent.id)
        channel = ChannelKey(tenant, entry.channel)
        find = self._find_latest if open_intent.intent.is_latest else self._find_durable
        return await find(channel, event, open_intent)

    async def _find_durable(self, channel: ChannelKey, wanted: EntryEvent, intent: OpenIntent) -> Result:
        """Searches from the newest event back to those that are older than the intent."""
        before: int | None = None
        for _ in range(MAX_SEARCHED // PAGE_EVENTS):
            page = await self._broker.history(channel, None, before, PAGE_EVENTS)
            for event in reversed(page.events):
                if _is(event, wanted):
                    return Result(intent.id, page.position.epoch, event.offset or 0)
            if not page.events:  # if nothing was ever published, the event was not; else it may be gone
                return Result(intent.id, is_lost=page.position.offset > 0)
            oldest = page.events[0]
            if oldest.at < wanted.at - MAX_SKEW or oldest.offset == 1:
                return Result(intent.id)  # the stream has all that came later
            before = oldest.offset
        return Result(intent.id, is_lost=True)

    async def _find_latest(self, channel: ChannelKey, wanted: EntryEvent, intent: OpenIntent) -> Result:
        """Compares with the value of the key."""
        snapshot = await self._broker.snapshot(channel, None, 0, 0)
        current = [value for value in snapshot.state if (value.type, value.key) == (wanted.type, wanted.key)]
        for value in await self._broker.removed_values(channel, 0) if wanted.removed else current:
            if _is(value, wanted):
                return Result(intent.id, snapshot.position.epoch, value.state_version or 0)
        if snapshot.state_version == 0 or any(value.at < wanted.at - MAX_SKEW for value in current):
            return Result(intent.id)  # it would have replaced the value
        return Result(intent.id, is_lost=True)


def _is(event: Event, wanted: EntryEvent) -> bool:
    return event.id == wanted.id and event.sender == wanted.sender
