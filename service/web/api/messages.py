"""Every body and query of the backend API, as data. docs/http-api.md is the text; openapi.py makes the description of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from service.core.access import PublishRule, SubscribeRule
from service.core.channel import MAX_CHANNEL_BYTES, NAME
from service.core.event import Delivery
from service.errors import ErrorCode
from service.protocol.messages import MAX_KEY, MAX_PAGE, Event, Id, Offset, PageSize, PresenceView

MAX_EVENTS = 1000
"""Events in one request. With an idempotency key of 60 characters, `<key>.999` just fits into an event's id."""
MAX_USER = 128
MAX_ID = 256
"""Characters of a `jti`, as in adapters/jwt/claims.py."""
MAX_TIME = 253_402_300_799
"""The end of the year 9999."""
MAX_REASON = 123
"""Bytes that RFC 6455 §5.5 leaves for the reason in a close frame."""


def ref(schema: type[Struct]) -> dict[str, Any]:
    """Where the machine-readable description holds a Struct."""
    return {"$ref": f"#/components/schemas/{schema.__name__}"}


CHANNEL_SCHEMA: Mapping[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_CHANNEL_BYTES,
    "pattern": f"^{NAME}$",
    "examples": ["room:42"],
}
Channel = Annotated[str, Meta(extra_json_schema=dict(CHANNEL_SCHEMA))]
"""Checked by `check_name`, so that breaking its rules has its own error."""

_SEEN = r"\p{L}\p{M}\p{N}\p{P}\p{S}"
USER_SCHEMA: Mapping[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_USER,
    "pattern": f"^[{_SEEN}]([{_SEEN} ]*[{_SEEN}])?$",
    "description": "Printable characters, without spaces around them.",
    "examples": ["ann"],
}
User = Annotated[str, Meta(extra_json_schema=dict(USER_SCHEMA))]
"""Checked by `is_user`: Python's `re` knows no such classes."""
EncodedEvent = Annotated[Raw, Meta(extra_json_schema=ref(Event))]
"""An event as subscribers see it."""
IdempotencyKey = Annotated[str, Meta(min_length=1, max_length=60, pattern=r"^[\x21-\x7e]+(?!\n)$")]


# --- what a backend sends ----------------------------------------------------------------------------------------------


class Sent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a backend may send. Unknown names are refused: a misspelt one would otherwise vanish silently."""


class NewEvent(Sent, frozen=True, kw_only=True, rename={"sender": "from"}):
    """An event to publish in the channel that the address names."""

    type: Annotated[str, Meta(min_length=1, max_length=128, examples=["chat.message"])]
    data: Annotated[Raw, Meta(description="What the contract's schema of this event type asks for.")]
    id: Id | None = None
    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY)] | None = None
    sender: User | None = None
    """The user on whose behalf the backend publishes."""


class AddressedEvent(NewEvent, frozen=True, kw_only=True):
    """An event to publish in the channel that it names itself."""

    channel: Channel


_T = TypeVar("_T")
Events = Annotated[list[_T], Meta(max_length=MAX_EVENTS)]
"""Several events of one request."""


Moment = Annotated[float, Meta(ge=0, le=MAX_TIME, description="Seconds since the Unix epoch.")]
Reason = Annotated[str, Meta(max_length=MAX_REASON, description=f"Told to the client; {MAX_REASON} bytes.")]


class Disconnect(Sent, frozen=True, kw_only=True):
    """Why a user is disconnected."""

    reason: Reason = ""


class RevokeUser(Sent, frozen=True, kw_only=True):
    """Which tokens of a user are good no more, and why."""

    before: (
        Annotated[Moment, Meta(description="Tokens issued before it (`iat`), in Unix seconds; now if absent.")]
        | UnsetType
    ) = UNSET
    reason: Reason = ""


class RevokeToken(Sent, frozen=True, kw_only=True):
    """Which token is good no more, and why."""

    jti: Annotated[str, Meta(min_length=1, max_length=MAX_ID, examples=["4f1c9a"])]
    """The token's `jti`."""
    reason: Reason = ""


class Unsubscribe(Sent, frozen=True, kw_only=True):
    """What a user is unsubscribed from."""

    channel: Channel


class NoQuery(Sent, frozen=True, kw_only=True):
    """No query parameters."""


class ChannelsQuery(Sent, frozen=True, kw_only=True):
    """Which channels to list."""

    prefix: Annotated[
        str,
        Meta(
            max_length=128,
            pattern=r"^[A-Za-z0-9_.@~=+:%-]*(?!\n)$",
            description="What their names start with.",
            examples=["room:"],
        ),
    ] = ""
    limit: Annotated[PageSize, Meta(description="Channels at most.")] = 100


class HistoryQuery(Sent, frozen=True, kw_only=True):
    """Which durable events to read."""

    after: Annotated[Offset, Meta(description="Only events with a greater offset, the first of them.")] | UnsetType = (
        UNSET
    )
    before: (
        Annotated[Offset, Meta(description="Only events with a smaller offset; without `after` the last of them.")]
        | UnsetType
    ) = UNSET
    limit: Annotated[PageSize, Meta(description="Events at most.")] = 50


