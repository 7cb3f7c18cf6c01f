"""Messages between nodes, and the internal channels that carry them through the broker.

Nodes of different versions work together: a node ignores unknown fields, and does not respond to unknown requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import zip_longest
from operator import or_
from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta, Struct

from service.core.channel import ChannelKey
from service.core.event import Retention
from service.core.identity import Grant, Identity, Right
from service.core.revocation import Revocation
from service.protocol.close import CloseCode
from service.realtime.cluster.node_actions import NodeActions
from service.realtime.cluster.session_endings import Ended, session_ended, subscription_ended, user_ended

INTERNAL_TENANT = ""
"""The tenant of internal channels. No client has it: a tenant's name has at least one character (adapters/jwt, settings)."""

REQUESTS = ChannelKey(INTERNAL_TENANT, "control")
"""Commands (durable, so that a node can read missed ones) and queries (ephemeral)."""
NODES = ChannelKey(INTERNAL_TENANT, "nodes")
"""Node reports: `latest` events, keyed by node id."""
REVOKING_TENANTS = ChannelKey(INTERNAL_TENANT, "revoking")
"""Tenants that have revoked tokens: `latest` events, keyed by tenant. Each tenant has its own channel for the revocations."""
INTERNAL_CHANNELS = 4
"""Internal channels of a node, for a broker with a limit on channels: these three and the node's inbox. Each tenant with
revocations adds one, and the latency probe adds one."""
MAX_TENANTS = 100_000
"""Entries of REVOKING_TENANTS. Only holders of API keys revoke, so the settings limit the number."""

COMMAND_RETENTION = Retention(entries=1_000, ttl=600.0)
"""How many missed commands a node can read, and how old they may be."""
HEARTBEAT_INTERVAL = 5.0
"""Seconds between two reports of a node."""
NODE_STATE_RETENTION = Retention(entries=10_000, ttl=3 * HEARTBEAT_INTERVAL)
"""A node counts as gone after its last report's TTL, in which two reports may be lost."""


def inbox_channel(node: str) -> ChannelKey:
    """Returns the channel of the responses to one node. Other nodes do not receive them."""
    return ChannelKey(INTERNAL_TENANT, f"node:{node}")


def probe_channel(node: str) -> ChannelKey:
    """Returns the channel of one node's latency probe. Other nodes do not receive its events."""
    return ChannelKey(INTERNAL_TENANT, f"probe:{node}")


def revocations_channel(tenant: str) -> ChannelKey:
    """Returns the channel of a tenant's revocations: `latest` events, keyed by subject. The broker limits each channel."""
    return ChannelKey(INTERNAL_TENANT, f"revocations:{tenant}")


class Request(Struct, frozen=True, kw_only=True):
    """Asks every node to run an action and to respond with numbers.

    A new request needs a subclass with a tag, fields and `run`, and a method of NodeActions that `run` calls.
    """

    requester: str = msgspec.field(default="", name="asker")
    """The id of the node that receives the responses. `ClusterRequests.send` sets it."""

    is_command: ClassVar[bool] = True
    """True for a command: durable and counted in the metrics. False for a query to the nodes that are connected now."""

    @property
    def response_size(self) -> int:
        """The count of numbers in a node's response."""
        return 1

    @property
    def endings(self) -> Sequence[Ended]:
        """The sessions and subscriptions that the request ends, also where a receipt stands for them."""
        return ()

    async def run(self, node: NodeActions) -> list[int]:
        """Runs the request on this node. Returns the numbers of the response."""
        raise NotImplementedError


class Disconnect(Request, frozen=True, kw_only=True, tag="disconnect"):
    """Closes a user's connections with 4403. Responds with the number of connections."""

    tenant: str
    user: str
    reason: str

    @property
    def endings(self) -> Sequence[Ended]:
        """All sessions of the user."""
        return (user_ended(self.tenant, self.user),)

    async def run(self, node: NodeActions) -> list[int]:
        """Closes those of this node."""
        return [await node.disconnect(self.tenant, self.user, self.reason)]


