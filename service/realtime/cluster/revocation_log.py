"""The revocations in the broker: one channel for each tenant, and one channel that lists these tenants.

The broker limits each channel, so a tenant with many revocations evicts only its own.
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
    revocations_channel,
)
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import MAX_RETRY_INTERVAL, RETRY_INTERVAL, ChannelFollower

MAX_CONCURRENT_RESTORES = 16
"""Tenants whose revocations one node restores at the same time, so that restores do not fill the broker's queue. Tenants take
turns and restore one revocation a turn, so that none waits for the thousands of another."""

_log = structlog.get_logger("revocations")


@dataclass(frozen=True, slots=True)
class RevocationRetention:
    """How many revocations the broker keeps, and for how long."""

    max_per_tenant: int
    max_life: float
    """Seconds that a revocation lasts at most."""

    @property
    def revocations(self) -> Retention:
        """The retention of a tenant's channel: twice `max_life`.

        A starting node finds every revocation in force even if the broker's clock (with NATS, a node's clock) is wrong by
        `max_life`.
        """
        return Retention(self.max_per_tenant, 2 * self.max_life)

    @property
    def tenants(self) -> Retention:
        """The retention of the channel that lists the tenants. A tenant stays listed at least as long as its revocations last."""
        return Retention(MAX_TENANTS, 2 * self.max_life + self.announce_interval + self.max_life)

    @property
    def announce_interval(self) -> float:
        """Seconds after which a node's next revocation for a tenant announces the tenant again."""
        return self.max_life / 2


@dataclass(frozen=True, slots=True)
class LogContext:
    """The dependencies that all channels with revocations share."""

    broker: Broker
    runtime: Runtime
    table: RevocationTable
    retention: RevocationRetention
    restores: asyncio.Semaphore
    """Limits concurrent restores."""


class RevokingTenants:
    """The channel that lists the tenants with revocations, so that each node finds the channels to follow.

    A tenant has one entry, whatever the number of its revocations. The settings limit the number of tenants, so no entry is
    evicted.
    """

    def __init__(self, context: LogContext, on_tenant: Callable[[str], object]) -> None:
        """`on_tenant` is called with each tenant, maybe more than once."""
        self._context = context
        self._on_tenant = on_tenant
        self._announced_at: dict[str, float] = {}
        """Monotonic seconds of this node's last announcement of each tenant."""
        self._lost: set[str] = set()
        """Tenants whose entries the broker has lost, and which this node has not announced again yet."""
        self._restoring: asyncio.Task[None] | None = None
        runtime = context.runtime
        self._outage = runtime.outages.log(
            _log, "revoking_tenants_restore_failed", "revoking_tenants_restore_recovered", runtime.clock.monotonic
        )
        self.follower = ChannelFollower(
            REVOKING_TENANTS, context.broker, runtime, self._on_event, on_new_epoch=self._find_lost
        )

    async def announce(self, tenant: str) -> None:
        """Makes every node follow the tenant's channel. Call it before a publish in that channel. Raises ServiceError."""
        now = self._context.runtime.clock.monotonic()
        announced = self._announced_at.get(tenant)
        if announced is None or announced + self._context.retention.announce_interval <= now:
            await self._publish(tenant, new_id())
            self._announced_at[tenant] = now

    def maintain(self) -> None:
        """Continues with what could not be restored."""
        if self._lost and (self._restoring is None or self._restoring.done()):
            self._restoring = self._context.runtime.tasks.spawn("revoking tenants restore", self._restore())

    def _on_event(self, event: Event) -> None:
        if not event.key:
            raise ValueError("no tenant")
        self._on_tenant(event.key)

    def _find_lost(self, snapshot: Snapshot) -> None:
        self._lost = set(self._context.table.tenants) - {event.key for event in snapshot.state}
        self._announced_at = {
            tenant: announced for tenant, announced in self._announced_at.items() if tenant not in self._lost
        }
        self.maintain()

    async def _restore(self) -> None:
        while self._lost:
            tenant = random.choice(tuple(self._lost))  # noqa: S311  # each node in another order; guards nothing
            # All nodes use the same event id, so the broker stores one event.
            name = repr((tenant, self.follower.epoch))
            try:
                await self._publish(tenant, _digest(name))
            except ServiceError as error:  # `maintain` retries
                self._outage.failed(left=len(self._lost), code=error.code.code)
                return
            self._outage.recovered()
            self._lost.discard(tenant)

    async def _publish(self, tenant: str, id: str) -> None:
        await self._context.broker.publish(
            Publication(
                channel=REVOKING_TENANTS,
                type="revocation.tenant",
                id=id,
                delivery=Delivery.LATEST,
                data=b"{}",
                sender=None,
                at=milliseconds(self._context.runtime.clock),
                key=tenant,
                retention=self._context.retention.tenants,
            )
        )


