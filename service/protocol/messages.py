"""Every message of `tidewire.v1` as a type. docs/protocol.md is normative; tests/vectors has the examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

SUBPROTOCOL = "tidewire.v1"

MAX_ID = 64
MAX_TOKEN = 8192
MAX_KEY = 128
MAX_PAGE = 1000
"""Largest number of events in one `history` page."""
MAX_CALL_NAME = 64
MAX_TAIL = 100
"""Largest number of events in the tail of a `subscribed`."""

# Python's `$` also matches before a final newline. With the look-ahead, the pattern means the same in JSON Schema.
Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID, pattern=r"^[\x21-\x7e]+(?!\n)$")]
"""Unique for each sender. The reply has the same id. It makes durable publishes idempotent, and becomes the event's id."""
Token = Annotated[str, Meta(min_length=1, max_length=MAX_TOKEN)]
Channel = Annotated[str, Meta(min_length=1, max_length=512)]
"""Only the length is checked here. core/channel.py checks the naming rules, with another error code."""
CallName = Annotated[str, Meta(min_length=1, max_length=MAX_CALL_NAME)]
"""Only the length is checked here. The gate knows the names."""
Offset = Annotated[int, Meta(ge=0, le=2**53 - 1)]
PageSize = Annotated[int, Meta(ge=1, le=MAX_PAGE)]
TailSize = Annotated[int, Meta(ge=1, le=MAX_TAIL)]


class Since(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The last position that a client has applied. `id` is the event at `offset`, absent at offset 0."""

    epoch: Annotated[str, Meta(min_length=1, max_length=64)]
    offset: Offset
    id: Id | None = None


# --- client → server -------------------------------------------------------------------------------------------------


class ClientMessage(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A message from a client. Unknown fields are refused, so that misspelt fields are not ignored."""


class Hello(ClientMessage, frozen=True, tag="hello", tag_field="type"):
    """Authenticates a connection whose upgrade carried no credentials. Without a token: anonymous, where allowed."""

    token: Token | None = None


class Ready(ClientMessage, frozen=True, tag="ready", tag_field="type"):
    """Deliveries may start."""


class Subscribe(ClientMessage, frozen=True, tag="subscribe", tag_field="type"):
    """Subscribes to a channel, and resumes at `since` if given."""

    id: Id
    channel: Channel
    since: Since | None = None
    tail: TailSize | None = None
    """The number of last durable events that `subscribed` brings."""
    token: Token | None = None
    """A token that grants this subscription only."""


class Unsubscribe(ClientMessage, frozen=True, tag="unsubscribe", tag_field="type"):
    """Ends a subscription."""

    id: Id
    channel: Channel


class History(ClientMessage, frozen=True, tag="history", tag_field="type"):
    """Requests a page: the first `limit` events after `after`, or the last `limit` before `before`, or the last of all."""

    id: Id
    channel: Channel
    limit: PageSize = 50
    after: Offset | None = None
    before: Offset | None = None


class Presence(ClientMessage, frozen=True, tag="presence", tag_field="type"):
    """Requests the presence of a channel."""

    id: Id
    channel: Channel


class PresenceUpdate(ClientMessage, frozen=True, tag="presence.update", tag_field="type"):
    """Sets the info that presence shows of the user in a channel."""

    channel: Channel
    data: Raw
    id: Id | None = None


class Refresh(ClientMessage, frozen=True, tag="refresh", tag_field="type"):
    """Replaces the token of the connection, or that of a subscription."""

    id: Id
    token: Token
    channel: Channel | None = None
    """The subscription whose own token is replaced."""


class Ping(ClientMessage, frozen=True, tag="ping", tag_field="type"):
    """Requests a pong. Browsers cannot see WebSocket pings."""

    id: Id | None = None


class Call(ClientMessage, frozen=True, tag="call", tag_field="type"):
    """Calls the backend, which answers with `reply`. Later messages of the client do not wait for it."""

    call: CallName
    """The name of the call in the contract."""
    id: Id
    data: Raw


class Publish(Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An application event: any type with a dot."""

    type: str
    channel: Channel
    data: Raw
    id: Annotated[str, Meta(min_length=1, max_length=MAX_ID)] | None = None
    """An `Id`. codec.py checks its characters: the regular expression takes as long as all else of a publish."""
    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY)] | None = None
    if_rev: Offset | None = None
    """Only if the value of the key has this `rev`; 0: only if there is no value."""


class Remove(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Removes the value of a key: a message with the type of a latest event, and `removed` instead of `data`."""

    type: str
    channel: Channel
    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY)]
    removed: Literal[True]
    id: Id | None = None
    if_rev: Offset | None = None
    """Only if the value of the key has this `rev`; 0: only if there is no value."""


