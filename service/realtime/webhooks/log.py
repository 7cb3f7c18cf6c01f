"""Writes to queues: intents, results, and whole entries. Every node writes to every queue.

The order of events needs two records for each (docs/adr/0064-webhooks.md). The intent is awaited before the publish, so no
event is acknowledged without one. Results follow soon, many in one record. What a node cannot write any more, the owner of the
queue looks up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from service.aio.timers import sleep
from service.core.backoff import Backoff, jittered
from service.core.broker import Broker, PublishResult
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.event import Delivery, Publication
from service.core.webhooks import Cursor, DeliveryOutcome, Entry, EntryOutcome, WebhookEndpoint, WebhookLimits
from service.errors import ErrorCode, ServiceError
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.webhooks.records import (
    ENTRY,
    INTENT,
    RESULTS,
    Intent,
    Result,
    Results,
    Target,
    WholeEntry,
    encode,
    encode_intent,
    intent_of,
    queue_number,
    queue_retention,
    result_of,
    settled_entry,
)
from service.telemetry.metrics.registry import start_at_zero

JOIN_TIME = 0.02
"""Seconds for which results wait for others."""
MAX_RESULTS = 500
"""Results in one record."""
MAX_UNWRITTEN = 100_000
"""Results of one queue that wait for the store. One more drops the oldest, whose event is looked up instead."""
RETRY_INTERVAL, MAX_RETRY_INTERVAL = 0.1, 1.0
"""Seconds between two attempts to write results: first, longest."""
CLOSE_TIMEOUT = 3.0
"""Seconds in which a node that ends writes its last results."""
SETTLE_MARGIN = 2.0
"""Seconds before an event may be looked up, at which its result is no longer enough to keep it."""
RETRY_AFTER = 1.0
"""Seconds that a publisher waits at least for space in a queue."""

_log = structlog.get_logger("webhooks")


@dataclass(slots=True)
class QueueState:
    """What this node knows of one queue."""

    epoch: str = ""
    head: int = 0
    """Offset of the newest record that this node has written or seen."""
    cursor: Cursor = field(default_factory=Cursor)
    """How far its owner has reported to be."""

    @property
    def waiting(self) -> int:
        """Records that wait, as far as this node knows. Never more than there are."""
        return max(0, self.head - self.cursor.offset) if self.cursor.epoch in ("", self.epoch) else 0

    def saw(self, epoch: str, offset: int) -> None:
        """Records a position of the queue."""
        self.head = offset if epoch != self.epoch else max(self.head, offset)
        self.epoch = epoch


class WebhookLog:
    """Implements EventWebhooks and WebhookTeller."""

    def __init__(self, limits: WebhookLimits, broker: Broker, runtime: Runtime) -> None:
        """`runtime` uses the store clock."""
        self.limits = limits
        self.endpoints: Mapping[Target, WebhookEndpoint] = {
            Target(endpoint.name, tenant): endpoint for endpoint in limits.endpoints for tenant in endpoint.tenants
        }
        self._targets = {target: target for target in self.endpoints}
        self._broker = broker
        self._runtime = runtime
        self._retention = queue_retention(limits)
        self._states: dict[ChannelKey, QueueState] = {}
        self._writers: dict[ChannelKey, _ResultWriter] = {}
        self._metrics = runtime.metrics.webhooks
        self._queue_full = runtime.outages.limited(_log, "webhook_queue_full", runtime.clock.monotonic)
        outcomes = [outcome.value for outcome in (*DeliveryOutcome, *EntryOutcome)]
        for name in {endpoint.name for endpoint in limits.endpoints}:
            start_at_zero(self._metrics.webhooks, outcomes, name)

    def state(self, queue: ChannelKey) -> QueueState:
        """Returns what this node knows of a queue. The followers of leases update it."""
        return self._states.setdefault(queue, QueueState())

    # --- the ports ----------------------------------------------------------------------------------------------------

    def has(self, endpoint: str, tenant: str) -> bool:
        """True if the endpoint has the tenant. Otherwise nothing is told."""
        return (endpoint, tenant) in self._targets

    def dropped(self, endpoint: str, count: int = 1) -> None:
        """Counts entries that their source has given up."""
        self._metrics.webhooks.labels(endpoint, EntryOutcome.DROPPED.value).inc(count)

    async def tell(self, endpoint: str, tenant: str, order_key: str, entry: Entry) -> None:
        """Appends an entry to a queue. Raises ServiceError."""
        target = self._targets.get(Target(endpoint, tenant))
        if target is not None:
            await self.append(target, queue_number(order_key, self.limits.queues), WholeEntry(entry, order_key))

    async def append(self, target: Target, number: int, whole: WholeEntry) -> None:
        """Appends an entry to a queue, or again for a replay. Raises ServiceError: OVERLOADED (full), BROKER_UNAVAILABLE."""
        queue = target.queue(number)
        self._require_space(target, queue)
        await self._append(queue, ENTRY, new_id() if whole.is_replay else whole.entry.id, encode(whole))

    async def reserve(self, endpoint: str, publication: Publication) -> EventReservation | None:
        """Writes the intent to publish an event. Raises ServiceError: OVERLOADED (the queue is full), BROKER_UNAVAILABLE."""
        target = self._targets.get(Target(endpoint, publication.channel.tenant))
        if target is None:
            return None
        queue = target.queue(queue_number(publication.channel.name, self.limits.queues))
        self._require_space(target, queue)
        reservation = EventReservation(self, queue, new_id(), intent_of(publication), publication.channel.tenant)
        try:
            await self._append(queue, INTENT, reservation.id, encode_intent(reservation.intent))
        except BaseException:
            reservation.refuse()  # the intent may have been written, and would hold up the queue
            raise
        return reservation

    # --- writing ------------------------------------------------------------------------------------------------------

    @property
    def runtime(self) -> Runtime:
        """The clock, which is the store's, the tasks and the metrics."""
        return self._runtime

    def add_result(self, queue: ChannelKey, result: Result) -> None:
        """Writes a result soon, together with others, and again until the store has it."""
        writer = self._writers.get(queue)
        if writer is None:
            writer = self._writers[queue] = _ResultWriter(self, queue)
        writer.add(result)

    async def append_results(self, queue: ChannelKey, results: Sequence[Result], id: str) -> None:
        """Appends results. Raises ServiceError; a repeated call has the same id."""
        await self._append(queue, RESULTS, id, encode(Results(list(results))))

    async def append_late(self, queue: ChannelKey, key: str, entry: Entry) -> None:
        """Appends the entry of an event whose intent may have been given up, however full the queue is. Raises ServiceError."""
        await self._append(queue, ENTRY, entry.id, encode(WholeEntry(entry, key)))

    async def close(self) -> None:
        """Writes the last results. Call it when nothing is published any more, and before the broker is closed."""
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.gather(*(writer.close() for writer in self._writers.values()))
        except TimeoutError:
            _log.warning("webhook_results_not_written", results=sum(len(one.waiting) for one in self._writers.values()))

    def _require_space(self, target: Target, queue: ChannelKey) -> None:
        waiting = self.state(queue).waiting
        if waiting < self.limits.queue_entries or not self.endpoints[target].sends:
            return
        self._queue_full(endpoint=target.endpoint, waiting=waiting)
        raise ServiceError(
            ErrorCode.OVERLOADED,
            f"{waiting} webhooks wait for the endpoint {target.endpoint!r} already",
            endpoint=target.endpoint,
            retry_after=jittered(RETRY_AFTER),
        )

    async def _append(self, queue: ChannelKey, type_: str, id: str, data: bytes) -> None:
        result = await self._broker.publish(
            Publication(
                queue,
                type_,
                id,
                Delivery.DURABLE,
                data,
                None,
                milliseconds(self._runtime.clock),
                retention=self._retention,
            )
        )
        self.state(queue).saw(result.epoch, result.offset or 0)


