"""Every body and query of the backend API as Structs, described in docs/http-api.md. openapi.py derives the OpenAPI
schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from msgspec import UNSET, Meta, Raw, Struct, UnsetType, field

from service.core.access import PublishRule, SubscribeRule
from service.core.channel import MAX_CHANNEL_BYTES, NAME
from service.core.event import Delivery
from service.core.identity import Right
from service.core.webhooks import EntryType
from service.errors import ErrorCode
from service.protocol.messages import MAX_KEY, MAX_PAGE, Event, Id, Offset, PageSize, PresenceView
from service.realtime.remover import CURSOR

MAX_EVENTS_PER_REQUEST = 1000
"""Events in one request. `<key>.999` must fit an event's id, even with an idempotency key of 60 characters."""
MAX_COUNTED_CHANNELS = 1000
"""Channels in one request for the numbers of users."""
MAX_CURSOR = MAX_CHANNEL_BYTES + 16
"""Characters of the cursor of an erasure."""
MAX_ENTRIES_PER_PAGE = 200
"""Entries of webhooks in one page: what a queue reads at once."""
MAX_NAMED_ENTRIES = 1000
"""Entries of webhooks that one request can name."""
MAX_WEBHOOK_CURSOR = 7000
"""Characters of a place in a queue of webhooks."""
MAX_QUEUE = 63
"""The highest number of a queue, as in settings/model.py."""
MAX_USER_CHARS = 128
MAX_JTI_CHARS = 256
"""Characters of a `jti`, as in adapters/jwt/claims.py."""
MAX_UNIX_SECONDS = 253_402_300_799
"""The end of the year 9999."""
MAX_REASON_BYTES = 123
"""Bytes that RFC 6455 §5.5 leaves for the reason in a close frame."""


def ref(schema: type[Struct]) -> dict[str, Any]:
    """A reference to a Struct in the OpenAPI document."""
    return {"$ref": f"#/components/schemas/{schema.__name__}"}


CHANNEL_SCHEMA: Mapping[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_CHANNEL_BYTES,
    "pattern": f"^{NAME}$",
    "examples": ["room:42"],
}
Channel = Annotated[str, Meta(extra_json_schema=dict(CHANNEL_SCHEMA))]
"""Validated by `check_name`, which raises a more specific error."""

_VISIBLE = r"\p{L}\p{M}\p{N}\p{P}\p{S}"
USER_SCHEMA: Mapping[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_USER_CHARS,
    "pattern": f"^[{_VISIBLE}]([{_VISIBLE} ]*[{_VISIBLE}])?$",
    "description": "Printable characters, without spaces around them.",
    "examples": ["ann"],
}
User = Annotated[str, Meta(extra_json_schema=dict(USER_SCHEMA))]
"""Validated by `is_valid_user`, because Python's `re` lacks these character classes."""
EncodedEvent = Annotated[Raw, Meta(extra_json_schema=ref(Event))]
"""An encoded event, as subscribers receive it."""
IdempotencyKey = Annotated[str, Meta(min_length=1, max_length=60, pattern=r"^[\x21-\x7e]+(?!\n)$")]


# --- requests ---------------------------------------------------------------------------------------------------------


class ApiRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request body or query. Unknown fields are refused, so that a misspelt one is noticed."""


class NewEvent(ApiRequest, frozen=True, kw_only=True, rename={"sender": "from"}):
    """An event to publish in the channel of the path."""

    type: Annotated[str, Meta(min_length=1, max_length=128, examples=["chat.message"])]
    data: (
        Annotated[Raw, Meta(description="Must match the event type's schema in the contract; absent if `removed`.")]
        | UnsetType
    ) = UNSET
    id: Id | None = None
    removed: (
        Annotated[Literal[True], Meta(description="Removes the value of `key` instead of publishing one.")] | UnsetType
    ) = UNSET
    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY)] | None = None
    if_rev: (
        Annotated[
            Offset, Meta(description="Only if the value of the key has this `rev`; 0: only if there is no value.")
        ]
        | None
    ) = None
    sender: User | None = None
    """The user on whose behalf the backend publishes."""
    exclude: (
        Annotated[
            str, Meta(min_length=1, max_length=64, description="A connection of `from` that does not get the event.")
        ]
        | None
    ) = None


class AddressedEvent(NewEvent, frozen=True, kw_only=True):
    """An event to publish in the channel that it names."""

    channel: Channel


_T = TypeVar("_T")
Events = Annotated[list[_T], Meta(max_length=MAX_EVENTS_PER_REQUEST)]
"""The events of one request."""


Moment = Annotated[float, Meta(ge=0, le=MAX_UNIX_SECONDS, description="Seconds since the Unix epoch.")]
Reason = Annotated[
    str, Meta(max_length=MAX_REASON_BYTES, description=f"Sent to the client; at most {MAX_REASON_BYTES} bytes.")
]


class Disconnect(ApiRequest, frozen=True, kw_only=True):
    """Why a user is disconnected."""

    reason: Reason = ""


class RevokeUser(ApiRequest, frozen=True, kw_only=True):
    """Which tokens of a user are revoked, and why."""

    before: (
        Annotated[Moment, Meta(description="Refuses tokens with an earlier `iat`, in Unix seconds; now if absent.")]
        | UnsetType
    ) = UNSET
    reason: Reason = ""


class RevokeToken(ApiRequest, frozen=True, kw_only=True):
    """Which token is revoked, and why."""

    jti: Annotated[str, Meta(min_length=1, max_length=MAX_JTI_CHARS, examples=["4f1c9a"])]
    """The token's `jti`."""
    reason: Reason = ""


class Unsubscribe(ApiRequest, frozen=True, kw_only=True):
    """The channel from which a user is unsubscribed."""

    channel: Channel


class Subscribe(ApiRequest, frozen=True, kw_only=True):
    """The channel to which a user is subscribed."""

    channel: Channel
    rights: Annotated[
        tuple[Right, ...],
        Meta(
            min_length=1,
            max_length=len(Right),
            description="What the user may do there while subscribed, beside what the token allows.",
        ),
    ] = (Right.SUBSCRIBE, Right.HISTORY, Right.PRESENCE)


class CountPresence(ApiRequest, frozen=True, kw_only=True):
    """The channels whose users are counted."""

    channels: Annotated[list[Channel], Meta(min_length=1, max_length=MAX_COUNTED_CHANNELS)]


EntryId = Annotated[
    str,
    Meta(
        pattern=r"^wh_[A-Za-z0-9_-]{16}(?!\n)$", description="The `id` of an entry.", examples=["wh_Zm9vYmFyYmF6cXV4"]
    ),
]
EntryIds = Annotated[list[EntryId], Meta(min_length=1, max_length=MAX_NAMED_ENTRIES)]
Milliseconds = Annotated[int, Meta(ge=0, le=MAX_UNIX_SECONDS * 1000, description="Milliseconds since the Unix epoch.")]


class ReplayWebhooks(ApiRequest, frozen=True, kw_only=True):
    """Which entries are told again: exactly one of the fields."""

    ids: Annotated[EntryIds, Meta(description="Dead letters, or entries that are still kept.")] | UnsetType = UNSET
    since: (
        Annotated[
            Milliseconds, Meta(description="All kept entries with this `at` or a later one, in Unix milliseconds.")
        ]
        | UnsetType
    ) = UNSET
    dead_letters: Annotated[Literal[True], Meta(description="All dead letters.")] | UnsetType = UNSET


class DropWebhooks(ApiRequest, frozen=True, kw_only=True):
    """Which dead letters are dropped: exactly one of the fields."""

    ids: EntryIds | UnsetType = UNSET
    dead_letters: Annotated[Literal[True], Meta(description="All dead letters.")] | UnsetType = UNSET


