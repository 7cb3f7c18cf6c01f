"""What the broker keeps of the revocations: a channel for each tenant, and one that tells which tenants have one.

The broker bounds what a channel keeps, so a tenant that revokes a lot pushes out its own revocations and nobody else's.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import structlog

from service.aio.timers import sleep
from service.core.backoff import Backoff
from service.core.broker import Broker, Snapshot
from service.core.clock import milliseconds
from service.core.event import Delivery, Event, Publication, Retention
from service.core.revocation import Revocation, RevocationTable, Subject
from service.errors import ServiceError
from service.realtime.cluster.messages import (
    MAX_TENANTS,
    REVOKING_TENANTS,
    decode_revocation,
    encode,
    revocations_of,
)
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import MAX_RETRY_INTERVAL, RETRY_INTERVAL, ChannelFollower

PUT_BACK_AT_ONCE = 16
"""Revocations that one node puts back at the same time, of so many tenants: they take turns, so that none waits for the
thousands of another, and the broker's queue has room for everything else."""

_log = structlog.get_logger("revocations")


@dataclass(frozen=True, slots=True)
class Parts:
    """What both kinds of channels need."""

    broker: Broker
    runtime: Runtime


@dataclass(frozen=True, slots=True)
class Keeping:
    """How long and how many the broker keeps."""

    most: int
    """Revocations of a tenant."""
    life: float
    """Seconds that a revocation lasts at most."""

    @property
    def revocations(self) -> Retention:
        """Twice as long as they last. Where the broker goes by the nodes' clocks (NATS), or its own one jumps, one that is
        wrong by as much as a revocation's life then still hides none that is in force from a node that starts."""
        return Retention(self.most, 2 * self.life)

    @property
    def tenants(self) -> Retention:
        """A tenant is to be found for as long as its revocations."""
        return Retention(MAX_TENANTS, 2 * self.life + self.again + self.life)

    @property
    def again(self) -> float:
        """Seconds after which a node tells of a tenant once more when it revokes something."""
        return self.life / 2


class RevokingTenants:
    """Which tenants have revoked something: by it a node finds the channels that it is to follow. A tenant has one entry here
    however much it revokes, and the tenants are those of the API keys, so none can push out another.

    `found` is called with each tenant that is told of, any number of times.
    """

    def __init__(self, parts: Parts, keeping: Keeping, table: RevocationTable, found: Callable[[str], object]) -> None:
        self._parts = parts
        self._keeping = keeping
        self._table = table
        self._found = found
        self._told: dict[str, float] = {}
        """When this node has told of a tenant last (monotonic)."""
        self._lost: set[str] = set()
        """Of whom the broker has lost the entry, and this node has not told again yet."""
        self._telling: asyncio.Task[None] | None = None
        self._outage = parts.runtime.outages.log(
            _log, "revoking tenants not told again", "revoking tenants told again", parts.runtime.clock.monotonic
        )
        self.following = ChannelFollower(
            REVOKING_TENANTS,
            parts.broker,
            parts.runtime,
            self._take,
            on_new_epoch=self._find_lost,
        )

    async def tell(self, tenant: str) -> None:
        """Comes before a revocation is published: makes sure that every node finds it. Raises ServiceError."""
        now = self._parts.runtime.clock.monotonic()
        told = self._told.get(tenant)
        if told is None or told + self._keeping.again <= now:
            await self._publish(tenant, new_id())
            self._told[tenant] = now

    def tend(self) -> None:
        """Called now and then: goes on with what could not be told."""
        if self._lost and (self._telling is None or self._telling.done()):
            self._telling = self._parts.runtime.tasks.spawn("revoking tenants told", self._tell_again())

    def _take(self, event: Event) -> None:
        if not event.key:
            raise ValueError("no tenant")
        self._found(event.key)

    def _find_lost(self, snapshot: Snapshot) -> None:
        self._lost = set(self._table.tenants) - {event.key for event in snapshot.state}
        self._told = {tenant: told for tenant, told in self._told.items() if tenant not in self._lost}
        self.tend()

    async def _tell_again(self) -> None:
        while self._lost:
            tenant = random.choice(tuple(self._lost))  # noqa: S311  # each node in another order; guards nothing
            # All nodes use the same id, so it is done once.
            name = repr((tenant, self.following.epoch))
            try:
                await self._publish(tenant, _digest(name))
            except ServiceError as error:  # `tend` comes again
                self._outage.failed(left=len(self._lost), code=error.code.code)
                return
            self._outage.recovered()
            self._lost.discard(tenant)

    async def _publish(self, tenant: str, id: str) -> None:
        await self._parts.broker.publish(
            Publication(
                channel=REVOKING_TENANTS,
                type="revocation.tenant",
                id=id,
                delivery=Delivery.LATEST,
                data=b"{}",
                sender=None,
                at=milliseconds(self._parts.runtime.clock),
                key=tenant,
                retention=self._keeping.tenants,
            )
        )


