"""The parts of a node that communicate with the other nodes."""

from __future__ import annotations

from service.core.authenticator import Authenticator
from service.core.broker import Broker
from service.core.receipt import ReceiptSigner
from service.realtime.bounds import Bounds
from service.realtime.cluster.heartbeat import Heartbeat, NodeStatus
from service.realtime.cluster.membership import Membership
from service.realtime.cluster.node_actions import NodeActions
from service.realtime.cluster.receipts import Receipts
from service.realtime.cluster.requests import ClusterRequests
from service.realtime.cluster.revocations import RevocationGuard, Revocations
from service.realtime.cluster.session_endings import SessionEndings
from service.realtime.runtime import Runtime
from service.realtime.streams.streams import Streams


class Cluster:
    """Owns the membership, the requests to all nodes, and the revocations."""

    def __init__(
        self,
        node_id: str,
        broker: Broker,
        authenticator: Authenticator,
        status: NodeStatus,
        streams: Streams,
        bounds: Bounds,
        runtime: Runtime,
        store_runtime: Runtime,
        *,
        receipt_key: bytes,
    ) -> None:
        """`store_runtime` uses the store clock, `runtime` the node's own clock. `receipt_key`: the same on all nodes."""
        self.node_id = node_id
        self.clock = store_runtime.clock
        """The store clock, for times that all nodes must agree on."""
        self.membership = Membership(self.node_id, runtime.clock)
        self.actions = NodeActions(streams.registry, streams.hub, streams.subscriptions)
        subscribe_internally = streams.relay.subscribe_internally
        endings = SessionEndings(runtime.metrics)
        self.receipts = Receipts(ReceiptSigner(receipt_key), endings, store_runtime.clock)
        self.requests = ClusterRequests(
            self.node_id, self.membership, self.actions, endings, broker, subscribe_internally, runtime
        )
        self.revocations = Revocations(
            streams.registry,
            streams.grants,
            streams.revoked,
            broker,
            store_runtime,
            token_clock=runtime.clock,
            subscribe_internally=subscribe_internally,
            ttl=bounds.revocation_ttl,
            max_per_tenant=bounds.revocations,
        )
        self.authenticator = RevocationGuard(authenticator, self.revocations)
        self.heartbeat = Heartbeat(
            self.node_id,
            status,
            self.membership,
            self.requests.follower,
            self.revocations,
            broker,
            subscribe_internally,
            runtime,
            webhooks=bounds.webhooks.digest,
        )
        runtime.metrics.cluster.nodes.set_function(lambda: 1 + len(self.membership.reports()))

    async def start(self) -> None:
        """Reads the revocations, subscribes to requests, then reports this node to the others. Raises ServiceError."""
        await self.revocations.start()
        await self.requests.start()
        await self.heartbeat.start()

    async def close(self) -> None:
        """Reports to the others that this node leaves."""
        self.revocations.close()
        await self.heartbeat.close()
