"""Takes back what was published: one event, all of a channel, or everything by one user (docs/http-api.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from itertools import islice
from typing import NamedTuple

from service.contract.gate import Gate
from service.contract.model import DEFAULT_STATE
from service.core.broker import Broker
from service.core.channel import NAME, ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Event, Publication, Retention
from service.core.identity import Identity
from service.core.position import Position
from service.core.removal import MAX_REMOVALS, REMOVED_TYPE, is_tombstone, removal_notice, value_removal
from service.core.webhooks import EventWebhooks, publish_and_tell
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics

PAGE_EVENTS = 500
"""Events that are read in one call."""
MAX_SEARCHED = 10_000
"""Newest events among which an event is searched whose offset is not given."""
MAX_EXAMINED_EVENTS = 5_000
MAX_EXAMINED_CHANNELS = 100
"""Events and channels that one page of an erasure examines, before it returns a cursor."""
CURSOR = rf"{NAME}(?:/[0-9]{{1,15}})?"
"""The expression for a cursor: a channel, and an offset in it. A channel name contains no slash."""


class EventRemoval(NamedTuple):
    """The search for an event that is taken back."""

    event: Event | None
    """The event that was taken back, or its tombstone; None if the channel does not keep it."""
    searched: int
    """Events that were read."""


class ErasedPage(NamedTuple):
    """One page of the erasure of a user."""

    events: int
    """Events that were taken back."""
    channels: int
    """Channels that were examined to their end."""
    examined: int
    """Events that were read."""
    cursor: str | None
    """Where the next page begins; None after the last one."""


class _Cursor(NamedTuple):
    """Where an erasure continues: in this channel after this offset, or after this channel."""

    channel: str
    after: int | None = None

    def __str__(self) -> str:
        return self.channel if self.after is None else f"{self.channel}/{self.after}"

    @classmethod
    def parse(cls, text: str) -> _Cursor:
        """Parses the form of `str`."""
        channel, _, after = text.partition("/")
        return cls(channel, int(after) if after else None)


class Remover:
    """Takes back events on behalf of an identity. Every method raises ServiceError. A call that failed may be repeated: it does
    the rest."""

    def __init__(
        self, gate: Gate, broker: Broker, clock: Clock, metrics: Metrics, webhooks: EventWebhooks | None = None
    ) -> None:
        """`webhooks`: as for the publisher."""
        self._webhooks = webhooks
        self._gate = gate
        self._broker = broker
        self._clock = clock
        self._metrics = metrics.delivery

    async def remove(self, identity: Identity, channel: str, id: str, offset: int | None) -> EventRemoval:
        """Takes back a durable event, or else the value of a key, and tells subscribers.

        Without `offset`, the newest event with the id is taken back, and only the newest MAX_SEARCHED events and the state are
        searched.
        """
        spec = self._gate.authorise_removal(identity, channel).spec
        key = ChannelKey(identity.tenant, channel)
        found = EventRemoval(None, 0) if spec.history is None else await self._find(key, id, offset)
        if found.event is not None and not await self._replace(key, [found.event], spec.history):
            return found._replace(event=None)  # it has expired meanwhile
        if found.event is None and offset is None and spec.has_state:
            return await self._remove_value(key, id, found.searched)
        return found

    async def purge(self, identity: Identity, channel: str) -> Position | None:
        """Drops the history and the state of a channel. Returns its position in the new epoch; None if it was empty."""
        self._gate.authorise_removal(identity, channel)
        position = await self._broker.purge(ChannelKey(identity.tenant, channel))
        if position is not None:
            self._metrics.purges.inc()
        return position

    async def erase(self, identity: Identity, user: str, cursor: str | None) -> ErasedPage:
        """Takes back what a user has published. Examines at most MAX_EXAMINED_CHANNELS, and about MAX_EXAMINED_EVENTS.

        `cursor`: that of the page before; it matches CURSOR.
        """
        self._gate.authorise_erasure(identity)
        at = _Cursor("") if cursor is None else _Cursor.parse(cursor)
        removed = examined = channels = 0
        for name in await self._channels(identity.tenant, at):
            key, after = ChannelKey(identity.tenant, name), at.after if name == at.channel else None
            if after is None:
                state = (await self._broker.snapshot(key, None, 0, 0)).state
                removed += await self._remove_values(key, [value for value in state if value.sender == user])
                examined += len(state)
            async for page in self._pages(key, after):
                removed += await self._replace_by(user, key, page)
                examined += len(page)
                if examined >= MAX_EXAMINED_EVENTS:
                    return ErasedPage(removed, channels, examined, str(_Cursor(name, page[-1].offset)))
            channels += 1
            at = _Cursor(name)
        has_more = channels >= MAX_EXAMINED_CHANNELS
        return ErasedPage(removed, channels, examined, str(at) if has_more else None)

    async def _channels(self, tenant: str, at: _Cursor) -> Sequence[str]:
        """Returns the names of the next channels, beginning with that of the cursor if it was not examined to its end."""
        found = await self._broker.list_channels(tenant, "", MAX_EXAMINED_CHANNELS, at.channel)
        begun = [at.channel] if at.after is not None else []
        return [*begun, *(info.name for info in found)][:MAX_EXAMINED_CHANNELS]

    async def _pages(self, channel: ChannelKey, after: int | None) -> AsyncIterator[Sequence[Event]]:
        """Reads a channel's history from an offset on, oldest first."""
        after, has_more = after or 0, True
        while has_more:
            page = await self._broker.history(channel, after, None, PAGE_EVENTS)
            has_more = page.has_more
            if page.events:
                after = page.events[-1].offset or 0
                yield page.events

    async def _replace_by(self, user: str, channel: ChannelKey, events: Sequence[Event]) -> int:
        """Replaces the events of a user by their tombstones. Returns their number."""
        theirs = iter([event for event in events if event.sender == user])
        retention = self._gate.retention_of(channel.name, Delivery.DURABLE)
        removed = 0
        while part := list(islice(theirs, MAX_REMOVALS)):
            removed += await self._replace(channel, part, retention)
        return removed

    async def _replace(self, channel: ChannelKey, events: Sequence[Event], retention: Retention | None) -> int:
        """Replaces events by their tombstones, and tells subscribers of those that the channel still kept."""
        kept = await self._broker.remove_events(channel, events)
        removed = [event for event, is_kept in zip(events, kept, strict=True) if is_kept]
        if removed and retention is not None:  # without, the contract declares no history any more
            await self._broker.publish(removal_notice(channel, removed, retention, milliseconds(self._clock)))
        self._metrics.removed_events.inc(sum(not is_tombstone(event) for event in removed))
        return len(removed)

    async def _remove_value(self, channel: ChannelKey, id: str, searched: int) -> EventRemoval:
        """Removes the newest value with an id."""
        state = (await self._broker.snapshot(channel, None, 0, 0)).state
        found = next((value for value in reversed(state) if value.id == id), None)
        if found is not None and not await self._remove_values(channel, [found]):
            found = None
        return EventRemoval(found, searched + len(state))

    async def _remove_values(self, channel: ChannelKey, values: Sequence[Event]) -> int:
        """Removes values of the state, unless they were replaced meanwhile. Returns their number."""
        removed = 0
        retention = self._gate.retention_of(channel.name, Delivery.LATEST) or DEFAULT_STATE
        for value in values:
            try:
                await self._publish(value_removal(value, retention, milliseconds(self._clock)))
            except ServiceError as error:
                if error.code is not ErrorCode.CONFLICT:
                    raise
            else:
                removed += 1
        self._metrics.removed_events.inc(removed)
        return removed

    async def _publish(self, removal: Publication) -> None:
        """Publishes the removal of a value, and tells the endpoint that is told of its type."""
        endpoint = None if self._webhooks is None else self._gate.webhook_of_stored(removal.channel.name, removal.type)
        if self._webhooks is None or endpoint is None:
            await self._broker.publish(removal)
        else:
            await publish_and_tell(self._broker, self._webhooks, endpoint, removal)

    async def _find(self, channel: ChannelKey, id: str, offset: int | None) -> EventRemoval:
        if offset is not None:
            page = await self._broker.history(channel, offset - 1, None, 1)
            found = next((event for event in page.events if event.offset == offset and _has(event, id)), None)
            return EventRemoval(found, 1)
        searched, before, has_more = 0, None, True
        while has_more and searched < MAX_SEARCHED:
            page = await self._broker.history(channel, None, before, PAGE_EVENTS)
            searched += len(page.events)
            for event in reversed(page.events):
                if _has(event, id):
                    return EventRemoval(event, searched)
            has_more = page.has_more and bool(page.events)
            before = page.events[0].offset if page.events else None
        return EventRemoval(None, searched)


def _has(event: Event, id: str) -> bool:
    """Whether this event has the id, and may be taken back. What tells of a removal may not."""
    return event.id == id and event.delivery is Delivery.DURABLE and (event.type != REMOVED_TYPE or is_tombstone(event))