class RevocationList:
    """One tenant's channel: what stands in it gets into the table, and what it has lost is put back from there."""

    def __init__(
        self,
        tenant: str,
        parts: Parts,
        keeping: Keeping,
        table: RevocationTable,
        add: Callable[[Revocation], None],
        tell: Callable[[str], Awaitable[None]],
        gate: asyncio.Semaphore,
    ) -> None:
        """`add`: into the table. `tell`: see RevokingTenants. `gate`: lets so many put back at once."""
        self._tenant = tenant
        self._parts = parts
        self._keeping = keeping
        self._table = table
        self._add = add
        self._tell = tell
        self._gate = gate
        self._missing: dict[Subject, tuple[Revocation, int]] = {}
        """What the broker has lost and nobody has put back yet, and the state version of what stands in its place."""
        self._putting_back: asyncio.Task[None] | None = None
        outages = parts.runtime.outages
        self._beginning = outages.log(
            _log,
            "a tenant's revocations wait for the broker",
            "a tenant's revocations are read",
            parts.runtime.clock.monotonic,
        )
        self._outage = outages.log(
            _log, "revocations not put back", "revocations put back again", parts.runtime.clock.monotonic
        )
        self._found_lost = outages.limited(
            _log, "the broker has lost revocations; they are put back", parts.runtime.clock.monotonic
        )
        self.following = ChannelFollower(
            revocations_of(tenant),
            parts.broker,
            parts.runtime,
            self._take,
            on_new_epoch=self._find_missing,
        )

    async def begin(self) -> None:
        """Follows the channel; tries again while the broker is away."""
        backoff = Backoff(RETRY_INTERVAL, MAX_RETRY_INTERVAL)
        while True:
            try:
                await self.following.start()
            except ServiceError as error:
                self._beginning.failed(self, code=error.code.code)
                await sleep(self._parts.runtime.clock, backoff.next())
            else:
                self._beginning.recovered(self)
                return

    @property
    def missing(self) -> Collection[Subject]:
        """What the broker has lost and nobody has put back yet."""
        return self._missing.keys()

    def tend(self) -> None:
        """Called now and then: goes on with what could not be put back."""
        if self._missing and (self._putting_back is None or self._putting_back.done()):
            self._putting_back = self._parts.runtime.tasks.spawn("revocations put back", self._put_back())

    async def publish(self, revocation: Revocation, state_version: int = 0) -> None:
        """Publishes a revocation. Raises ServiceError; then it may still have been published.

        `state_version`: that of the value it corrects. All nodes that put back the same revocation use the same id, so it is
        published once.
        """
        await self._tell(self._tenant)
        name = repr((*revocation.subject, revocation.before, revocation.until, self.following.epoch, state_version))
        await self._parts.broker.publish(
            Publication(
                channel=self.following.channel,
                type=f"revocation.{revocation.target.value}",
                id=_digest(name),
                delivery=Delivery.LATEST,
                data=encode(revocation),
                sender=None,
                at=milliseconds(self._parts.runtime.clock),
                key=revocation.name,
                retention=self._keeping.revocations,
            )
        )

    def _take(self, event: Event) -> None:
        revocation = self._decode(event)
        known = self._table.get(revocation.subject)
        if known is not None and not revocation.covers(known):
            # Two nodes have revoked at the same moment, and the narrower one has replaced the wider one at the broker.
            self._missing[known.subject] = (known.merged(revocation), event.state_version or 0)
            self.tend()
        else:
            self._missing.pop(revocation.subject, None)
        self._add(revocation)

    def _decode(self, event: Event) -> Revocation:
        revocation = decode_revocation(event.data)
        if revocation.tenant != self._tenant:
            raise ValueError("another tenant's")
        return revocation

    def _readable(self, events: Sequence[Event]) -> Iterator[Revocation]:
        for event in events:
            with suppress(ValueError):  # `_take` has told of it
                yield self._decode(event)

    def _find_missing(self, snapshot: Snapshot) -> None:
        """Called when the channel has started anew; what it still had has been taken."""
        kept = {revocation.subject: revocation for revocation in self._readable(snapshot.state)}
        missing = [
            revocation
            for revocation in self._table.of_tenant(self._tenant)
            if (found := kept.get(revocation.subject)) is None or not found.covers(revocation)
        ]
        random.shuffle(missing)  # each node in another order, so that it finds much of it done by others
        self._missing = {revocation.subject: (revocation, 0) for revocation in missing}
        self.tend()

    async def _put_back(self) -> None:
        self._found_lost(count=len(self._missing))
        while self._missing:
            async with self._gate:
                if not self._missing:  # others have put it back while this one waited for its turn
                    return
                subject, entry = next(iter(self._missing.items()))
                try:
                    await self.publish(*entry)
                except ServiceError as error:  # `tend` comes again
                    self._outage.failed(self, left=len(self._missing), code=error.code.code)
                    return
                self._outage.recovered(self)
            if self._missing.get(subject) is entry:  # else there is more of it by now
                del self._missing[subject]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
