"""Tells endpoints of begins and ends, in the order that survives the death of any node.

- A begin is told after the store has the fact. If the node dies in between, the node that sweeps its entries tells it.
- An end is told before the store removes the fact. If the node dies in between, the next sweep tells it again, with the same id.
- Somebody may join the fact between the tell of its end and its removal. Then it begins again, in a period of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable

from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Publication
from service.core.presence import PresenceEntry, PresenceJoin, PresenceStore
from service.core.webhooks import Entry, WebhookTeller
from service.errors import ErrorCode, ServiceError
from service.realtime.facts.fact import Fact, Period, begin_entry, end_entry, order_key, period_of

NO_EVENT = Publication(ChannelKey("", "webhook-facts"), "webhook.fact", "", Delivery.EPHEMERAL, b"{}", None, 0)
"""Stands for the events of the presence port, which the store of facts does not publish."""


def no_event(channel: ChannelKey, user: str) -> Publication:
    """A LeaveEventFactory: nothing is published."""
    return NO_EVENT


def join_of(entry: PresenceEntry, period: Period) -> PresenceJoin:
    """Returns the entry of a node for the store, with the period that counts if the fact begins with it."""
    return PresenceJoin(entry, period.encode(), NO_EVENT)


class FactTeller:
    """Appends entries to the queues of webhooks."""

    def __init__(self, node_id: str, store: PresenceStore, webhooks: WebhookTeller, clock: Clock) -> None:
        """`store` keeps the facts. `clock`: the store clock."""
        self._node_id = node_id
        self._store = store
        self._webhooks = webhooks
        self._clock = clock

    async def begin(self, fact: Fact, period: Period) -> None:
        """Tells the begin of a period. May be repeated. Raises ServiceError if the store is away."""
        if period.tells_begin:
            await self._tell(fact, period, begin_entry(fact, period))

    async def end(self, fact: Fact, period: Period, code: int | None = None) -> None:
        """Tells the end of a period. May be repeated. Raises ServiceError if the store is away."""
        if period.tells_end:
            await self._tell(fact, period, end_entry(fact, period, milliseconds(self._clock), code))

    async def resume(self, fact: Fact, period: Period) -> None:
        """Tells that a fact begins again, if its store entry has outlived the tell of the end. May be repeated.

        Raises ServiceError if the store is away.
        """
        partition, name = fact.partition, fact.name
        [found] = await self._store.find_all([(partition, name)])
        if found is None or not found.connections or not period.is_same(period_of(found.info)):
            return  # it has ended, or begun anew
        # While this entry is there, the fact cannot end, so its period can be replaced.
        join = join_of(PresenceEntry(partition, name, f"{self._node_id}+"), following := period.resumed(self._node_id))
        has_begun = (await self._store.join(join)).changed
        if not has_begun:
            await self._store.update(join)
            await self.begin(fact, following)
        [left] = await self._store.leave_all([join.entry], no_event)
        if left.changed and not has_begun:
            await self.end(fact, following)
        elif has_begun and not left.changed:
            await self.begin(fact, following)

    async def _tell(self, fact: Fact, period: Period, entry: Entry) -> None:
        try:
            await self._webhooks.tell(fact.endpoint, fact.tenant, order_key(fact, period), entry)
        except ServiceError as error:
            if error.code is not ErrorCode.OVERLOADED:
                raise
            self._webhooks.dropped(fact.endpoint)  # the queue is full: waiting would only need memory here


async def gather_all(work: Iterable[Awaitable[None]]) -> None:
    """Waits for all of the work, then raises the first error, if there is one."""
    for result in await asyncio.gather(*work, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
