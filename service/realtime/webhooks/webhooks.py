"""The face of webhooks: starts and ends their parts, and is what the backend API uses.

webhooks = Webhooks(log, sender, node_id, candidates, broker, subscribe_internally, runtime)
await webhooks.start()
...
await webhooks.close()
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from service.core.broker import Broker, EventSink
from service.core.channel import ChannelKey
from service.core.event import Event, Publication
from service.core.webhooks import (
    Cursor,
    DeadLetterPage,
    Entry,
    EntryOutcome,
    EntryPage,
    QueueStatus,
    Reservation,
    WebhookEndpoint,
    WebhookSender,
)
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.realtime.webhooks.dead_letters import DeadLetterCounter, DeadLetters
from service.realtime.webhooks.dispatcher import Dispatcher
from service.realtime.webhooks.leases import LeaseTable
from service.realtime.webhooks.log import WebhookLog
from service.realtime.webhooks.ownership import Ownership
from service.realtime.webhooks.reader import QueueReader
from service.realtime.webhooks.records import Lease, Target, WholeEntry, queue_number

MAX_PAGES_READ = 20
"""Reads of the store for one page of entries."""
SEARCH_LIMIT = 200
"""Entries in one page of a search."""


class Webhooks:
    """Implements the ports in core/webhooks.py: EventWebhooks, WebhookTeller, Webhooks."""

    def __init__(
        self,
        log: WebhookLog,
        sender: WebhookSender,
        node_id: str,
        candidates: Callable[[], Sequence[str]],
        broker: Broker,
        subscribe_internally: Callable[[ChannelKey, EventSink], None],
        runtime: Runtime,
    ) -> None:
        """`candidates` returns the ids of the nodes that deliver queues. `runtime` uses the store clock."""
        self._log = log
        self._limits = limits = log.limits
        self._sender = sender
        self._node_id = node_id
        self._broker = broker
        self._runtime = runtime
        self._letters = {target: DeadLetters(target, limits, broker, runtime) for target in log.endpoints}
        sending = [target for target, endpoint in log.endpoints.items() if endpoint.sends]
        self._tables = {
            target: LeaseTable(target, limits, broker, runtime, partial(self._on_lease, target)) for target in sending
        }
        self._counters = {
            target: DeadLetterCounter(target, self._letters[target], limits.dead_letters, broker, runtime)
            for target in sending
        }
        self.ownership = Ownership(
            node_id, candidates, self._tables, limits.queues, self._make_dispatcher, runtime, self._on_owned
        )
        """Which queues this node delivers."""
        sink = _QueueSink(log, self.ownership)
        for target in sending:
            subscribe_internally(target.leases, self._tables[target].follower)
            subscribe_internally(target.dead_letters, self._counters[target])
            for number in range(limits.queues):
                subscribe_internally(target.queue(number), sink)
        self._export({target.endpoint for target in sending})

    async def start(self) -> None:
        """Reads the leases, and begins to deliver. Raises ServiceError."""
        await asyncio.gather(*(table.start() for table in self._tables.values()))
        self.ownership.start()

    async def close(self) -> None:
        """Hands all queues over to other nodes. Entries can still be told; `log.close` comes later."""
        await self.ownership.close()
        for counter in self._counters.values():
            counter.close()

    # --- what others tell ---------------------------------------------------------------------------------------------

    def has(self, endpoint: str, tenant: str) -> bool:
        """True if the endpoint has the tenant. Otherwise nothing is told."""
        return self._log.has(endpoint, tenant)

    async def tell(self, endpoint: str, tenant: str, order_key: str, entry: Entry) -> None:
        """Appends an entry to a queue, as `WebhookTeller.tell` promises. Raises ServiceError."""
        await self._log.tell(endpoint, tenant, order_key, entry)

    def dropped(self, endpoint: str, count: int = 1) -> None:
        """Counts entries that their source has given up."""
        self._log.dropped(endpoint, count)

    async def reserve(self, endpoint: str, publication: Publication) -> Reservation | None:
        """Writes the intent to publish an event, as `EventWebhooks.reserve` promises. Raises ServiceError."""
        return await self._log.reserve(endpoint, publication)

    # --- what the backend reads ---------------------------------------------------------------------------------------

    def endpoints(self, tenant: str) -> Sequence[WebhookEndpoint]:
        """Returns the endpoints of a tenant, by name."""
        found = (endpoint for target, endpoint in self._log.endpoints.items() if target.tenant == tenant)
        return sorted(found, key=lambda endpoint: endpoint.name)

    async def status(self, endpoint: str, tenant: str) -> Sequence[QueueStatus]:
        """Returns the status of each queue. Raises ServiceError."""
        target = self._target(endpoint, tenant)
        table = self._tables.get(target)
        if table is None:
            return [QueueStatus(number, 0, None, None, None) for number in range(self._limits.queues)]
        numbers = self._numbers(target)
        heads = await self._broker.stream_heads([target.queue(number) for number in numbers])
        found = []
        for number, head in zip(numbers, heads, strict=True):
            lease, offset = table.get(number).lease, 0 if head is None else head.offset
            cursor = lease.cursor
            waiting = max(0, offset - (cursor.offset if head is not None and cursor.epoch == head.epoch else 0))
            owner = None if table.is_free(number) else lease.node
            found.append(QueueStatus(number, waiting, lease.oldest_at if waiting else None, owner, lease.failure))
        return found

    async def read(
        self, endpoint: str, tenant: str, queue: int, after: Cursor | None, limit: int, since: int | None = None
    ) -> EntryPage:
        """Reads entries in the order of delivery, as `Webhooks.read` promises. Raises ServiceError."""
        target = self._target(endpoint, tenant)
        table = self._tables.get(target)
        if not (0 <= queue < self._limits.queues or (table is not None and queue in table.queues())):
            raise ServiceError(ErrorCode.NOT_FOUND, f"there is no queue {queue}; queues are counted from 0")
        reader = self._reader(target, queue, after or Cursor(), counts_losses=False)
        entries: list[Entry] = []
        for _ in range(MAX_PAGES_READ):
            is_end = await reader.fill()
            ready = reader.ready(limit - len(entries))
            reader.finish(len(ready))
            entries += [one.entry for one in ready if since is None or one.entry.at >= since]
            if len(entries) >= limit or (is_end and not ready):
                return EntryPage(entries, reader.cursor, bool(ready))
        return EntryPage(entries, reader.cursor, has_more=True)

    async def dead_letters(self, endpoint: str, tenant: str, after: int | None, limit: int) -> DeadLetterPage:
        """Reads dead letters after an offset, oldest first. Raises ServiceError."""
        return await self._letters[self._target(endpoint, tenant)].page(after, limit)

    # --- what the backend changes -------------------------------------------------------------------------------------

    async def replay(
        self,
        endpoint: str,
        tenant: str,
        *,
        ids: Sequence[str] = (),
        since: int | None = None,
        dead_letters: bool = False,
    ) -> int:
        """Appends entries to their queues again, as `Webhooks.replay` promises. Raises ServiceError."""
        target = self._target(endpoint, tenant)
        replay = _Replay(self._log, target)
        try:
            if since is not None:
                await self._replay_kept(target, replay, lambda entry: entry.at >= since)
            else:
                wanted = None if dead_letters else frozenset(ids)
                await self._replay_letters(target, replay, wanted)
                left = frozenset(ids) - replay.ids
                if left:
                    await self._replay_kept(target, replay, lambda entry: entry.id in left)
        except ServiceError as error:
            raise ServiceError(error.code, error.message, **{**error.details, "replayed": len(replay.ids)}) from error
        return len(replay.ids)

    async def drop(self, endpoint: str, tenant: str, *, ids: Sequence[str] = (), dead_letters: bool = False) -> int:
        """Drops dead letters. Returns their number. Raises ServiceError."""
        letters = self._letters[self._target(endpoint, tenant)]
        dropped = 0
        async for part in letters.find(None if dead_letters else frozenset(ids)):
            dropped += await letters.remove([event for _, event in part])
        return dropped

    async def _replay_letters(self, target: Target, replay: _Replay, ids: Collection[str] | None) -> None:
        letters = self._letters[target]
        async for part in letters.find(ids):
            for letter, event in part:  # one by one: what is in a queue again is no dead letter any more
                await replay.add(letter.entry)
                await letters.remove([event])

    async def _replay_kept(self, target: Target, replay: _Replay, is_wanted: Callable[[Entry], bool]) -> None:
        """Replays entries that are kept in the queues, up to where their owners, or else this call, has found them."""
        for number in self._numbers(target):
            table = self._tables.get(target)
            [head] = await self._broker.stream_heads([target.queue(number)])
            last = 0 if head is None else head.offset
            if table is not None:
                last = min(last, table.get(number).lease.cursor.offset)
            reader = self._reader(target, number, Cursor(), counts_losses=False)
            while True:
                is_end = await reader.fill()
                ready = reader.ready(SEARCH_LIMIT)
                await replay.add_all([one.entry for one in ready if one.offset <= last and is_wanted(one.entry)])
                reader.finish(len(ready))
                if reader.cursor.offset >= last or (is_end and not ready):
                    break

    # --- parts --------------------------------------------------------------------------------------------------------

    def _target(self, endpoint: str, tenant: str) -> Target:
        target = Target(endpoint, tenant)
        if target not in self._log.endpoints:
            raise ServiceError(ErrorCode.NOT_FOUND, f"the settings have no endpoint {endpoint!r} for this tenant")
        return target

    def _numbers(self, target: Target) -> Sequence[int]:
        """The queues of a target. Some are above the setting if that was larger before."""
        table = self._tables.get(target)
        return sorted({*range(self._limits.queues), *(() if table is None else table.queues())})

    def _reader(self, target: Target, number: int, cursor: Cursor, *, counts_losses: bool) -> QueueReader:
        queue = target.queue(number)
        return QueueReader(
            queue,
            target.tenant,
            cursor,
            self._broker,
            self._runtime,
            partial(self._log.append_results, queue),
            partial(self._count_lost, target.endpoint) if counts_losses else None,
            resolve_after=self._limits.resolve_after,
        )

    def _count_lost(self, endpoint: str, records: int) -> None:
        self._runtime.metrics.webhooks.webhooks.labels(endpoint, EntryOutcome.DROPPED.value).inc(records)

    def _make_dispatcher(
        self, target: Target, number: int, before: Lease, version: int, acquired_at: float
    ) -> Dispatcher:
        return Dispatcher(
            target,
            number,
            self._log.endpoints[target],
            self._node_id,
            self._reader(target, number, before.cursor, counts_losses=True),
            self._tables[target],
            version,
            acquired_at,
            self._log,
            self._letters[target],
            self._sender,
            self._broker,
            self._runtime,
        )

    def _on_lease(self, target: Target, number: int, lease: Lease) -> None:
        self._log.state(target.queue(number)).cursor = lease.cursor

    def _on_owned(self, target: Target, number: int, is_owned: bool) -> None:
        if number == 0:
            counter = self._counters[target]
            if is_owned:
                counter.start()
            else:
                counter.stop()

    def _export(self, endpoints: Iterable[str]) -> None:
        metrics = self._runtime.metrics.webhooks
        for name in endpoints:
            metrics.webhook_seconds.labels(name)
            metrics.webhook_waiting.labels(name).set_function(partial(self._waiting, name))
            metrics.webhook_oldest_seconds.labels(name).set_function(partial(self._oldest, name))
            metrics.webhook_queues.labels(name).set_function(partial(self._owned, name))
            metrics.webhook_dead_letters.labels(name).set_function(partial(self._dead, name))

    def _dispatchers(self, endpoint: str) -> Sequence[Dispatcher]:
        return [one for one in self.ownership.dispatchers.values() if one.target.endpoint == endpoint]

    def _waiting(self, endpoint: str) -> int:
        return sum(one.waiting for one in self._dispatchers(endpoint))

    def _owned(self, endpoint: str) -> int:
        return sum(one.is_running for one in self._dispatchers(endpoint))

    def _oldest(self, endpoint: str) -> float:
        oldest = [at for one in self._dispatchers(endpoint) if (at := one.reader.oldest_at) is not None]
        return max(0.0, self._runtime.clock.wall() - min(oldest) / 1_000) if oldest else 0.0

    def _dead(self, endpoint: str) -> int:
        return sum(counter.number for target, counter in self._counters.items() if target.endpoint == endpoint)


class _QueueSink:
    """Gets the records of the queues that this node delivers, as news. Implements EventSink."""

    def __init__(self, log: WebhookLog, ownership: Ownership) -> None:
        self._log = log
        self.ownership = ownership

    def deliver(self, event: Event) -> None:
        """Wakes the dispatcher of the queue."""
        if event.offset is not None:
            self._log.state(event.channel).saw(event.epoch, event.offset)
        self.ownership.wake(event.channel)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Wakes those that may have missed something."""
        for channel in list(self.ownership.dispatchers) if channels is None else channels:
            self.ownership.wake(channel)


class _Replay:
    """Entries that are told again."""

    def __init__(self, log: WebhookLog, target: Target) -> None:
        self._log = log
        self._target = target
        self.ids: set[str] = set()

    async def add_all(self, entries: Sequence[Entry]) -> None:
        """Appends entries to their queues, in order, those that were not before. Raises ServiceError at the end of all calls."""
        fresh = {entry.id: entry for entry in entries if entry.id not in self.ids}
        # All calls start in this turn, so the store takes them in this order, without a wait for each.
        results = await asyncio.gather(*map(self.add, fresh.values()), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    async def add(self, entry: Entry) -> None:
        """Appends an entry to its queue. Raises ServiceError."""
        key = entry.channel or entry.user or entry.connection or ""  # as `order_key` of facts
        number = queue_number(key, self._log.limits.queues)
        await self._log.append(self._target, number, WholeEntry(entry, key, is_replay=True))
        self.ids.add(entry.id)
