"""Delivers one queue while this node has its lease: one request at a time, in the order of the queue."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import structlog

from service.aio.timers import sleep
from service.core.backoff import Backoff
from service.core.broker import Broker
from service.core.clock import Clock, milliseconds
from service.core.webhooks import (
    ID_PREFIX,
    DeliveryOutcome,
    DeliveryReply,
    EntryOutcome,
    WebhookEndpoint,
    WebhookSender,
    encode_entry,
)
from service.errors import ServiceError
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.webhooks.dead_letters import DeadLetters
from service.realtime.webhooks.leases import LEASE_TIME, RENEW_INTERVAL, LeaseLostError, LeaseTable
from service.realtime.webhooks.log import WebhookLog
from service.realtime.webhooks.order import Ready
from service.realtime.webhooks.reader import QueueReader
from service.realtime.webhooks.records import Lease, Target

MAX_BODY = 1_048_576
"""Bytes of the entries in one request; a larger entry is sent alone."""
MAX_DELIVERED = 4_096
"""Entries of one queue that this node remembers as delivered, so that it does not send repeats of them."""
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0
"""Seconds before a failed delivery is repeated: first, longest."""
POLL_INTERVAL = 5.0
"""Seconds after which a queue is read without news of it."""
STORE_PAUSES = (0.1, 1.0)
"""The same before the store is asked again."""
COMMIT_INTERVAL = 0.1
"""Seconds between two reports of the cursor, at least. What was delivered since the last one is delivered again after a crash."""
LEASE_MARGIN = 1.0
"""Seconds before the end of a lease at which nothing is sent any more."""

_log = structlog.get_logger("webhooks")


class Batch(NamedTuple):
    """One request."""

    id: str
    """The same for each attempt."""
    body: bytes
    entries: Sequence[Ready]
    taken: int
    """Ready entries that are done with it, repeats included."""


class Dispatcher:
    """Delivers a queue from `start` until it is released, or until it has lost the lease."""

    def __init__(
        self,
        target: Target,
        number: int,
        endpoint: WebhookEndpoint,
        node_id: str,
        reader: QueueReader,
        leases: LeaseTable,
        version: int,
        acquired_at: float,
        log: WebhookLog,
        dead_letters: DeadLetters,
        sender: WebhookSender,
        broker: Broker,
        runtime: Runtime,
    ) -> None:
        """`version`: that of the lease, which was acquired at this monotonic time. `runtime` uses the store clock."""
        self.target = target
        self.number = number
        self.queue = target.queue(number)
        self.reader = reader
        self._endpoint = endpoint
        self._node_id = node_id
        self._leases = leases
        self._version = version
        self._valid_until = acquired_at + LEASE_TIME
        self._log = log
        self._dead_letters = dead_letters
        self._sender = sender
        self._broker = broker
        self._tasks = runtime.tasks
        self._clock: Clock = runtime.clock
        self._metrics = runtime.metrics.webhooks
        self._seconds = self._metrics.webhook_seconds.labels(target.endpoint)
        self._outage = runtime.outages.log(
            _log, "webhook_delivery_failed", "webhook_delivery_recovered", runtime.clock.monotonic
        )
        self._wake = Alarm(runtime.clock)
        """Something has changed in the queue."""
        self._change = Alarm(runtime.clock)
        """The lease has to be written."""
        self._stopped = asyncio.Event()
        self._pauses: set[asyncio.Event] = set()
        self._backoff = Backoff(MIN_PAUSE, MAX_PAUSE)
        self._batch: Batch | None = None
        self._alone = 0
        """Entries that are sent one by one, because the endpoint has refused a batch with them."""
        self._refusals = 0
        """Of the first entry, sent alone."""
        self._delivered: OrderedDict[str, None] = OrderedDict()
        self._failure: str | None = None
        self._grace = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """False before `start` and after the end."""
        return self._task is not None and not self._task.done()

    @property
    def waiting(self) -> int:
        """Records that are not delivered."""
        return max(0, max(self.reader.head, self._log.state(self.queue).head) - self.reader.cursor.offset)

    def start(self) -> None:
        """Starts to deliver."""
        self._task = self._tasks.spawn("webhook queue", self._run())

    def wake(self) -> None:
        """Reads the queue soon."""
        self._wake.ring()

    def release(self, grace: float) -> None:
        """Hands the queue over, as soon as the delivery under way is finished: that gets `grace` seconds."""
        if not self._stopped.is_set():
            self._grace = grace
            self._stopped.set()
            self._wake.ring()
            for over in self._pauses:
                over.set()

    async def wait_closed(self) -> None:
        """Returns when it has ended."""
        if self._task is not None:
            await asyncio.wait([self._task])

    # --- the lease ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        keeping = self._tasks.spawn("webhook lease", self._keep_lease())
        delivering = self._tasks.spawn("webhook deliveries", self._deliver_all())
        stopping = self._tasks.spawn("webhook release", self._wait_released())
        both = {keeping, delivering}
        try:
            with suppress(ServiceError):  # without it, the queue is polled
                await self._broker.subscribe(self.queue)
            await asyncio.wait({*both, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopped.is_set():
                await asyncio.wait(both, timeout=self._grace, return_when=asyncio.FIRST_COMPLETED)
        finally:
            has_lease = not keeping.done()
            for task in (*both, stopping):
                task.cancel()
            await asyncio.gather(*both, stopping, return_exceptions=True)
            self._outage.recovered((self.target, self.number), endpoint=self.target.endpoint)
            with suppress(ServiceError):
                await self._broker.unsubscribe(self.queue)
        if not has_lease:
            _log.warning("webhook_lease_lost", endpoint=self.target.endpoint, queue=self.number)
            return
        with suppress(ServiceError, LeaseLostError):  # then it ends by itself
            await self._leases.put(self.number, self._lease(node=""), self._version, new_id())

    async def _wait_released(self) -> None:
        await self._stopped.wait()

    async def _keep_lease(self) -> None:
        """Renews the lease at an interval, and writes the cursor when it moves. Returns when the lease is lost."""
        while True:
            await self._change.wait(RENEW_INTERVAL)
            lease, id_, started = self._lease(node=self._node_id), new_id(), self._clock.monotonic()
            while True:
                remaining = self._valid_until - LEASE_MARGIN - self._clock.monotonic()
                if remaining <= 0:
                    return
                try:
                    async with asyncio.timeout(remaining):
                        self._version = await self._leases.put(self.number, lease, self._version, id_)
                    break
                except LeaseLostError:
                    return
                except (ServiceError, TimeoutError):
                    await sleep(self._clock, STORE_PAUSES[0])
            self._valid_until = started + LEASE_TIME
            await sleep(self._clock, COMMIT_INTERVAL)

    def _lease(self, *, node: str) -> Lease:
        until = self._clock.wall() + LEASE_TIME if node else 0.0
        return Lease(node, until, self.reader.cursor, self.reader.oldest_at, self._failure)

    @property
    def _has_lease(self) -> bool:
        return self._clock.monotonic() < self._valid_until - LEASE_MARGIN

    # --- deliveries ---------------------------------------------------------------------------------------------------

    async def _deliver_all(self) -> None:
        backoff = Backoff(*STORE_PAUSES)
        while not self._stopped.is_set():
            try:
                if self._batch is None:
                    await self.reader.fill()
                    self._batch = self._next_batch()
                if self._batch is not None:
                    await self._attempt(self._batch)
                else:
                    next_lookup = self.reader.next_lookup
                    await self._wake.wait(
                        POLL_INTERVAL if next_lookup is None else min(POLL_INTERVAL, next_lookup + 0.01)
                    )
                backoff.reset()
            except ServiceError:  # the state of the broker is logged elsewhere
                await self._pause(backoff.next())

    def _next_batch(self) -> Batch | None:
        """Returns the next request; None if nothing is ready. Passes over repeats."""
        entries: list[Ready] = []
        bodies: list[bytes] = []
        ids: set[str] = set()
        count = size = 0
        expired = milliseconds(self._clock) - self._log.limits.keep * 1_000
        for ready in self.reader.ready(1 if self._alone else self._endpoint.batch):
            id_ = ready.entry.id
            if id_ in ids or (id_ in self._delivered and not ready.is_replay):
                self._count(EntryOutcome.DUPLICATE)
                count += 1
                continue
            body = encode_entry(ready.entry)
            if entries and size + len(body) > MAX_BODY:
                break
            ids.add(id_)
            entries.append(ready)
            bodies.append(body)
            count, size = count + 1, size + len(body)
            if ready.at < expired and len(entries) == 1:
                break  # it becomes a dead letter
        if not entries:
            if count:
                self._finish(count)
                self._wake.ring()  # others may be ready behind the repeats
            return None
        endpoint, tenant = (msgspec.json.encode(name) for name in self.target)
        body = b'{"endpoint":%b,"tenant":%b,"entries":[%b]}' % (endpoint, tenant, b",".join(bodies))
        digest = blake2b("\n".join(ready.entry.id for ready in entries).encode(), digest_size=12).hexdigest()
        return Batch(f"{ID_PREFIX}{digest}", body, entries, count)

    async def _attempt(self, batch: Batch) -> None:
        """Sends a request, and handles its end. After a failure, returns when it may be repeated."""
        if not self._has_lease:
            await self._pause(LEASE_MARGIN)  # `_keep_lease` renews it, or ends this
            return
        if batch.entries[0].at < milliseconds(self._clock) - self._log.limits.keep * 1_000:
            if len(batch.entries) > 1:
                self._batch = None  # the next request has the first entry alone
            else:
                await self._bury(batch, self._failure or "was not delivered in time")
            return
        started = self._clock.monotonic()
        reply = await self._sender.send(*self.target, batch.id, batch.body)
        self._seconds.observe(self._clock.monotonic() - started)
        self._count(reply.outcome, len(batch.entries))
        if reply.outcome is DeliveryOutcome.DELIVERED:
            self._delivered_all(batch)
        elif reply.outcome is DeliveryOutcome.REFUSED and len(batch.entries) > 1:
            self._alone, self._batch = batch.taken, None
        else:
            await self._fail(batch, reply)

    def _delivered_all(self, batch: Batch) -> None:
        self._batch = None
        for ready in batch.entries:
            self._delivered[ready.entry.id] = None
        while len(self._delivered) > MAX_DELIVERED:
            self._delivered.popitem(last=False)
        self._finish(batch.taken)
        self._backoff.reset()
        if self._failure is not None:
            self._failure = None
            self._outage.recovered((self.target, self.number), endpoint=self.target.endpoint)

    async def _fail(self, batch: Batch, reply: DeliveryReply) -> None:
        if reply.outcome is DeliveryOutcome.REFUSED:
            self._refusals += 1
            if self._refusals >= self._log.limits.attempts:
                await self._bury(batch, reply.reason)
                return
        self._failure = reply.reason
        self._change.ring()
        self._outage.failed((self.target, self.number), endpoint=self.target.endpoint, reason=reply.reason)
        await self._pause(self._backoff.next() if reply.retry_after is None else max(MIN_PAUSE, reply.retry_after))

    async def _bury(self, batch: Batch, reason: str) -> None:
        """Makes a dead letter of a batch of one entry. Raises ServiceError; then it stays what it is."""
        [ready] = batch.entries
        key = f"{self.reader.cursor.epoch}.{ready.offset}"
        await self._dead_letters.add(ready.entry, self.number, key, reason)
        _log.warning("webhook_became_dead_letter", endpoint=self.target.endpoint, entry=ready.entry.id, reason=reason)
        self._count(EntryOutcome.DEAD)
        self._batch = None
        self._finish(batch.taken)
        self._backoff.reset()

    def _finish(self, count: int) -> None:
        if count:
            self.reader.finish(count)
            self._alone = max(0, self._alone - count)
            self._refusals = 0
            self._change.ring()

    def _count(self, outcome: DeliveryOutcome | EntryOutcome, count: int = 1) -> None:
        self._metrics.webhooks.labels(self.target.endpoint, outcome.value).inc(count)

    async def _pause(self, seconds: float) -> None:
        """Waits, unless the queue is handed over."""
        if self._stopped.is_set():
            return
        over = asyncio.Event()
        self._pauses.add(over)
        timer = self._clock.call_later(seconds, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()
            self._pauses.discard(over)


class Alarm:
    """Wakes the one who waits."""

    __slots__ = ("_clock", "_event")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._event = asyncio.Event()

    def ring(self) -> None:
        """Ends the wait that goes on, or else the next one."""
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Returns when it has rung since the last wait; after `seconds` in any case."""
        timer = self._clock.call_later(seconds, self._event.set)
        try:
            await self._event.wait()
        finally:
            timer.cancel()
        self._event.clear()
