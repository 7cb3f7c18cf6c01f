"""Tracks the facts of this node's connections, from before the store has one until its end was told.

A begin or an end only marks the fact. One task takes marked facts in batches to the store and to the queues of webhooks, so no
connection waits for either. A connection that ends before its fact was in the store is told neither of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from enum import Enum
from functools import partial
from itertools import islice

import structlog

from service.aio.timers import PeriodicTask
from service.core.clock import Timer, milliseconds
from service.core.presence import FoundUser, PresenceEntry, PresenceStore
from service.errors import ServiceError
from service.realtime.facts.fact import Fact, FactKind, Period, period_of
from service.realtime.facts.teller import FactTeller, gather_all, join_of, no_event
from service.realtime.ids import new_id
from service.realtime.presence.lease import RETRY_INTERVAL, Lease
from service.realtime.presence.tracker import sliced
from service.realtime.runtime import Runtime

MAX_BATCH = 256
"""Facts that are taken to the store together."""
MAX_BEGIN_AGE = 5.0
"""Seconds that a begin may have waited for the store. After a longer outage, the period begins when the store has it."""
CLOSE_TIMEOUT = 2.0
"""Seconds in which a node that ends tells what is marked. Other nodes tell the rest when its entries have expired."""

_log = structlog.get_logger("webhook_facts")


class _Phase(Enum):
    """What the store has of a fact from this node."""

    NEW = "new"
    """Nothing."""
    UNSURE = "unsure"
    """Perhaps an entry: a call has failed."""
    ENTERED = "entered"
    """An entry."""


class _Held:
    """One fact of this node."""

    __slots__ = ("code", "ending", "entry", "fact", "is_over", "is_untold", "members", "period", "phase", "timer")

    def __init__(self, fact: Fact, entry: PresenceEntry, period: Period) -> None:
        self.fact = fact
        self.entry = entry
        self.period = period
        """The period that this node offers to the store, or has begun."""
        self.members: set[str] = set()
        """The connections by which it holds."""
        self.phase = _Phase.NEW
        self.is_untold = False
        """True if this node has begun the period, and has not told so yet."""
        self.is_over = False
        """True if it holds no longer, and the debounce has passed."""
        self.ending: Period | None = None
        """The period that the store had when this node began to leave."""
        self.code: int | None = None
        """How the client's connection was closed."""
        self.timer: Timer | None = None
        """The timer of the debounce."""

    @property
    def is_marked(self) -> bool:
        """True if something is left to do."""
        return self.phase is not _Phase.ENTERED or self.is_untold or self.is_leaving

    @property
    def is_leaving(self) -> bool:
        """True if the entry must be removed. That goes on if the fact holds again meanwhile: its end may be told already."""
        return self.is_over or self.ending is not None


