"""What nodes say to each other, and the channels that carry it: the broker's own, under a tenant that nobody can be in.

Nodes of different versions understand each other: unknown fields are passed over, an unknown request is not answered.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from service.core.channel import ChannelKey
from service.core.event import Retention
from service.core.revocation import Revocation

OWN_TENANT = ""
"""Every tenant's name has at least one character (see adapters/jwt/issuer.py and the settings)."""

CONTROL = ChannelKey(OWN_TENANT, "control")
"""Commands (durable, so that a node reads what it has missed) and questions (ephemeral)."""
NODES = ChannelKey(OWN_TENANT, "nodes")
"""What each node tells of itself: latest, by the node's id."""
REVOKING_TENANTS = ChannelKey(OWN_TENANT, "revoking")
"""Tenants of whom tokens are good no more: latest, by tenant. Which tokens, stands in `revocations_of` each."""
OWN_CHANNELS = 4
"""These three and the node's inbox: what a node takes of a broker that bounds its channels, beside one a tenant that revokes, and
one for a probe."""
MAX_TENANTS = 100_000
"""Entries of REVOKING_TENANTS. Only holders of API keys revoke, so there are no more than the settings name."""

COMMANDS = Retention(entries=1_000, ttl=600.0)
"""How far back a node can read the commands that it has missed."""
HEARTBEAT_INTERVAL = 5.0
"""Seconds between two reports of a node."""
NODE_STATE = Retention(entries=10_000, ttl=3 * HEARTBEAT_INTERVAL)
"""A node without a report for the ttl is gone: three reports in a row were lost."""


def inbox(node: str) -> ChannelKey:
    """Where a node gets its answers, so that not every node hears each of them."""
    return ChannelKey(OWN_TENANT, f"node:{node}")


def probe_of(node: str) -> ChannelKey:
    """Where a node measures how long events take: alone, or the more nodes there are the more each would hear."""
    return ChannelKey(OWN_TENANT, f"probe:{node}")


def revocations_of(tenant: str) -> ChannelKey:
    """Tokens of a tenant that are good no more: latest, by subject. A channel each, as the broker bounds each by itself."""
    return ChannelKey(OWN_TENANT, f"revocations:{tenant}")


class Request(Struct, frozen=True, kw_only=True):
    """Something that every node is to do or to tell. Its event's id goes with the answers."""

    asker: str
    """The id of the node that gets the answers."""


class Disconnect(Request, frozen=True, kw_only=True, tag="disconnect"):
    """Close a user's connections. Answer: how many there were."""

    tenant: str
    user: str
    reason: str


class Unsubscribe(Request, frozen=True, kw_only=True, tag="unsubscribe"):
    """End a user's subscriptions to a channel. Answer: how many there were."""

    tenant: str
    user: str
    channel: str


class Close(Request, frozen=True, kw_only=True, tag="close"):
    """Close these connections. Answer: how many there were."""

    connections: list[str]
    code: str
    """Of CloseCode, by name."""
    reason: str


class CountSubscribers(Request, frozen=True, kw_only=True, tag="subscribers"):
    """Tell how many connections have joined each of these channels."""

    tenant: str
    channels: list[str]


class Answer(Struct, frozen=True, kw_only=True):
    """What one node says to a request."""

    request: str
    node: str
    counts: list[int]
    """One number for a command, one a channel for CountSubscribers."""


class NodeState(Struct, frozen=True, kw_only=True):
    """What a node tells of itself."""

    connections: Annotated[int, Meta(ge=0, le=2**53)]
    started: float
    """Seconds since the Unix epoch."""
    version: str
    accepting: bool = True
    """Whether it takes new connections. A node of a version that does not tell is taken to."""
    draining: bool = False
    """Whether all of its connections are about to come to the others."""
    gone: bool = False
    """Whether this is the last it says."""


Command = Disconnect | Unsubscribe | Close

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Disconnect | Unsubscribe | Close | CountSubscribers).decode
decode_answer = msgspec.json.Decoder(Answer).decode
decode_state = msgspec.json.Decoder(NodeState).decode
decode_revocation = msgspec.json.Decoder(Revocation).decode