class NoQuery(ApiRequest, frozen=True, kw_only=True):
    """No query parameters."""


class ChannelsQuery(ApiRequest, frozen=True, kw_only=True):
    """Which channels to list."""

    prefix: Annotated[
        str,
        Meta(
            max_length=128,
            pattern=r"^[A-Za-z0-9_.@~=+:%-]*(?!\n)$",
            description="The prefix of the channel names.",
            examples=["room:"],
        ),
    ] = ""
    limit: Annotated[PageSize, Meta(description="The maximum number of channels.")] = 100


class HistoryQuery(ApiRequest, frozen=True, kw_only=True):
    """Which durable events to read."""

    after: Annotated[Offset, Meta(description="Only events with a greater offset, oldest first.")] | UnsetType = UNSET
    before: (
        Annotated[Offset, Meta(description="Only events with a smaller offset; without `after`, the newest of these.")]
        | UnsetType
    ) = UNSET
    limit: Annotated[PageSize, Meta(description="The maximum number of events.")] = 50


class StateQuery(ApiRequest, frozen=True, kw_only=True):
    """Which part of the state to read."""

    after: Annotated[Offset, Meta(description="Only values with a greater `rev`, lowest first.")] | UnsetType = UNSET
    limit: Annotated[PageSize, Meta(description="The maximum number of values.")] = MAX_PAGE


class RemoveQuery(ApiRequest, frozen=True, kw_only=True):
    """Which event to take back, if several have the id."""

    offset: (
        Annotated[
            int, Meta(ge=1, le=2**53 - 1, description="The event's offset. Without it, the newest event with the id.")
        ]
        | UnsetType
    ) = UNSET


class EraseQuery(ApiRequest, frozen=True, kw_only=True):
    """Where to continue an erasure."""

    cursor: (
        Annotated[
            str,
            Meta(max_length=MAX_CURSOR, pattern=f"^{CURSOR}(?!\n)$", description="The `cursor` of the reply before."),
        ]
        | UnsetType
    ) = UNSET


class EntriesQuery(ApiRequest, frozen=True, kw_only=True):
    """Which entries of a webhook's endpoint to read."""

    queue: Annotated[int, Meta(ge=0, le=MAX_QUEUE, description="The number of the queue.")] = 0
    after: (
        Annotated[
            str,
            Meta(
                max_length=MAX_WEBHOOK_CURSOR,
                description="`next` of the page before; without it, the oldest kept entries.",
            ),
        ]
        | UnsetType
    ) = UNSET
    since: (
        Annotated[Milliseconds, Meta(description="Only entries with this `at` or a later one, in Unix milliseconds.")]
        | UnsetType
    ) = UNSET
    limit: Annotated[int, Meta(ge=1, le=MAX_ENTRIES_PER_PAGE, description="The maximum number of entries.")] = 100


class DeadLettersQuery(ApiRequest, frozen=True, kw_only=True):
    """Which dead letters of a webhook's endpoint to read."""

    after: Annotated[Offset, Meta(description="`next` of the page before.")] | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=MAX_ENTRIES_PER_PAGE, description="The maximum number of dead letters.")] = 50


# --- replies ----------------------------------------------------------------------------------------------------------


class ApiReply(Struct, frozen=True, kw_only=True):
    """A reply of the API. Absent fields do not apply."""


Nodes = Annotated[int, Meta(ge=0, description="The number of nodes that answered.")]
Complete = Annotated[
    bool,
    Meta(description="Whether every node answered in time; otherwise the numbers cover only the nodes that did."),
]


class Published(ApiReply, frozen=True, kw_only=True):
    """An event was accepted. Durable events have `epoch` and `offset`, latest events have `epoch` and `rev`, ephemeral
    events have none of these."""

    id: str
    epoch: str | UnsetType = UNSET
    offset: int | UnsetType = UNSET
    rev: int | UnsetType = UNSET
    duplicate: Annotated[bool, Meta(description="Whether it was accepted before; then it is not delivered again.")]