class TenantRevocations:
    """One tenant's channel. Adds its revocations to the table, and restores lost ones from the table."""

    def __init__(
        self,
        tenant: str,
        context: LogContext,
        on_revocation: Callable[[Revocation], None],
        announce: Callable[[str], Awaitable[None]],
    ) -> None:
        """`on_revocation` adds a revocation to the table. `announce` is `RevokingTenants.announce`."""
        self._tenant = tenant
        self._context = context
        self._on_revocation = on_revocation
        self._announce = announce
        self._missing: dict[Subject, tuple[Revocation, int]] = {}
        """Revocations that the broker has lost and no node has restored yet, each with the state version that it corrects."""
        self._restoring: asyncio.Task[None] | None = None
        outages, monotonic = context.runtime.outages, context.runtime.clock.monotonic
        self._reading = outages.log(_log, "revocation_reading_failed", "revocation_reading_recovered", monotonic)
        self._restores = outages.log(_log, "revocation_restore_failed", "revocation_restore_recovered", monotonic)
        self._loss_found = outages.limited(_log, "revocations_lost_by_broker", monotonic)
        self.follower = ChannelFollower(
            revocations_channel(tenant),
            context.broker,
            context.runtime,
            self._on_event,
            on_new_epoch=self._find_missing,
        )

    async def follow(self) -> None:
        """Starts to follow the channel, and retries while the broker is away."""
        backoff = Backoff(RETRY_INTERVAL, MAX_RETRY_INTERVAL)
        while True:
            try:
                await self.follower.start()
            except ServiceError as error:
                self._reading.failed(self, code=error.code.code)
                await sleep(self._context.runtime.clock, backoff.next())
            else:
                self._reading.recovered(self)
                return

    @property
    def missing(self) -> Collection[Subject]:
        """The subjects of revocations that the broker has lost and no node has restored yet."""
        return self._missing.keys()

    def maintain(self) -> None:
        """Continues with what could not be restored."""
        if self._missing and (self._restoring is None or self._restoring.done()):
            self._restoring = self._context.runtime.tasks.spawn("revocation restore", self._restore())

    async def publish(self, revocation: Revocation, state_version: int = 0) -> None:
        """Publishes a revocation. Raises ServiceError; even then, it may have been published.

        `state_version` is the version of the value that it corrects. All nodes that restore a revocation use the same event id,
        so the broker stores it once.
        """
        await self._announce(self._tenant)
        name = repr((*revocation.subject, revocation.before, revocation.until, self.follower.epoch, state_version))
        await self._context.broker.publish(
            Publication(
                channel=self.follower.channel,
                type=f"revocation.{revocation.target.value}",
                id=_digest(name),
                delivery=Delivery.LATEST,
                data=encode(revocation),
                sender=None,
                at=milliseconds(self._context.runtime.clock),
                key=revocation.name,
                retention=self._context.retention.revocations,
            )
        )

    def _on_event(self, event: Event) -> None:
        revocation = self._decode(event)
        known = self._context.table.get(revocation.subject)
        if known is not None and not revocation.covers(known):
            # Two nodes have revoked at the same time, and the narrower revocation has replaced the wider one in the broker.
            self._missing[known.subject] = (known.merged(revocation), event.state_version or 0)
            self.maintain()
        else:
            self._missing.pop(revocation.subject, None)
        self._on_revocation(revocation)

    def _decode(self, event: Event) -> Revocation:
        revocation = decode_revocation(event.data)
        if revocation.tenant != self._tenant:
            raise ValueError("another tenant's")
        return revocation

    def _readable(self, events: Sequence[Event]) -> Iterator[Revocation]:
        for event in events:
            with suppress(ValueError):  # the follower has logged it
                yield self._decode(event)

    def _find_missing(self, snapshot: Snapshot) -> None:
        """Compares the table with the channel, which has a new epoch."""
        kept = {revocation.subject: revocation for revocation in self._readable(snapshot.state)}
        missing = [
            revocation
            for revocation in self._context.table.of_tenant(self._tenant)
            if (found := kept.get(revocation.subject)) is None or not found.covers(revocation)
        ]
        random.shuffle(missing)  # each node in another order, so that each restores a part
        self._missing = {revocation.subject: (revocation, 0) for revocation in missing}
        self.maintain()

    async def _restore(self) -> None:
        self._loss_found(count=len(self._missing))
        while self._missing:
            async with self._context.restores:
                if not self._missing:  # other nodes have restored it meanwhile
                    return
                subject, entry = next(iter(self._missing.items()))
                try:
                    await self.publish(*entry)
                except ServiceError as error:  # `maintain` retries
                    self._restores.failed(self, left=len(self._missing), code=error.code.code)
                    return
                self._restores.recovered(self)
            if self._missing.get(subject) is entry:  # else a wider revocation has replaced it meanwhile
                del self._missing[subject]


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