Command = (
    Hello
    | Ready
    | Subscribe
    | Unsubscribe
    | History
    | Presence
    | PresenceUpdate
    | Refresh
    | Ping
    | Call
    | Publish
    | Remove
)


# --- server → client -------------------------------------------------------------------------------------------------


class ServerMessage(Struct, frozen=True, omit_defaults=True):
    """A message from the service. Absent fields do not apply."""


class SharedLimits(Struct, frozen=True, omit_defaults=True):
    """Limits that all connections of one user, or from one address, share."""

    connections: int
    rate: float
    """Messages per second over time."""
    burst: int
    """Messages at once."""
    subscribe_rate: float
    """Subscribes per second over time."""
    subscribe_burst: int
    """Subscribes at once."""
    connect_rate: float | None = None
    """Upgrades and tickets per second over time; only for an address."""
    connect_burst: int | None = None
    """Upgrades and tickets at once."""


class Limits(Struct, frozen=True, omit_defaults=True):
    """The limits of a client, sent in `welcome`."""

    message: int
    """Bytes in one inbound frame."""
    batch: int
    """Messages in one inbound frame."""
    subscriptions: int
    """Subscriptions of one connection."""
    calls: int
    """Calls to the backend that it may have under way."""
    rate: float
    """Messages per second that a connection may send over time."""
    burst: int
    """Messages that it may send at once."""
    subscribe_rate: float
    """Subscribes per second that a connection may send over time."""
    subscribe_burst: int
    """Subscribes that it may send at once."""
    violations: int
    """Frames above these rates that it may send within 10 s."""
    address: SharedLimits
    user: SharedLimits | None = None
    """Absent for an anonymous connection."""


class Welcome(ServerMessage, frozen=True, tag="welcome", tag_field="type"):
    """The first message of an authenticated connection."""

    connection: str
    user: str
    """Empty for an anonymous connection."""
    heartbeat: float
    """Seconds of silence after which a client should send `ping`."""
    limits: Raw
    """Limits, encoded once for many connections."""
    features: Raw
    """Names of the node's features, sorted (protocol/features.py); encoded once for all connections."""
    expires_in: int | None = None
    """Seconds until the token expires; absent if it does not."""
    data: Raw | UnsetType = UNSET
    """What the backend says to the client (feature `connect_data`); absent if it says nothing."""


class PresenceMember(Struct, frozen=True, omit_defaults=True):
    """A user in a channel, with one or more connections."""

    user: str
    connections: int
    info: Raw | UnsetType = UNSET
    """The `info` claim of the user's token; or what its client has set, then `updated` is true."""
    updated: bool = False


class PresenceView(Struct, frozen=True, omit_defaults=True):
    """The users in a channel; in a large channel only their number."""

    count: int
    members: list[PresenceMember] | None = None


class Subscribed(ServerMessage, frozen=True, tag="subscribed", tag_field="type"):
    """A subscription is live. The position (epoch, offset, last) is valid after applying `events`."""

    id: str | None
    """The request's id; null for a channel in the upgrade's URL."""
    channel: str
    epoch: str
    offset: int
    events: list[Raw]
    state: list[Raw]
    """The newest event of every key."""
    last: str | None = None
    """The id of the event at `offset`; absent at offset 0."""
    recovered: bool | None = None
    """True: `events` has all missed events. False: events are missing. Absent: no recovery was requested."""
    presence: PresenceView | None = None
    tail: list[Raw] | None = None
    """The last durable events up to `offset`. Absent if they were not requested, or the client may not read them."""


class Unsubscribed(ServerMessage, frozen=True, tag="unsubscribed", tag_field="type"):
    """The subscription has ended; `code` says why."""

    channel: str
    code: str
    id: str | None = None