class FactTracker:
    """Enters facts in the store, renews and removes them, and tells begins and ends."""

    def __init__(
        self,
        node_id: str,
        store: PresenceStore,
        teller: FactTeller,
        runtime: Runtime,
        *,
        ttl: float,
        is_shared: bool,
        max_waiting: int,
    ) -> None:
        """`runtime` uses the store clock. `ttl`: seconds that an entry lasts in a store that is shared with other nodes.
        `max_waiting`: ends that wait in memory while the store is away."""
        self._node_id = node_id
        self._store = store
        self._teller = teller
        self._runtime = runtime
        self._is_shared = is_shared
        self._max_waiting = max_waiting
        self.lease = Lease(runtime.clock, ttl)
        self._held: dict[Fact, _Held] = {}
        self._marked: dict[Fact, _Held] = {}
        """What the task has to do, in order."""
        self._overdue: dict[Fact, _Held] = {}
        """Ends that wait until all nodes have had time to renew their entries."""
        self._ends = 0
        """Facts that are over."""
        self._task: asyncio.Task[None] | None = None
        self._is_draining = False
        self._is_closed = False
        self._checks = PeriodicTask(
            runtime.clock, runtime.tasks, "webhook facts check", self._check, interval=self.lease.check_interval
        )
        self._outage = runtime.outages.log(
            _log, "webhook_facts_failed", "webhook_facts_recovered", runtime.clock.monotonic
        )
        metrics = runtime.metrics.webhooks
        metrics.webhook_facts.set_function(lambda: len(self._held))
        self._lapsed = metrics.webhook_facts_lapsed

    def start(self) -> None:
        """Starts the renewal of this node's facts."""
        self.lease.start()
        self._checks.start()

    def drain(self) -> None:
        """From now on, channels and users that leave stay until their entries expire. By then, most are at other nodes."""
        self._is_draining = True

    async def close(self) -> None:
        """Tells what is marked, within CLOSE_TIMEOUT. Then forgets all facts: their entries in the store expire."""
        self._checks.close()
        for held in self._held.values():
            if held.timer is not None:
                held.timer.cancel()
                held.timer = None
        if self._task is not None:
            await asyncio.wait([self._task], timeout=CLOSE_TIMEOUT)
        self._is_closed = True
        self._held.clear()
        self._marked.clear()
        self._overdue.clear()

    def begin(self, fact: Fact, member: str, period: Period) -> None:
        """Marks that a fact holds by a member, which is one of its connections. `period`: the one that this may begin."""
        if self._is_closed:
            return
        held = self._held.get(fact)
        if held is None:
            held = self._held[fact] = _Held(fact, PresenceEntry(fact.partition, fact.name, self._node_id), period)
            self._mark(held)
        held.members.add(member)
        if held.is_over:
            held.is_over = False
            self._ends -= 1
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None

    def end(self, fact: Fact, member: str, *, debounce: float = 0.0, code: int | None = None) -> None:
        """Marks that a fact does not hold by this member any more. After the last one, it ends in `debounce` seconds.

        Does nothing if that was marked before.
        """
        held = self._held.get(fact)
        if held is None or member not in held.members:
            return
        held.members.discard(member)
        if held.members:
            return
        held.code = code
        if self._is_draining and fact.kind is not FactKind.CLIENT:
            self._forget(held)
        elif debounce:
            self._end_after(held, debounce)
        else:
            self._end(held)

    def lapse(self, fact: Fact, member: str) -> None:
        """Leaves a fact to its expiry in the store: it may go on, at this node or another one.

        In a store of this process alone, entries do not expire. There it ends after the same time.
        """
        held = self._held.get(fact)
        if held is None or member not in held.members:
            return
        held.members.discard(member)
        if held.members:
            return
        if self._is_shared:
            self._forget(held)
        else:
            self._end_after(held, self.lease.ttl)

    def _end_after(self, held: _Held, seconds: float) -> None:
        if held.timer is None:
            held.timer = self._runtime.clock.call_later(seconds, partial(self._end, held))

    def _end(self, held: _Held) -> None:
        held.timer = None
        if held.phase is _Phase.NEW:  # told neither of
            self._forget(held)
            return
        if self._ends >= self._max_waiting and self._is_shared:
            self._lapsed.inc()
            self._forget(held)  # its entry expires, and then its end is told, without the close code
            return
        held.is_over = True
        self._ends += 1
        self._mark(held)

    def _forget(self, held: _Held) -> None:
        if held.timer is not None:
            held.timer.cancel()
            held.timer = None
        self._ends -= held.is_over
        held.is_over = False
        del self._held[held.fact]
        self._marked.pop(held.fact, None)
        self._overdue.pop(held.fact, None)

    # --- the task -----------------------------------------------------------------------------------------------------

    def _mark(self, held: _Held) -> None:
        self._marked[held.fact] = held
        self._run()

    def _run(self) -> None:
        if self._task is None and self._marked and not self._is_closed:
            self._task = self._runtime.tasks.spawn("webhook facts", self._work())

    async def _work(self) -> None:
        try:
            while self._marked:
                batch = list(islice(self._marked.values(), MAX_BATCH))
                for held in batch:
                    del self._marked[held.fact]
                try:
                    await self._settle(batch)
                finally:
                    for held in batch:
                        if held.is_marked and self._held.get(held.fact) is held and held.fact not in self._overdue:
                            self._marked[held.fact] = held
        except ServiceError as error:
            self._record_failure(error)
        finally:
            self._task = None

    def _record_failure(self, error: ServiceError) -> None:
        self.lease.doubt()
        self._checks.run_within(RETRY_INTERVAL)
        self._outage.failed(code=error.code.code, facts=len(self._held), marked=len(self._marked))

    async def _settle(self, batch: Sequence[_Held]) -> None:
        await self._enter([held for held in batch if held.phase is not _Phase.ENTERED])
        await gather_all(self._tell_begin(held) for held in batch if held.is_untold)
        leaving = [held for held in batch if held.is_leaving and held.phase is _Phase.ENTERED]
        if leaving and not self.lease.is_stable:
            # Entries of other nodes may be missing until these have added them again.
            self._overdue.update((held.fact, held) for held in leaving if self._held.get(held.fact) is held)
        elif leaving:
            await self._leave(leaving)

    async def _enter(self, entering: Sequence[_Held]) -> None:
        if not entering:
            return
        unsure = [held for held in entering if held.phase is _Phase.UNSURE]
        for held, found in zip(unsure, await self._find(unsure), strict=True):
            if found is not None and held.period.is_same(period_of(found.info)):
                held.is_untold = True
            else:  # so the entry that may have been added has ended, or has begun nothing
                held.period = self._renewed(held.period)
        entering = [held for held in entering if self._held.get(held.fact) is held]
        oldest = milliseconds(self._runtime.clock) - int(MAX_BEGIN_AGE * 1000)
        for held in entering:
            if held.phase is _Phase.NEW and held.period.began_at < oldest:  # the store was away
                held.period = self._renewed(held.period)
            held.phase = _Phase.UNSURE
        joins = [join_of(held.entry, held.period) for held in entering]
        for held, change in zip(entering, await self._store.join_all(joins), strict=True):
            held.phase = _Phase.ENTERED
            held.is_untold = held.is_untold or change.changed

    def _renewed(self, period: Period) -> Period:
        now = milliseconds(self._runtime.clock)
        return new_period(now, self._node_id, period)

    async def _tell_begin(self, held: _Held) -> None:
        await self._teller.begin(held.fact, held.period)
        held.is_untold = False

    async def _leave(self, leaving: Sequence[_Held]) -> None:
        entries: list[tuple[_Held, bool]] = []
        tells: list[tuple[_Held, Period]] = []
        for held, found in zip(leaving, await self._find(leaving), strict=True):
            period = None if found is None else period_of(found.info)
            if held.ending is not None and not held.ending.is_same(period):
                tells.append((held, held.ending))  # a call has failed after it had removed the entry
            elif found is not None:
                held.ending = period
                is_last = found.connections | found.expired <= {self._node_id}
                entries.append((held, is_last))
                if is_last and period is not None:
                    tells.append((held, period))
            # else another node has found the entry expired, and has told the end, or the store has lost it
        await gather_all(self._teller.end(held.fact, period, held.code) for held, period in tells)
        changes = await self._store.leave_all([held.entry for held, _ in entries], no_event)
        rest = []
        for (held, is_last), change in zip(entries, changes, strict=True):
            if held.ending is not None and change.changed and not is_last:  # the others have left meanwhile
                rest.append(self._teller.end(held.fact, held.ending, held.code))
            elif held.ending is not None and is_last and not change.changed:
                rest.append(self._teller.resume(held.fact, held.ending))
        await gather_all(rest)
        for held in leaving:
            if held.is_over:
                if self._held.get(held.fact) is held:
                    self._forget(held)
            else:  # it holds again since then
                held.phase, held.ending, held.period = _Phase.NEW, None, self._renewed(held.period)

    async def _find(self, some: Sequence[_Held]) -> Sequence[FoundUser | None]:
        if not some:
            return ()
        return await self._store.find_all([(held.entry.channel, held.entry.user) for held in some])

    # --- renewal ------------------------------------------------------------------------------------------------------

    async def _check(self) -> float:
        try:
            if self.lease.is_renewal_due:
                await self._renew()
            self._outage.recovered(facts=len(self._held))
        except ServiceError as error:
            self._record_failure(error)
            return self.lease.next_check_in
        if self.lease.is_stable and self._overdue:
            self._marked.update(self._overdue)
            self._overdue.clear()
        self._run()
        return self.lease.next_check_in

    async def _renew(self) -> None:
        started_at = self.lease.begin_renewal()
        held = {one.entry: one for one in self._held.values() if one.phase is _Phase.ENTERED}
        missing: list[PresenceEntry] = []
        for part in sliced(list(held)) or [[]]:  # without entries, the answer shows that the store can be reached
            missing += await self._store.renew(part)
        lost = [held[entry] for entry in missing if self._is_missing(held[entry])]
        self.lease.end_renewal(started_at, has_lost_entries=bool(lost))
        self._enter_again(lost)

    def _is_missing(self, held: _Held) -> bool:
        return self._held.get(held.fact) is held and held.phase is _Phase.ENTERED and not held.is_leaving

    def _enter_again(self, lost: Iterable[_Held]) -> None:
        """Begins facts anew whose entries are gone: another node has told their end, or the store has lost its data."""
        for held in lost:
            if not held.members:
                self._forget(held)  # it waits for the debounce
                continue
            held.phase, held.period = _Phase.NEW, self._renewed(held.period)
            self._marked[held.fact] = held


def new_period(now: int, node: str, like: Period) -> Period:
    """Returns a period that begins now, with the content of another one."""
    return Period(
        now, node, new_id(), like.tells_begin, like.tells_end, user=like.user, client=like.client, info=like.info
    )