class Refusal(ApiReply, frozen=True, kw_only=True):
    """Why one of several events was refused."""

    code: Annotated[str, Meta(extra_json_schema={"enum": [code.code for code in ErrorCode]})]
    message: str
    details: Mapping[str, Any]
    retryable: bool


class Refused(ApiReply, frozen=True, kw_only=True):
    """One of several events was refused."""

    error: Refusal


class Results(ApiReply, frozen=True, kw_only=True):
    """The results of several events: one entry for each event, in order."""

    results: Annotated[list[Any], Meta(extra_json_schema={"items": {"anyOf": [ref(Published), ref(Refused)]}})]


class ListedChannel(ApiReply, frozen=True, kw_only=True):
    """A channel and its newest position."""

    channel: str
    epoch: str
    offset: int
    last: Annotated[str, Meta(description="The id of the event at `offset`; absent at 0.")] | UnsetType = UNSET
    subscribers: Annotated[int, Meta(description="Connections that have subscribed to it, on all nodes.")]


class ChannelList(ApiReply, frozen=True, kw_only=True):
    """Channels, ordered by name."""

    channels: list[ListedChannel]
    more: Annotated[bool, Meta(description="Whether there are more channels; ask with a longer prefix.")]
    complete: Complete


class KeptEvents(ApiReply, frozen=True, kw_only=True):
    """How much history a channel keeps."""

    events: int
    ttl: Annotated[float, Meta(description="Seconds.")]
    cacheable: Annotated[bool, Meta(description="Whether caches may keep its pages.")] | UnsetType = UNSET


class KeptKeys(ApiReply, frozen=True, kw_only=True):
    """How much state a channel keeps."""

    keys: int
    ttl: Annotated[float, Meta(description="Seconds.")]


class DeclaredEvent(ApiReply, frozen=True, kw_only=True):
    """The contract of an event type."""

    publish: PublishRule
    delivery: Delivery
    key: Annotated[str, Meta(description="JSON Pointer to the key in `data`.")] | UnsetType = UNSET
    window: (
        Annotated[float, Meta(description="Seconds within which events may be joined into one frame.")] | UnsetType
    ) = UNSET
    ttl: Annotated[float, Meta(description="Seconds after which a value ends.")] | UnsetType = UNSET
    removable: Annotated[bool, Meta(description="Whether values can be removed.")] | UnsetType = UNSET


class Declared(ApiReply, frozen=True, kw_only=True):
    """The contract of a channel."""

    pattern: str
    subscribe: SubscribeRule
    presence: bool
    presence_update: (
        Annotated[PublishRule, Meta(description="Who may set what presence shows of them; absent: nobody.")] | UnsetType
    ) = UNSET
    history: KeptEvents | UnsetType = UNSET
    state: KeptKeys
    events: dict[str, DeclaredEvent]


class ChannelView(ListedChannel, frozen=True, kw_only=True):
    """A channel, its newest position and its contract."""

    complete: Complete
    contract: Declared


class AsyncApi(ApiReply, frozen=True, kw_only=True):
    """The contract as an AsyncAPI document."""

    asyncapi: str
    info: dict[str, Any]
    default_content_type: str = field(name="defaultContentType")
    servers: dict[str, Any]
    channels: dict[str, Any]
    operations: dict[str, Any]
    components: dict[str, Any]


class History(ApiReply, frozen=True, kw_only=True):
    """Durable events, oldest first. (epoch, offset, last) is the channel's newest position, not the page's."""

    channel: str
    epoch: str
    offset: int
    last: str | UnsetType = UNSET
    events: list[EncodedEvent]
    more: Annotated[bool, Meta(description="Whether there are more events in the requested direction.")]
    older: (
        Annotated[str, Meta(description="The path of the page with the event before the first one, for caches.")]
        | UnsetType
    ) = UNSET
    newer: (
        Annotated[str, Meta(description="The path of the page with the event after the last one, for caches.")]
        | UnsetType
    ) = UNSET


