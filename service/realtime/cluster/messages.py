"""Messages between nodes, and the internal channels that carry them through the broker.

Nodes of different versions understand each other: a node ignores fields that it does not know, and does not respond to requests
that it does not know.
"""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta, Struct

from service.core.channel import ChannelKey
from service.core.event import Retention
from service.core.revocation import Revocation
from service.protocol.close import CloseCode
from service.realtime.cluster.node_actions import NodeActions

INTERNAL_TENANT = ""
"""The tenant of internal channels. No client is in it: a tenant's name has at least one character (adapters/jwt, settings)."""

REQUESTS = ChannelKey(INTERNAL_TENANT, "control")
"""Commands (durable, so that a node reads those that it has missed) and queries (ephemeral)."""
NODES = ChannelKey(INTERNAL_TENANT, "nodes")
"""Each node's state: latest, by the node's id."""
REVOKING_TENANTS = ChannelKey(INTERNAL_TENANT, "revoking")
"""Tenants that have revoked tokens: latest, by tenant. The revocations are in one channel a tenant."""
INTERNAL_CHANNELS = 4
"""Internal channels of a node, for a broker that bounds its channels: these three and the node's inbox. Each tenant that revokes
adds one, and the latency probe adds one."""
MAX_TENANTS = 100_000
"""Entries of REVOKING_TENANTS. Only holders of API keys revoke, so there are no more than the settings name."""

COMMAND_RETENTION = Retention(entries=1_000, ttl=600.0)
"""How far back a node can read the commands that it has missed."""
HEARTBEAT_INTERVAL = 5.0
"""Seconds between two reports of a node."""
NODE_STATE_RETENTION = Retention(entries=10_000, ttl=3 * HEARTBEAT_INTERVAL)
"""A node without a report for the TTL is gone. Two reports may be lost."""


def inbox_channel(node: str) -> ChannelKey:
    """The channel of a node's responses, so that not every node receives each of them."""
    return ChannelKey(INTERNAL_TENANT, f"node:{node}")


def probe_channel(node: str) -> ChannelKey:
    """The channel of a node's latency probe. Each node has its own, so that the others do not receive it."""
    return ChannelKey(INTERNAL_TENANT, f"probe:{node}")


def revocations_channel(tenant: str) -> ChannelKey:
    """The channel of a tenant's revocations: latest, by subject. The broker bounds each channel by itself."""
    return ChannelKey(INTERNAL_TENANT, f"revocations:{tenant}")


class Request(Struct, frozen=True, kw_only=True):
    """Asks every node to run an action and to respond with numbers. Its subclasses are all requests that there are.

    Example of a new request: a subclass with a tag, its fields and `run`, and the method of NodeActions that `run` calls.
    """

    requester: str = msgspec.field(default="", name="asker")
    """The id of the node that receives the responses. `ClusterRequests.send` sets it."""

    is_command: ClassVar[bool] = True
    """True: durable, and counted. False: a query of the nodes that are connected now."""

    @property
    def response_size(self) -> int:
        """How many numbers a node responds with."""
        return 1

    async def run(self, node: NodeActions) -> list[int]:
        """Runs the request on this node. Returns the numbers of the response."""
        raise NotImplementedError


class Disconnect(Request, frozen=True, kw_only=True, tag="disconnect"):
    """Closes a user's connections with 4403. Responds with their number."""

    tenant: str
    user: str
    reason: str

    async def run(self, node: NodeActions) -> list[int]:
        """Closes those of this node."""
        return [await node.disconnect(self.tenant, self.user, self.reason)]


class Unsubscribe(Request, frozen=True, kw_only=True, tag="unsubscribe"):
    """Ends a user's subscriptions to a channel. Responds with their number."""

    tenant: str
    user: str
    channel: str

    async def run(self, node: NodeActions) -> list[int]:
        """Ends those of this node."""
        return [await node.unsubscribe(self.tenant, self.user, self.channel)]


class CloseConnections(Request, frozen=True, kw_only=True, tag="close"):
    """Closes connections by their ids. Responds with the number found."""

    connections: list[str]
    code: str
    """The name of a CloseCode."""
    reason: str

    async def run(self, node: NodeActions) -> list[int]:
        """Closes those of this node."""
        return [await node.close_connections(self.connections, CloseCode[self.code], self.reason)]


class CountSubscribers(Request, frozen=True, kw_only=True, tag="subscribers"):
    """Counts the subscribers of channels. Responds with one number a channel."""

    tenant: str
    channels: list[str]

    is_command: ClassVar[bool] = False

    @property
    def response_size(self) -> int:
        """One number a channel."""
        return len(self.channels)

    async def run(self, node: NodeActions) -> list[int]:
        """Counts those of this node."""
        return [node.count_subscribers(ChannelKey(self.tenant, name)) for name in self.channels]


class Response(Struct, frozen=True, kw_only=True):
    """One node's response to a request."""

    request: str
    """The id of the request's event."""
    node: str
    counts: list[int]


class NodeState(Struct, frozen=True, kw_only=True):
    """A node's report of itself."""

    connections: Annotated[int, Meta(ge=0, le=2**53)]
    started: float
    """Seconds since the Unix epoch."""
    version: str
    accepting: bool = True
    """True if the node accepts connections. Versions that do not report it accept them."""
    draining: bool = False
    """True while the node's connections are being moved to the other nodes."""
    gone: bool = False
    """True in the last report of a node that leaves."""


encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(reduce(or_, Request.__subclasses__())).decode
decode_response = msgspec.json.Decoder(Response).decode
decode_node_state = msgspec.json.Decoder(NodeState).decode
decode_revocation = msgspec.json.Decoder(Revocation).decode