class Unsubscribe(Request, frozen=True, kw_only=True, tag="unsubscribe"):
    """Ends a user's subscriptions to a channel. Responds with the number of subscriptions."""

    tenant: str
    user: str
    channel: str

    @property
    def endings(self) -> Sequence[Ended]:
        """The user's subscriptions to the channel."""
        return (subscription_ended(self.tenant, self.user, self.channel),)

    async def run(self, node: NodeActions) -> list[int]:
        """Ends those of this node."""
        return [await node.unsubscribe(self.tenant, self.user, self.channel)]


class Subscribe(Request, frozen=True, kw_only=True, tag="subscribe"):
    """Subscribes a user's connections to a channel. Responds with the number of connections that take the subscription."""

    tenant: str
    user: str
    channel: str
    rights: list[str]
    """What the user may do in the channel while subscribed, beside what the token allows: names of `Right`."""
    at: float
    """The time of the command in seconds since the Unix epoch, as that of a token's issue: a later revocation ends the rights."""

    async def run(self, node: NodeActions) -> list[int]:
        """Subscribes those of this node."""
        grant = Grant(self.channel, frozenset(map(Right, self.rights)))
        granted = Identity(self.tenant, self.user, (grant,), issued_at=self.at)
        return [await node.subscribe(self.tenant, self.user, self.channel, granted)]


class CloseConnections(Request, frozen=True, kw_only=True, tag="close"):
    """Closes connections by their ids. Responds with the number of connections found."""

    connections: list[str]
    code: str
    """The name of a CloseCode."""
    reason: str
    users: list[tuple[str, str]] = []
    """Tenant and user of each connection. Empty in requests of older versions."""

    @property
    def endings(self) -> Sequence[Ended]:
        """The sessions of these connections."""
        users = zip_longest(self.connections, self.users, fillvalue=("", ""))
        return tuple(session_ended(str(session), tenant, user) for session, (tenant, user) in users)

    async def run(self, node: NodeActions) -> list[int]:
        """Closes those of this node."""
        return [await node.close_connections(self.connections, CloseCode[self.code], self.reason)]


class CountSubscribers(Request, frozen=True, kw_only=True, tag="subscribers"):
    """Counts the subscribers of channels. Responds with one number per channel."""

    tenant: str
    channels: list[str]

    is_command: ClassVar[bool] = False

    @property
    def response_size(self) -> int:
        """One number per channel."""
        return len(self.channels)

    async def run(self, node: NodeActions) -> list[int]:
        """Counts the subscribers on this node."""
        return [node.count_subscribers(ChannelKey(self.tenant, name)) for name in self.channels]


class Response(Struct, frozen=True, kw_only=True):
    """One node's response to a request."""

    request: str
    """The id of the request's event."""
    node: str
    counts: list[int]


class SessionMoved(Struct, frozen=True, kw_only=True):
    """Tells the node that holds a session of long polls that another node has taken it."""

    session: str


class NodeState(Struct, frozen=True, kw_only=True):
    """A node's report of itself."""

    connections: Annotated[int, Meta(ge=0, le=2**53)]
    started: float
    """Seconds since the Unix epoch."""
    version: str
    accepting: bool = True
    """True if the node accepts connections. Versions without this field always accept them."""
    draining: bool = False
    """True while the node's connections move to other nodes."""
    webhooks: str = ""
    """Names the endpoints whose queues of webhooks the node delivers (`WebhookLimits.digest`); empty if it delivers none."""
    gone: bool = False
    """True in the last report of a node that leaves."""


encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(reduce(or_, Request.__subclasses__())).decode
decode_response = msgspec.json.Decoder(Response).decode
decode_session_moved = msgspec.json.Decoder(SessionMoved).decode
decode_node_state = msgspec.json.Decoder(NodeState).decode
decode_revocation = msgspec.json.Decoder(Revocation).decode
