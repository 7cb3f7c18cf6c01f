"""The parts of a node that speak with the other nodes."""

from __future__ import annotations

from service.core.authenticator import Authenticator
from service.core.broker import Broker
from service.realtime.bounds import Bounds
from service.realtime.cluster.control import Control, NodeStatus
from service.realtime.cluster.membership import Membership
from service.realtime.cluster.node_actions import NodeActions
from service.realtime.cluster.revocations import RevocationGuard, Revocations
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.streams.event_delivery import EventDelivery


class Cluster:
    """Owns this node's view of the other nodes, what it asks of them, and the revocations that all share."""

    def __init__(
        self,
        broker: Broker,
        authenticator: Authenticator,
        status: NodeStatus,
        delivery: EventDelivery,
        bounds: Bounds,
        runtime: Runtime,
        store_runtime: Runtime,
    ) -> None:
        """`store_runtime` goes by the clock of the store, `runtime` by the node's."""
        self.node_id = new_id()
        self.clock = store_runtime.clock
        """The store's time, for moments that all nodes must agree on."""
        self.membership = Membership(self.node_id, runtime.clock)
        self.actions = NodeActions(delivery.registry, delivery.hub, delivery.subscriptions)
        self.revocations = Revocations(
            delivery.registry,
            broker,
            store_runtime,
            token_clock=runtime.clock,
            tap=delivery.relay.subscribe_internally,
            ttl=bounds.revocation_ttl,
            most=bounds.revocations,
            total=bounds.revocations_total,
        )
        self.authenticator = RevocationGuard(authenticator, self.revocations)
        self.control = Control(
            self.node_id,
            self.membership,
            self.actions,
            status,
            self.revocations,
            broker,
            delivery.relay.subscribe_internally,
            runtime,
        )

    async def start(self) -> None:
        """Reads the revocations, then reports this node to the others. Raises ServiceError."""
        await self.revocations.start()
        await self.control.start()

    async def close(self) -> None:
        """Reports to the others that this node leaves."""
        self.revocations.close()
        await self.control.close()
