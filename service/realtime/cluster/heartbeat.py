"""The heartbeat of a node: it reports the node to the others, and finds lost events of internal channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from service.aio.timers import PeriodicTask
from service.core.broker import Broker, EventSink, Snapshot
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.event import Delivery, Publication
from service.errors import ServiceError
from service.realtime.cluster.membership import Membership
from service.realtime.cluster.messages import (
    HEARTBEAT_INTERVAL,
    NODE_STATE_RETENTION,
    NODES,
    NodeState,
    encode,
)
from service.realtime.cluster.revocations import Revocations
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import ChannelFollower
from service.telemetry.process import version

MAX_HEADS = 200
"""Stream heads in one call of the broker."""

_log = structlog.get_logger("cluster")


class NodeStatus(Protocol):
    """What a node reports of itself."""

    @property
    def connections(self) -> int:
        """The number of its connections."""

    @property
    def is_accepting(self) -> bool:
        """True if it accepts connections."""

    @property
    def is_draining(self) -> bool:
        """True while its connections move to other nodes."""


class Heartbeat:
    """Reports this node at an interval, and when its status changes. Each report also checks the internal channels for gaps."""

    def __init__(
        self,
        node_id: str,
        status: NodeStatus,
        membership: Membership,
        requests: ChannelFollower,
        revocations: Revocations,
        broker: Broker,
        subscribe_internally: Callable[[ChannelKey, EventSink], None],
        runtime: Runtime,
        *,
        webhooks: str,
    ) -> None:
        """`webhooks`: see `NodeState`."""
        self._node_id = node_id
        self._webhooks = webhooks
        self._status = status
        self._requests = requests
        self._revocations = revocations
        self._broker = broker
        self._runtime = runtime
        self._started_at = runtime.clock.wall()
        self._nodes = ChannelFollower(NODES, broker, runtime, membership.record, on_new_epoch=self._report_again)
        self._beats = PeriodicTask(
            runtime.clock, runtime.tasks, "cluster heartbeat", self._beat, interval=HEARTBEAT_INTERVAL
        )
        self._has_started = self._is_closed = False
        self._is_report_due = False
        """True if the status has changed since the last heartbeat started."""
        self._outage = runtime.outages.log(
            _log, "cluster_report_failed", "cluster_report_recovered", runtime.clock.monotonic
        )
        subscribe_internally(NODES, self._nodes)

    async def start(self) -> None:
        """Reads the reports of the other nodes, and reports this one. Raises ServiceError."""
        await self._nodes.start()
        await self._report()
        self._has_started = True
        self._beats.start()

    async def close(self) -> None:
        """Sends the last report. After it, the other nodes count this node as gone."""
        self._beats.close()
        self._is_closed = True
        if not self._has_started:
            return
        try:
            await self._report(is_leaving=True)
        except ServiceError as error:  # its last report expires
            _log.warning("cluster_leave_failed", code=error.code.code)

    def report_soon(self) -> None:
        """Reports a change of the status at once."""
        self._is_report_due = True
        self._beats.run_within(0.0)

    def _report_again(self, snapshot: Snapshot) -> None:
        # The channel has a new epoch, so the broker may have lost the reports.
        self.report_soon()

    async def _beat(self) -> float | None:
        self._is_report_due = False
        self._revocations.maintain()
        try:
            await self._check_followers((self._requests, *self._revocations.followers))
            if not self._is_closed:  # nothing may follow the last report
                await self._report()
            self._outage.recovered()
        except ServiceError as error:
            self._outage.failed(code=error.code.code)
        return 0.0 if self._is_report_due else None

    async def _check_followers(self, followers: Sequence[ChannelFollower]) -> None:
        for start in range(0, len(followers), MAX_HEADS):
            part = followers[start : start + MAX_HEADS]
            heads = await self._broker.stream_heads(
                [follower.channel for follower in part], [follower.delivered for follower in part]
            )
            for follower, head in zip(part, heads, strict=True):
                if head is not None:
                    follower.check_head(head)

    async def _report(self, *, is_leaving: bool = False) -> None:
        state = NodeState(
            connections=self._status.connections,
            started=self._started_at,
            version=version(),
            accepting=self._status.is_accepting,
            draining=self._status.is_draining,
            webhooks=self._webhooks,
            gone=is_leaving,
        )
        await self._broker.publish(
            Publication(
                channel=NODES,
                type="node.state",
                id=new_id(),
                delivery=Delivery.LATEST,
                data=encode(state),
                sender=None,
                at=milliseconds(self._runtime.clock),
                key=self._node_id,
                retention=NODE_STATE_RETENTION,
            )
        )