class StateQuery(Sent, frozen=True, kw_only=True):
    """Which part of the state to read."""

    after: Annotated[Offset, Meta(description="Only values with a greater rev, the first of them.")] | UnsetType = UNSET
    limit: Annotated[PageSize, Meta(description="Values at most.")] = MAX_PAGE


# --- what it is answered -----------------------------------------------------------------------------------------------


class Reply(Struct, frozen=True, kw_only=True):
    """What the API answers. Absent fields mean: does not apply."""


Nodes = Annotated[int, Meta(ge=0, description="Nodes that have answered.")]
Complete = Annotated[
    bool,
    Meta(description="Whether every node has answered in time; else the numbers are those of the nodes that have."),
]


class Published(Reply, frozen=True, kw_only=True):
    """An event was accepted. Durable events have `offset`, latest events `rev`, ephemeral ones neither, nor an `epoch`."""

    id: str
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    rev: int | UnsetType = UNSET
    duplicate: Annotated[bool, Meta(description="It had been accepted before, and was not delivered again.")]


class Refusal(Reply, frozen=True, kw_only=True):
    """Why one event of several was not accepted."""

    code: Annotated[str, Meta(extra_json_schema={"enum": [code.code for code in ErrorCode]})]
    message: str
    details: Mapping[str, Any]
    retryable: bool


class Refused(Reply, frozen=True, kw_only=True):
    """One event of several was not accepted."""

    error: Refusal


class Results(Reply, frozen=True, kw_only=True):
    """What became of several events: one entry an event, in order."""

    results: Annotated[list[Any], Meta(extra_json_schema={"items": {"anyOf": [ref(Published), ref(Refused)]}})]


class ListedChannel(Reply, frozen=True, kw_only=True):
    """A channel and its newest position."""

    channel: str
    epoch: str
    offset: int
    last: Annotated[str, Meta(description="The id of the event at `offset`; absent at 0.")] | UnsetType = UNSET
    subscribers: Annotated[int, Meta(description="Connections that have joined it, on all nodes.")]


class ChannelList(Reply, frozen=True, kw_only=True):
    """Channels by name."""

    channels: list[ListedChannel]
    more: Annotated[bool, Meta(description="Whether there are further ones; ask with a longer prefix.")]
    complete: Complete


class KeptEvents(Reply, frozen=True, kw_only=True):
    """How much history a channel keeps."""

    events: int
    ttl: Annotated[float, Meta(description="Seconds.")]


class KeptKeys(Reply, frozen=True, kw_only=True):
    """How much state a channel keeps."""

    keys: int
    ttl: Annotated[float, Meta(description="Seconds.")]


class DeclaredEvent(Reply, frozen=True, kw_only=True):
    """What the contract says about an event type."""

    publish: PublishRule
    delivery: Delivery
    key: Annotated[str, Meta(description="JSON Pointer to the key in `data`.")] | UnsetType = UNSET
    window: (
        Annotated[float, Meta(description="Seconds within which events may be joined into one frame.")] | UnsetType
    ) = UNSET


class Declared(Reply, frozen=True, kw_only=True):
    """What the contract says about a channel."""

    pattern: str
    subscribe: SubscribeRule
    presence: bool
    history: KeptEvents | UnsetType = UNSET
    state: KeptKeys
    events: dict[str, DeclaredEvent]


class ChannelView(ListedChannel, frozen=True, kw_only=True):
    """A channel, its newest position and what the contract says about it."""

    complete: Complete
    contract: Declared


class History(Reply, frozen=True, kw_only=True):
    """Durable events, oldest first. (epoch, offset, last) is the channel's newest position, not the page's."""

    channel: str
    epoch: str
    offset: int
    last: str | UnsetType = UNSET
    events: list[EncodedEvent]
    more: Annotated[bool, Meta(description="Whether there are further events in the direction asked for.")]


class State(Reply, frozen=True, kw_only=True):
    """The newest event of every key, by rev. (epoch, offset, last) is the channel's newest position."""

    channel: str
    epoch: str
    offset: int
    last: str | UnsetType = UNSET
    state: list[EncodedEvent]
    more: Annotated[bool, Meta(description="Whether there are further values: ask again `after` the last one's rev.")]


class Presence(Reply, frozen=True, kw_only=True):
    """Who is in a channel."""

    channel: str
    presence: PresenceView


class Disconnected(Reply, frozen=True, kw_only=True):
    """How many connections were ended."""

    connections: int
    nodes: Nodes
    complete: Complete


class Unsubscribed(Reply, frozen=True, kw_only=True):
    """How many subscriptions were ended."""

    subscriptions: int
    nodes: Nodes
    complete: Complete


class UserRevoked(Reply, frozen=True, kw_only=True):
    """Every token of the user that was issued before a moment is refused on all nodes."""

    before: Moment
    until: Annotated[
        Moment, Meta(description="How long that holds, in Unix seconds: longer than any of the tokens lives.")
    ]


class TokenRevoked(Reply, frozen=True, kw_only=True):
    """The token is refused on all nodes."""

    until: Annotated[Moment, Meta(description="How long that holds, in Unix seconds: longer than the token lives.")]


class Problem(Struct, frozen=True, kw_only=True):
    """A refusal (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Meta(extra_json_schema={"enum": [code.code for code in ErrorCode]})]
    details: Mapping[str, Any]
    retryable: Annotated[bool, Meta(description="Whether the same request can succeed later without being changed.")]
