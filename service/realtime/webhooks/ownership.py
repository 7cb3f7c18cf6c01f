"""Which queues this node delivers: rendezvous hashing over the live nodes, held by leases.

Each node has the same ranking of the nodes for a queue. The first takes the lease when it is free, and the others only some time
later, each after the ones before it: so a queue is taken over although the first has just ended, and no two nodes grab at once. A
node that is not the first any more hands the queue over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import structlog

from service.aio.timers import PeriodicTask
from service.core.channel import ChannelKey
from service.core.rendezvous import ranking
from service.errors import ServiceError
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.webhooks.dispatcher import Dispatcher
from service.realtime.webhooks.leases import LEASE_TIME, LeaseLostError, LeaseTable
from service.realtime.webhooks.records import Lease, Target

TEND_INTERVAL = 1.0
"""Seconds between two looks at all leases."""
CHECK_INTERVAL = 5.0
"""Seconds between two comparisons of the known leases with the store."""
RANK_DELAY = 1.5
"""Seconds for which a free queue is left to each node of a better rank."""
SETTLE_TIME = 3.0
"""Seconds for which another node must have been the first, before a queue is handed over: nodes come and go in a rollout."""
HANDOVER_GRACE = 15.0
"""Seconds that a delivery under way gets when a queue is handed over; when the node ends, CLOSE_GRACE."""
CLOSE_GRACE = 2.0

_log = structlog.get_logger("webhooks")

MakeDispatcher = Callable[[Target, int, Lease, int, float], Dispatcher]
"""Makes the dispatcher of a queue from the lease before, the version of the new one, and when that was acquired."""

OnOwned = Callable[[Target, int, bool], None]
"""Called when this node begins (True) or ends to deliver a queue."""


class Ownership:
    """Acquires and hands over the leases of this node, and runs the dispatchers."""

    def __init__(
        self,
        node_id: str,
        candidates: Callable[[], Sequence[str]],
        tables: Mapping[Target, LeaseTable],
        queues: int,
        make_dispatcher: MakeDispatcher,
        runtime: Runtime,
        on_owned: OnOwned,
    ) -> None:
        """`candidates` returns the ids of the nodes that deliver queues; without this one while it drains. Queues with a lease
        are delivered, too, if there are more than `queues`: the setting was larger before. `runtime` uses the store clock."""
        self._node_id = node_id
        self._candidates = candidates
        self._tables = tables
        self._queues = queues
        self._make_dispatcher = make_dispatcher
        self._on_owned = on_owned
        self._clock = runtime.clock
        self.dispatchers: dict[ChannelKey, Dispatcher] = {}
        """Those that run, by the channel of their queue."""
        self._free_since: dict[ChannelKey, float] = {}
        self._surplus_since: dict[ChannelKey, float] = {}
        self._next_check = 0.0
        self._is_closed = False
        self._tending = PeriodicTask(runtime.clock, runtime.tasks, "webhook leases", self._tend, interval=TEND_INTERVAL)

    def start(self) -> None:
        """Starts to acquire queues."""
        self._tending.start(0.0)

    async def close(self) -> None:
        """Hands all queues over."""
        self._is_closed = True
        self._tending.close()
        running = list(self.dispatchers.values())
        for dispatcher in running:
            dispatcher.release(CLOSE_GRACE)
        await asyncio.gather(*(dispatcher.wait_closed() for dispatcher in running))

    def wake(self, queue: ChannelKey) -> None:
        """Tells the dispatcher of a queue that there may be something new."""
        dispatcher = self.dispatchers.get(queue)
        if dispatcher is not None:
            dispatcher.wake()

    async def _tend(self) -> None:
        for queue, dispatcher in list(self.dispatchers.items()):
            if not dispatcher.is_running:
                del self.dispatchers[queue]
                self._on_owned(dispatcher.target, dispatcher.number, False)
        nodes = self._candidates()
        now = self._clock.monotonic()
        is_check_due = now >= self._next_check
        if is_check_due:
            self._next_check = now + CHECK_INTERVAL
        for target, table in self._tables.items():
            try:
                if is_check_due:
                    await table.check()
                for number in sorted({*range(self._queues), *table.queues()}):
                    await self._tend_queue(target, table, number, nodes)
            except ServiceError:  # the state of the broker is logged elsewhere
                continue

    async def _tend_queue(self, target: Target, table: LeaseTable, number: int, nodes: Sequence[str]) -> None:
        queue, now = target.queue(number), self._clock.monotonic()
        ranked = ranking(queue, nodes)
        dispatcher = self.dispatchers.get(queue)
        if dispatcher is not None:
            self._free_since.pop(queue, None)
            if not ranked or ranked[0] == self._node_id:
                self._surplus_since.pop(queue, None)
            elif now - self._surplus_since.setdefault(queue, now) >= SETTLE_TIME or self._node_id not in ranked:
                _log.info("webhook_queue_handed_over", endpoint=target.endpoint, queue=number)
                dispatcher.release(HANDOVER_GRACE)
            return
        self._surplus_since.pop(queue, None)
        if not table.is_free(queue=number):
            self._free_since.pop(queue, None)
        elif self._node_id in ranked:
            rank = ranked.index(self._node_id)
            if now - self._free_since.setdefault(queue, now) >= rank * RANK_DELAY:
                await self._acquire(target, table, number)

    async def _acquire(self, target: Target, table: LeaseTable, number: int) -> None:
        known, started = table.get(number), self._clock.monotonic()
        before = known.lease
        lease = Lease(self._node_id, self._clock.wall() + LEASE_TIME, before.cursor, before.oldest_at, before.failure)
        try:
            version = await table.put(number, lease, known.version, new_id())
        except LeaseLostError:
            return
        self._free_since.pop(target.queue(number), None)
        if self._is_closed:  # the lease ends by itself
            return
        _log.info("webhook_queue_acquired", endpoint=target.endpoint, queue=number, cursor=str(before.cursor))
        dispatcher = self._make_dispatcher(target, number, before, version, started)
        self.dispatchers[target.queue(number)] = dispatcher
        self._on_owned(target, number, True)
        dispatcher.start()
