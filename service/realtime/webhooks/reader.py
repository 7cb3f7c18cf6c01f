"""Reads one queue from a cursor on, page by page, and orders its entries."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import structlog
from msgspec import DecodeError

from service.core.broker import Broker, HistoryPage
from service.core.channel import ChannelKey
from service.core.clock import Clock
from service.core.event import Event
from service.core.webhooks import Cursor
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.webhooks.lookup import EventLookup
from service.realtime.webhooks.order import EntryOrder, OpenIntent, Ready
from service.realtime.webhooks.records import (
    ENTRY,
    INTENT,
    RESULTS,
    Result,
    decode_intent,
    decode_results,
    decode_whole,
)

PAGE_RECORDS = 200
"""Records in one read."""
MIN_READY = 100
"""Ready entries below which more is read."""
GAP_PATIENCE = 5.0
"""Seconds for which missing records are read again before they count as lost: a replica of the store may be behind."""
MAX_LOOKUPS = 50
"""Intents that are looked up together."""

_log = structlog.get_logger("webhooks")

AppendResults = Callable[[Sequence[Result], str], Awaitable[None]]


class QueueReader:
    """Reads a queue that other nodes write to at the same time. The node that delivers the queue has one, and each reader of the
    backend API.

    A receiver that is down costs no memory: nothing is read while entries are ready.
    """

    def __init__(
        self,
        queue: ChannelKey,
        tenant: str,
        cursor: Cursor,
        broker: Broker,
        runtime: Runtime,
        append_results: AppendResults,
        on_lost: Callable[[int], None] | None,
        *,
        resolve_after: float,
    ) -> None:
        """`runtime` uses the store clock. `append_results` writes what was looked up. `on_lost` gets the number of records that
        the store has lost; None if that does not matter."""
        self._queue = queue
        self._tenant = tenant
        self._broker = broker
        self._clock: Clock = runtime.clock
        self._lookup = EventLookup(broker)
        self._append_results = append_results
        self._on_lost = on_lost
        self._resolve_after = resolve_after
        self._order = EntryOrder(tenant, cursor)
        self._gap_since: float | None = None
        self._looked_up: set[str] = set()
        """Intents whose looked-up results are in the log, and not read yet."""
        self._unreadable = runtime.outages.limited(
            _log, "webhook_record_unreadable", self._clock.monotonic, level="error"
        )
        self._lost = runtime.outages.limited(_log, "webhook_records_lost", self._clock.monotonic)
        self.head = cursor.offset
        """The offset of the newest record, as of the last read."""

    @property
    def cursor(self) -> Cursor:
        """Where the queue continues, should this be all."""
        return self._order.cursor

    @property
    def oldest_at(self) -> int | None:
        """When the first record that is not done was written, in milliseconds; None if all that were read are done."""
        return self._order.oldest_at

    def ready(self, limit: int) -> Sequence[Ready]:
        """Returns the next entries, at most `limit`."""
        return self._order.ready(limit)

    def finish(self, count: int) -> None:
        """Marks the first `count` ready entries as done."""
        self._order.finish(count)

    @property
    def next_lookup(self) -> float | None:
        """Seconds until the next intent without a result is looked up; None without one."""
        first = next((one for one in self._order.open_intents if one.id not in self._looked_up), None)
        return None if first is None else max(0.0, self._due_in(first))

    async def fill(self) -> bool:
        """Reads until enough is ready or the log ends. True if it ends. Raises ServiceError."""
        while len(self._order.ready(MIN_READY)) < MIN_READY:
            if not await self._read_page() and not await self._look_up():
                return True
        return False

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read_page(self) -> bool:
        """Reads one page. False if the log ends there, or what is next cannot be read yet."""
        order = self._order
        await asyncio.sleep(0)  # the broker in memory never waits, and a queue is long
        page = await self._broker.history(self._queue, order.read_offset, None, PAGE_RECORDS)
        if page.position.epoch != order.epoch:
            await self._enter_epoch(page)
            return True
        self.head = page.position.offset
        first = page.events[0].offset or 0 if page.events else page.position.offset + 1
        missing = first - order.read_offset - 1
        if missing > 0:
            if self._may_come(page):
                return False
            self._lose(missing)
            order.skip(first - 1)
        self._gap_since = None
        for event in page.events:
            self._add(event)
        return order.read_offset < self.head

    def _may_come(self, page: HistoryPage) -> bool:
        """Whether records that seem to be missing may only be late."""
        if self._on_lost is None:  # a reader of the API does not wait; it comes again
            return not page.events and self._order.read_offset > 0
        now = self._clock.monotonic()
        if self._gap_since is None:
            self._gap_since = now
        return now < self._gap_since + GAP_PATIENCE

    async def _enter_epoch(self, page: HistoryPage) -> None:
        """Continues in a new epoch. The store may have lost the end of the one before."""
        order, epoch = self._order, page.position.epoch
        if not order.epoch:
            cursor = Cursor(epoch, 0)
        else:
            snapshot = await self._broker.snapshot(self._queue, None, 0, 0)
            if snapshot.position.epoch != epoch:
                return  # and another one begins already
            start = snapshot.epoch_start or 0
            if start < order.read_offset:
                self._lose(order.read_offset - start)
            kept = order.cursor
            cursor = Cursor(epoch, min(kept.offset, start), tuple(one for one in kept.ahead if one <= start))
        self._order = EntryOrder(self._tenant, cursor)
        self._looked_up.clear()

    def _lose(self, count: int) -> None:
        if self._on_lost is not None:
            self._lost(queue=self._queue.name, records=count)
            self._on_lost(count)

    def _add(self, event: Event) -> None:
        offset = event.offset or 0
        try:
            if event.type == INTENT:
                self._order.add_intent(offset, event.id, event.at, decode_intent(event.data))
            elif event.type == RESULTS:
                results = decode_results(event.data).results
                self._looked_up.difference_update(result.intent for result in results)
                self._order.add_results(offset, results)
            elif event.type == ENTRY:
                self._order.add_whole(offset, event.at, decode_whole(event.data))
            else:
                raise ValueError(f"no record: {event.type}")
        except (DecodeError, ValueError):  # of a newer version, or of somebody else
            self._unreadable(queue=self._queue.name, type=event.type)
            if self._on_lost is not None:
                self._on_lost(1)
            self._order.skip(offset)

    # --- events without a result --------------------------------------------------------------------------------------

    async def _look_up(self) -> bool:
        """Looks up old intents. Call it at the end of the log: before, their results may only not be read yet.

        Appends what became of them to the log. So all readers find the same, at the same place. True if there were some.
        """
        due: list[OpenIntent] = []
        for intent in self._order.open_intents:
            if self._due_in(intent) > 0 or len(due) >= MAX_LOOKUPS:
                break
            if intent.id not in self._looked_up:
                due.append(intent)
        if not due:
            return False
        results = [await self._lookup.find(self._tenant, intent) for intent in due]
        _log.info("webhook_events_looked_up", queue=self._queue.name, events=len(results))
        await self._append_results(results, new_id())
        self._looked_up.update(intent.id for intent in due)
        return True

    def _due_in(self, intent: OpenIntent) -> float:
        return intent.at / 1_000 + self._resolve_after - self._clock.wall()
