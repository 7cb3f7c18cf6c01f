"""The leases of queues: which node delivers each, and how far it is. One latest value for each queue, in one channel of a target.

A value is only replaced by compare-and-set. So a node that has lost its lease cannot move the cursor either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from service.core.broker import Broker
from service.core.clock import milliseconds
from service.core.event import Delivery, Event, Publication
from service.core.webhooks import WebhookLimits
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import ChannelFollower
from service.realtime.webhooks.records import LEASE, Lease, Target, decode_lease, encode, lease_retention

LEASE_TIME = 10.0
"""Seconds that a lease lasts. The queues of a node that was killed wait for so long."""
RENEW_INTERVAL = 3.0
"""Seconds between two renewals of a lease whose queue does not move."""
assert 3 * RENEW_INTERVAL < LEASE_TIME, "two renewals may be lost"  # noqa: S101  # a bound


class LeaseLostError(Exception):
    """Another node has the lease, or may have it."""


class KnownLease(NamedTuple):
    """A lease, with the state version that the next one must name."""

    lease: Lease
    version: int
    epoch: str = ""


class LeaseTable:
    """The leases of one target, as this node knows them."""

    def __init__(
        self,
        target: Target,
        limits: WebhookLimits,
        broker: Broker,
        runtime: Runtime,
        on_lease: Callable[[int, Lease], None],
    ) -> None:
        """`runtime` uses the store clock. `on_lease` gets the lease of each queue when it changes."""
        self.target = target
        self._broker = broker
        self._clock = runtime.clock
        self._retention = lease_retention(limits)
        self._on_lease = on_lease
        self._known: dict[int, KnownLease] = {}
        self.follower = ChannelFollower(target.leases, broker, runtime, self._on_event)

    def get(self, queue: int) -> KnownLease:
        """Returns the lease of a queue; an empty one with version 0 if it never had one."""
        return self._known.get(queue, _NEVER)

    def queues(self) -> Iterator[int]:
        """Returns the numbers of the queues that have or had a lease."""
        return iter(sorted(self._known))

    def is_free(self, queue: int) -> bool:
        """True if no node delivers a queue."""
        lease = self.get(queue).lease
        return not lease.node or lease.until <= self._clock.wall()

    async def start(self) -> None:
        """Reads the leases, and follows them from now on. Raises ServiceError."""
        await self.follower.start()

    async def check(self) -> None:
        """Compares with the store, which finds leases that were missed silently. Raises ServiceError."""
        [head] = await self._broker.stream_heads([self.target.leases], [self.follower.delivered])
        if head is not None:
            self.follower.check_head(head)

    async def put(self, queue: int, lease: Lease, version: int, id: str) -> int:
        """Replaces the lease with this version. Returns the new version. A call that failed may be repeated with its id.

        Raises LeaseLostError if the lease has another version; ServiceError if the store gives no answer.
        """
        publication = Publication(
            self.target.leases,
            LEASE,
            id,
            Delivery.LATEST,
            encode(lease),
            None,
            milliseconds(self._clock),
            key=str(queue),
            retention=self._retention,
            if_version=version,
        )
        try:
            result = await self._broker.publish(publication)
        except ServiceError as error:
            if error.code is not ErrorCode.CONFLICT:
                raise
            if error.details.get("rev") == 0:  # the store has lost it; what this node knows is the best that is left
                self._known[queue] = KnownLease(self.get(queue).lease, 0)
            self.follower.interrupted()  # whoever has it now, this node has missed that
            raise LeaseLostError from error
        version = result.state_version or 0
        self._learn(queue, KnownLease(lease, version, result.epoch))
        return version

    def _on_event(self, event: Event) -> None:
        queue = int(event.key or "")
        if event.removed:
            self._known.pop(queue, None)
        else:
            self._learn(queue, KnownLease(decode_lease(event.data), event.state_version or 0, event.epoch))

    def _learn(self, queue: int, new: KnownLease) -> None:
        known = self.get(queue)
        if new.epoch != known.epoch or new.version >= known.version:
            self._known[queue] = new
            self._on_lease(queue, new.lease)


_NEVER = KnownLease(Lease(), 0)