class State(ApiReply, frozen=True, kw_only=True):
    """The newest event of every key, by rev. (epoch, offset, last) is the channel's newest position."""

    channel: str
    epoch: str
    offset: int
    last: str | UnsetType = UNSET
    state: list[EncodedEvent]
    more: Annotated[bool, Meta(description="Whether there are more values; ask again with `after` = the last `rev`.")]


class EventRemoved(ApiReply, frozen=True, kw_only=True):
    """An event was taken back: of a durable one, only id, offset and time are left; a value is removed."""

    channel: str
    id: str
    epoch: str
    offset: int | UnsetType = UNSET
    rev: Annotated[int, Meta(description="The `rev` of the value that was removed.")] | UnsetType = UNSET


class Purged(ApiReply, frozen=True, kw_only=True):
    """A channel's history and state are gone. Without `epoch`, nothing was ever published in it."""

    channel: str
    epoch: str | UnsetType = UNSET
    offset: int


class UserErased(ApiReply, frozen=True, kw_only=True):
    """A part of what a user has published was taken back."""

    removed: Annotated[int, Meta(ge=0, description="The number of events that were taken back.")]
    channels: Annotated[int, Meta(ge=0, description="The number of channels that were examined to their end.")]
    cursor: (
        Annotated[str, Meta(description="Send the request again with this cursor; absent when all is done.")]
        | UnsetType
    ) = UNSET


class Presence(ApiReply, frozen=True, kw_only=True):
    """Who is in a channel."""

    channel: str
    presence: PresenceView


class ChannelCount(ApiReply, frozen=True, kw_only=True):
    """How many users are in a channel."""

    channel: str
    count: Annotated[int, Meta(ge=0, description="Users, each counted once over all connections.")]


class PresenceCounts(ApiReply, frozen=True, kw_only=True):
    """How many users are in channels, in the order of the request."""

    counts: list[ChannelCount]


class Disconnected(ApiReply, frozen=True, kw_only=True):
    """How many connections were closed."""

    connections: int
    nodes: Nodes
    complete: Complete


class Subscribed(ApiReply, frozen=True, kw_only=True):
    """How many of the user's connections have the subscription now, or get it as soon as their commands are done."""

    subscriptions: int
    nodes: Nodes
    complete: Complete


class Unsubscribed(ApiReply, frozen=True, kw_only=True):
    """How many subscriptions were ended."""

    subscriptions: int
    nodes: Nodes
    complete: Complete


class UserRevoked(ApiReply, frozen=True, kw_only=True):
    """Every node refuses the user's tokens that were issued before this time."""

    before: Moment
    until: Annotated[
        Moment, Meta(description="The end of the revocation in Unix seconds, after the expiry of these tokens.")
    ]


class TokenRevoked(ApiReply, frozen=True, kw_only=True):
    """Every node refuses the token."""

    until: Annotated[Moment, Meta(description="The end of the revocation in Unix seconds, after the token's expiry.")]


class WebhookEvent(ApiReply, frozen=True, kw_only=True, rename={"sender": "from"}):
    """The event of an entry, as subscribers get it."""

    type: str
    id: str
    at: Milliseconds
    sender: Annotated[str, Meta(description="The publishing user; absent for the backend.")] | UnsetType = UNSET
    data: Annotated[Any, Meta(description="Absent if `removed`.")] | UnsetType = UNSET
    offset: Annotated[int, Meta(description="Of a durable event; absent if it is not known any more.")] | UnsetType = (
        UNSET
    )
    epoch: str | UnsetType = UNSET
    rev: Annotated[int, Meta(description="Of a latest event.")] | UnsetType = UNSET
    key: str | UnsetType = UNSET
    ttl: Annotated[int, Meta(description="Milliseconds from `at` until the value ends.")] | UnsetType = UNSET
    removed: Literal[True] | UnsetType = UNSET
    exclude: str | UnsetType = UNSET