class Event(ServerMessage, frozen=True, gc=False, rename={"sender": "from"}):
    """An application event, as subscribers receive it. Its type has a dot."""

    type: str
    channel: str
    id: str
    at: int
    """Milliseconds since the Unix epoch."""
    sender: str | None
    """The publishing user; null for the backend."""
    data: Raw
    offset: int | None = None
    """Dense per channel; only durable events have one."""
    rev: int | None = None
    """Grows with every change in the channel; only latest events have one."""
    key: str | None = None
    ttl: int | None = None
    """Milliseconds until the value ends; only latest events have one, if their contract does."""
    exclude: str | None = None
    """The connection of the publishing user that drops the event, because it knows it already."""


class RemovedValue(ServerMessage, frozen=True, rename={"sender": "from"}):
    """The value of a key was removed. Only for clients that have announced the feature `removal`."""

    type: str
    """Of the removed value."""
    channel: str
    id: str
    at: int
    """Milliseconds since the Unix epoch."""
    sender: str | None
    """The user that removed it; null for the backend."""
    rev: int
    key: str
    removed: Literal[True]


class Ack(ServerMessage, frozen=True, gc=False, tag="ack", tag_field="type"):
    """A request has succeeded; a durable event is in the stream."""

    id: str
    offset: int | None = None
    rev: int | None = None
    duplicate: bool = False


class Reply(ServerMessage, frozen=True, tag="reply", tag_field="type"):
    """What the backend answers to a call."""

    id: str
    data: Raw


class Error(ServerMessage, frozen=True, tag="error", tag_field="type"):
    """A request was refused, without further effect."""

    code: str
    message: str
    retryable: bool
    details: dict[str, Any]
    id: str | None = None


class HistoryPage(ServerMessage, frozen=True, tag="history", tag_field="type"):
    """The reply to `history`, oldest first. (epoch, offset, last) is the channel's newest position."""

    id: str
    channel: str
    epoch: str
    offset: int
    events: list[Raw]
    more: bool
    """True if the stream has further events in the requested direction."""
    last: str | None = None
    older: str | None = None
    """The path of a page that caches may keep, with the event before the first one."""
    newer: str | None = None
    """The same for the event after the last one."""


class PresenceReply(ServerMessage, frozen=True, tag="presence", tag_field="type"):
    """The reply to `presence`. Without an id, it says that a live subscription may now see presence, or no longer."""

    id: str | None
    channel: str
    presence: PresenceView | None
    """None when the right to see presence has ended."""


class Expiring(ServerMessage, frozen=True, rename={"seconds": "in"}, tag="expiring", tag_field="type"):
    """The token expires soon; reply with `refresh`."""

    seconds: int
    channel: str | None = None
    """The subscription, if the token is that of a subscription."""


class Reconnect(ServerMessage, frozen=True, tag="reconnect", tag_field="type"):
    """The node will close this connection; reconnect `after` seconds later."""

    after: float
    reason: str


class SessionReceipt(ServerMessage, frozen=True, tag="receipt", tag_field="type"):
    """What a client shows to any node to publish in the session of its stream. Each one replaces the last."""

    receipt: str
    expires_in: int
    """Seconds."""


class Closed(ServerMessage, frozen=True, tag="closed", tag_field="type"):
    """The last message of a stream, in place of a close frame."""

    code: int
    """A close code."""
    reason: str


class Pong(ServerMessage, frozen=True, tag="pong", tag_field="type"):
    """The reply to `ping`."""

    id: str | None = None


SYSTEM_TYPES = frozenset(
    str(message.__struct_config__.tag)
    for message in (
        *(Hello, Ready, Subscribe, Unsubscribe, History, Presence, PresenceUpdate, Refresh, Ping, Call),
        *(
            Welcome,
            Subscribed,
            Unsubscribed,
            Ack,
            Reply,
            Error,
            HistoryPage,
            PresenceReply,
            Expiring,
            Reconnect,
            SessionReceipt,
            Closed,
            Pong,
        ),
    )
) | {"presence.joined", "presence.left", "presence.count", "event.removed"}
"""Every type that contracts cannot declare. The set is fixed, so it can be a metric label."""

TAGS: Mapping[type[Struct], str] = {
    message: str(message.__struct_config__.tag)
    for message in (*ClientMessage.__subclasses__(), *ServerMessage.__subclasses__())
    if message not in (Event, RemovedValue)
}
"""The type of each message on the wire. A lookup, because `__struct_config__` makes an object each time."""

encode = msgspec.json.Encoder().encode