class EventReservation:
    """Implements Reservation."""

    __slots__ = ("_began", "_began_wall", "_log", "_queue", "_tenant", "id", "intent")

    def __init__(self, log: WebhookLog, queue: ChannelKey, id: str, intent: Intent, tenant: str) -> None:
        """`id`: that of the intent's record."""
        self.id = id
        self.intent = intent
        self._log = log
        self._queue = queue
        self._tenant = tenant
        clock = log.runtime.clock
        self._began, self._began_wall = clock.monotonic(), clock.wall()

    async def settle(self, result: PublishResult) -> None:
        """Records the result. Waits, and may raise ServiceError, only if the event may have been given up meanwhile."""
        settled = result_of(self.id, result)
        if self._may_be_given_up():
            entry = settled_entry(self.intent, settled, self._tenant)
            await self._log.append_late(self._queue, entry.channel or "", entry)
        self._log.add_result(self._queue, settled)

    def refuse(self) -> None:
        """Records that the event was not published."""
        self._log.add_result(self._queue, Result(self.id))

    def _may_be_given_up(self) -> bool:
        # Both clocks: one stands still while a machine sleeps, the other may be set back.
        clock = self._log.runtime.clock
        passed = max(clock.monotonic() - self._began, clock.wall() - self._began_wall)
        return passed > self._log.limits.resolve_after - SETTLE_MARGIN


class _ResultWriter:
    """Writes the results of one queue. Its task runs while there are some."""

    def __init__(self, log: WebhookLog, queue: ChannelKey) -> None:
        self._log = log
        self._queue = queue
        self.waiting: deque[Result] = deque()
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    def add(self, result: Result) -> None:
        """Adds a result."""
        self.waiting.append(result)
        if len(self.waiting) > MAX_UNWRITTEN:
            self.waiting.popleft()
        if self._task is None or self._task.done():
            self._task = self._log.runtime.tasks.spawn("webhook results", self._run())

    async def close(self) -> None:
        """Returns when nothing waits."""
        self._is_closing = True
        while self.waiting and self._task is not None and not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        backoff = Backoff(RETRY_INTERVAL, MAX_RETRY_INTERVAL)
        while self.waiting:
            if not self._is_closing:
                await sleep(self._log.runtime.clock, JOIN_TIME)
            batch = [self.waiting.popleft() for _ in range(min(MAX_RESULTS, len(self.waiting)))]
            id_ = new_id()
            while True:
                try:
                    await self._log.append_results(self._queue, batch, id_)
                    backoff.reset()
                    break
                except ServiceError:  # the state of the broker is logged elsewhere
                    await sleep(self._log.runtime.clock, backoff.next())