class WebhookEntry(ApiReply, frozen=True, kw_only=True):
    """One thing that an endpoint is told."""

    id: EntryId
    type: Annotated[str, Meta(extra_json_schema={"enum": [one.value for one in EntryType]})]
    at: Milliseconds
    channel: str | UnsetType = UNSET
    event: WebhookEvent | UnsetType = UNSET
    user: str | UnsetType = UNSET
    info: Annotated[Any, Meta(description="What presence shows of the user.")] | UnsetType = UNSET
    connection: str | UnsetType = UNSET
    client: str | UnsetType = UNSET
    code: Annotated[int, Meta(description="The close code of a connection.")] | UnsetType = UNSET


EncodedEntry = Annotated[Raw, Meta(extra_json_schema=ref(WebhookEntry))]
"""An encoded entry, as the endpoint gets it."""


class WebhookQueue(ApiReply, frozen=True, kw_only=True):
    """One queue of an endpoint."""

    queue: int
    waiting: Annotated[int, Meta(ge=0, description="Records that are not delivered yet; an event takes up to two.")]
    oldest_at: (
        Annotated[Milliseconds, Meta(description="When the oldest of them was written, in Unix milliseconds.")]
        | UnsetType
    ) = UNSET
    owner: (
        Annotated[str, Meta(description="The node that delivers; absent if none does at the moment.")] | UnsetType
    ) = UNSET
    failure: Annotated[str, Meta(description="Why the last delivery failed; absent if it succeeded.")] | UnsetType = (
        UNSET
    )


class WebhookStatus(ApiReply, frozen=True, kw_only=True):
    """An endpoint of webhooks, and its queues."""

    endpoint: str
    sends: Annotated[bool, Meta(description="Whether the settings give it a `url`.")]
    queues: list[WebhookQueue]


class WebhookList(ApiReply, frozen=True, kw_only=True):
    """The endpoints of webhooks of a tenant, by name."""

    tenant: str
    at: Annotated[Milliseconds, Meta(description="The service's time, in Unix milliseconds.")]
    endpoints: list[WebhookStatus]


class WebhookEntries(ApiReply, frozen=True, kw_only=True):
    """Entries of one queue, in the order of delivery."""

    endpoint: str
    queue: int
    entries: list[EncodedEntry]
    next: Annotated[str, Meta(description="`after` of the next page.")]
    more: Annotated[bool, Meta(description="Whether the next page may have entries already.")]


class WebhookDeadLetter(ApiReply, frozen=True, kw_only=True):
    """An entry that the endpoint did not accept."""

    entry: EncodedEntry
    queue: int
    reason: Annotated[str, Meta(description="Why the last attempt failed.")]
    at: Annotated[Milliseconds, Meta(description="When it became a dead letter, in Unix milliseconds.")]


class WebhookDeadLetters(ApiReply, frozen=True, kw_only=True):
    """Dead letters of an endpoint, oldest first."""

    endpoint: str
    dead_letters: list[WebhookDeadLetter]
    next: Annotated[int, Meta(description="`after` of the next page; absent after the last one.")] | UnsetType = UNSET


class WebhooksReplayed(ApiReply, frozen=True, kw_only=True):
    """How many entries are told again."""

    endpoint: str
    replayed: Annotated[int, Meta(ge=0)]


class WebhooksDropped(ApiReply, frozen=True, kw_only=True):
    """How many dead letters were dropped."""

    endpoint: str
    dropped: Annotated[int, Meta(ge=0)]


class Problem(Struct, frozen=True, kw_only=True):
    """A refusal (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    code: Annotated[str, Meta(extra_json_schema={"enum": [code.code for code in ErrorCode]})]
    details: Mapping[str, Any]
    retryable: Annotated[bool, Meta(description="Whether the same request can succeed later.")]
