"""Ends the facts of nodes that have died: their entries are not renewed, so they expire.

Each partition belongs to one live node, by the reports of the nodes. Where these differ for a while, two nodes sweep a partition,
or none does; so now and then each node sweeps all of them. Two nodes that end one fact give the entry the same id.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import structlog

from service.aio.timers import PeriodicTask
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.presence import ExpiredEntry, PresenceStore
from service.core.rendezvous import ranking
from service.errors import ServiceError
from service.realtime.facts.fact import PARTITIONS, Fact, Period, fact_of, partition_channel, period_of
from service.realtime.facts.teller import FactTeller, gather_all, no_event
from service.realtime.presence.lease import Lease
from service.realtime.runtime import Runtime

MAX_BATCH = 256
"""Expired entries that are ended together."""
ALL_PARTITIONS_EVERY = 6
"""Sweeps after which a node sweeps all partitions once."""
MAX_DELAY = 60.0
"""Seconds that a node may need to tell a begin, and others to sweep it after its expiry. A begin that is older was told."""

_log = structlog.get_logger("webhook_facts")


class FactSweeper:
    """Looks for expired entries six times in each TTL, and ends their facts."""

    def __init__(
        self,
        node_id: str,
        store: PresenceStore,
        teller: FactTeller,
        lease: Lease,
        nodes: Callable[[], Collection[str]],
        runtime: Runtime,
    ) -> None:
        """`runtime` uses the store clock. `lease`: that of this node's facts. `nodes` returns the ids of the other nodes."""
        self._node_id = node_id
        self._store = store
        self._teller = teller
        self._lease = lease
        self._nodes = nodes
        self._runtime = runtime
        self._partitions = [partition_channel(number) for number in range(PARTITIONS)]
        self._sweeps = 0
        self._timer = PeriodicTask(
            runtime.clock, runtime.tasks, "webhook facts sweep", self._sweep, interval=lease.check_interval
        )
        self._outage = runtime.outages.log(
            _log, "webhook_facts_sweep_failed", "webhook_facts_sweep_recovered", runtime.clock.monotonic
        )

    def start(self) -> None:
        """Starts the sweeps."""
        self._timer.start()

    def close(self) -> None:
        """Ends the sweeps."""
        self._timer.close()

    async def _sweep(self) -> None:
        if self._lease.is_in_doubt or self._lease.is_silent or not self._lease.has_expired_elsewhere:
            return  # entries of live nodes may have expired while the store was away, and not be renewed yet
        self._sweeps += 1
        partitions = self._partitions if self._sweeps % ALL_PARTITIONS_EVERY == 0 else self._own_partitions()
        try:
            expired = await self._store.expired(partitions)
            self._lease.record_answer()
            for part in _grouped(expired):
                await self._end(part)
            self._outage.recovered()
        except ServiceError as error:
            self._lease.doubt()
            self._outage.failed(code=error.code.code)

    def _own_partitions(self) -> Sequence[ChannelKey]:
        nodes = [self._node_id, *self._nodes()]
        return [partition for partition in self._partitions if ranking(partition, nodes)[0] == self._node_id]

    async def _end(self, expired: Sequence[ExpiredEntry]) -> None:
        """Ends facts. `expired` has all expired entries of each."""
        by_name: dict[str, list[ExpiredEntry]] = {}
        for one in expired:
            by_name.setdefault(one.entry.user, []).append(one)
        found: dict[str, tuple[Fact, Period]] = {}
        ended: set[str] = set()
        """Names of facts that no node holds any more, so their end is told before their entries are removed."""
        tells = []
        for name, entries in by_name.items():
            fact, period = fact_of(name), period_of(entries[0].info)
            if fact is None or period is None:
                continue
            found[name] = fact, period
            if entries[0].is_last:
                ended.add(name)
            tells.append(
                self._tell(fact, period, {one.entry.connection for one in entries}, is_last=entries[0].is_last)
            )
        await gather_all(tells)
        changes = await self._store.leave_all([one.entry for one in expired], no_event, only_expired=True)
        has_left = {one.entry.user for one, change in zip(expired, changes, strict=True) if change.changed}
        rest = [self._teller.resume(*found[name]) for name in ended - has_left]
        # The nodes that held it then have left meanwhile, and have told nothing, as the expired entries were still there.
        rest += [self._teller.end(*found[name]) for name in (has_left - ended) & found.keys()]
        await gather_all(rest)

    async def _tell(self, fact: Fact, period: Period, nodes: Collection[str], *, is_last: bool) -> None:
        age = milliseconds(self._runtime.clock) - period.began_at
        if period.node in nodes and age < (2 * self._lease.ttl + MAX_DELAY) * 1000:
            await self._teller.begin(fact, period)  # the node may have died before it told so
        if is_last:
            await self._teller.end(fact, period)


def _grouped(expired: Sequence[ExpiredEntry]) -> Sequence[Sequence[ExpiredEntry]]:
    """Splits entries into parts of about MAX_BATCH, so that all entries of a fact are in one part."""
    parts: list[list[ExpiredEntry]] = [[]]
    for one in sorted(expired, key=lambda each: (each.entry.channel, each.entry.user)):
        last = parts[-1]
        if len(last) >= MAX_BATCH and last[-1].entry.user != one.entry.user:
            parts.append([])
        parts[-1].append(one)
    return [part for part in parts if part]
