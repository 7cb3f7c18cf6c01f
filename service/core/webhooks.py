"""Webhooks: what the service tells the backend. Entries, where they go, and the ports through which others use them.

docs/webhooks.md explains them to users, docs/adr/0064-webhooks.md how queues keep their order.

entry = Entry(new_entry_id(), EntryType.VACATED.value, milliseconds(clock), channel="room:42")
await webhooks.tell("archive", "default", "room:42", entry)
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from hashlib import blake2b
from typing import NamedTuple, Protocol

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from service.core.broker import Broker, PublishResult
from service.core.event import Publication
from service.core.limits import (
    MAX_WAITING_ENDS,
    MAX_WEBHOOK_DEAD_LETTERS,
    WEBHOOK_ATTEMPTS,
    WEBHOOK_BATCH,
    WEBHOOK_KEEP,
    WEBHOOK_QUEUE_ENTRIES,
    WEBHOOK_QUEUES,
)
from service.errors import ServiceError

ID_PREFIX = "wh_"
"""With what ids of entries and of deliveries begin."""


class ChannelChange(Enum):
    """What a channel's `webhook` can tell, beside its events: the values of `tell` in the contract."""

    OCCUPIED = "occupied"
    VACATED = "vacated"
    JOINED = "joined"
    LEFT = "left"


class EntryType(Enum):
    """The `type` of an entry, as endpoints see it."""

    PUBLISHED = "event.published"
    OCCUPIED = "channel.occupied"
    VACATED = "channel.vacated"
    JOINED = "presence.joined"
    LEFT = "presence.left"
    CONNECTED = "client.connected"
    DISCONNECTED = "client.disconnected"


@dataclass(frozen=True, slots=True)
class ChannelWebhook:
    """What the contract declares at a channel."""

    endpoint: str
    """The endpoint's name in the settings. The tenant of the channel selects the address."""
    tell: frozenset[ChannelChange]


class EntryEvent(Struct, frozen=True, omit_defaults=True, rename={"sender": "from"}):
    """The event of an `event.published`, as subscribers see it."""

    type: str
    id: str
    at: int
    """Milliseconds since the Unix epoch."""
    sender: str | None = None
    data: Raw | UnsetType = UNSET
    """JSON; absent for a removal."""
    offset: int | None = None
    """Of a durable event. Absent if the event was looked up, and the channel did not keep it any more."""
    epoch: str = ""
    rev: int | None = None
    """The state version of a latest event. Absent as for `offset`."""
    key: str | None = None
    ttl: int | None = None
    """Milliseconds after which the value ends, counted from `at`."""
    removed: bool = False
    exclude: str | None = None


class Entry(Struct, frozen=True, omit_defaults=True):
    """One thing that an endpoint is told. Receivers recognize repeats by `id`."""

    id: str
    type: str
    """The value of an EntryType."""
    at: int
    """Milliseconds since the Unix epoch, by the store clock."""
    channel: str | None = None
    event: EntryEvent | None = None
    user: str | None = None
    info: Raw = Raw()
    """JSON that presence shows of the user."""
    connection: str | None = None
    client: str = ""
    """Name and version of the client's library, as the client says."""
    code: int | None = None
    """The close code of a connection that has ended."""


encode_entry = msgspec.json.Encoder().encode
decode_entry = msgspec.json.Decoder(Entry).decode


def new_entry_id() -> str:
    """Returns a new id for an entry: 96 random bits."""
    return ID_PREFIX + base64.urlsafe_b64encode(os.urandom(12)).decode()


def entry_id(*parts: object) -> str:
    """Returns the id of an entry that several nodes may tell, or one node again: equal parts give the same id."""
    digest = blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=12).digest()
    return ID_PREFIX + base64.urlsafe_b64encode(digest).decode()


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """An endpoint for some tenants. Two of the same name have no tenant in common."""

    name: str
    tenants: frozenset[str]
    sends: bool = True
    """False if the settings give no address: then entries are kept for readers, and never sent."""
    batch: int = WEBHOOK_BATCH
    """Entries in one request, at most."""


@dataclass(frozen=True, slots=True)
class WebhookLimits:
    """The settings of webhooks that concern the realtime core. docs/settings.md explains each."""

    endpoints: Sequence[WebhookEndpoint] = ()
    queues: int = WEBHOOK_QUEUES
    queue_entries: int = WEBHOOK_QUEUE_ENTRIES
    keep: float = WEBHOOK_KEEP
    attempts: int = WEBHOOK_ATTEMPTS
    dead_letters: int = MAX_WEBHOOK_DEAD_LETTERS
    client_endpoint: str | None = None
    """The endpoint that is told of connections; None if none is."""
    client_tenant: str | None = None
    """Only connections of this tenant; None for all tenants of the endpoint."""
    waiting_ends: int = MAX_WAITING_ENDS
    resolve_after: float = 12.0
    """Seconds after which an intent without a result is looked up. More than a publish can take with all its calls."""

    @property
    def digest(self) -> str:
        """Names the endpoints and tenants for other nodes: those with the same deliver queues together. Empty without any."""
        targets = sorted((one.name, tenant) for one in self.endpoints if one.sends for tenant in one.tenants)
        return blake2b(repr(targets).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() if targets else ""


_CURSOR = re.compile(r"(?P<epoch>\w*):(?P<offset>\d{1,16})(?::(?P<ahead>\d{1,16}(?:\.\d{1,16})*))?", re.ASCII)
"""Offsets stay below 2^53."""


class Cursor(Struct, frozen=True):
    """A place in a queue: everything up to an offset is done, and some entries after it.

    >>> str(Cursor("e1", 7, (9, 12))), Cursor.parse("e1:7:9.12")
    ('e1:7:9.12', Cursor(epoch='e1', offset=7, ahead=(9, 12)))
    """

    epoch: str = ""
    offset: int = 0
    ahead: tuple[int, ...] = ()
    """Offsets above `offset` that are done, in ascending order. They wait for an entry of another channel."""

    def __str__(self) -> str:
        ahead = f":{'.'.join(map(str, self.ahead))}" if self.ahead else ""
        return f"{self.epoch}:{self.offset}{ahead}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads the form of `str`. Raises ValueError for everything that `str` never returns."""
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise ValueError("not the text of a cursor")
        ahead = found["ahead"]
        return cls(found["epoch"], int(found["offset"]), tuple(map(int, ahead.split("."))) if ahead else ())


class EntryPage(NamedTuple):
    """Entries of one queue, in the order of delivery."""

    entries: Sequence[Entry]
    next: Cursor
    """Where the next page begins. Read on from there after a while if `has_more` is False."""
    has_more: bool
    """True if further entries may be read at once."""


class QueueStatus(NamedTuple):
    """One queue, as the nodes share it."""

    queue: int
    waiting: int
    """Records that are not delivered yet. An event takes up to two."""
    oldest_at: int | None
    """When the oldest of them was written, in milliseconds since the Unix epoch, as the owner last reported; None without one."""
    owner: str | None
    """The id of the node that delivers; None if none does at the moment."""
    failure: str | None
    """Why the last delivery has failed, and since then none has succeeded; None otherwise."""


class DeadLetter(Struct, frozen=True):
    """An entry that could not be delivered."""

    entry: Entry
    queue: int
    reason: str
    """Why the last attempt failed."""
    at: int
    """When it became a dead letter, in milliseconds since the Unix epoch."""
    offset: int = 0
    """Its place among the dead letters."""


class DeadLetterPage(NamedTuple):
    """Dead letters of an endpoint and tenant, oldest first."""

    letters: Sequence[DeadLetter]
    next: int | None
    """`after` of the next page; None after the last one."""


class DeliveryOutcome(Enum):
    """How a delivery, which is one request to an endpoint, ended."""

    DELIVERED = "delivered"
    """Answered with 2xx."""
    REFUSED = "refused"
    """Answered with a 4xx that is about the entries, such as 400 or 422: the endpoint does not accept them."""
    STATUS = "status"
    """Answered with another status: the endpoint accepts nothing at the moment."""
    TIMEOUT = "timeout"
    """No answer in time."""
    UNREACHABLE = "unreachable"
    """No connection, or it broke."""


_ABOUT_ENDPOINT = frozenset({401, 403, 404, 405, 407, 408, 410, 421, 425, 429})
"""Statuses of the class 4xx that say nothing about the entries: the secret, the address or the time is wrong."""


def refuses_entries(status: int) -> bool:
    """True if this status of an endpoint's answer is about the entries. After any other failure they are sent again."""
    return 400 <= status < 500 and status not in _ABOUT_ENDPOINT


class EntryOutcome(Enum):
    """Values of the label `outcome` that are no result of a request."""

    DEAD = "dead"
    """Became a dead letter."""
    DROPPED = "dropped"
    """Was told and not kept: the queue is full, or the store is away or has lost it."""
    DUPLICATE = "duplicate"
    """Not sent, because this node has sent the entry before."""


class DeliveryReply(NamedTuple):
    """The end of a delivery."""

    outcome: DeliveryOutcome
    reason: str = ""
    """Why it failed, without secrets."""
    retry_after: float | None = None
    """Seconds that the endpoint asks to wait."""


class WebhookSender(Protocol):
    """Sends deliveries to endpoints."""

    async def send(self, endpoint: str, tenant: str, id: str, body: bytes) -> DeliveryReply:
        """Sends one delivery, signed now, within the endpoint's timeout. Never raises. `id`: the same for each retry."""

    async def close(self) -> None:
        """Ends all connections to endpoints."""


class Reservation(Protocol):
    """The place of an event in its queue, between the intent to publish and the result. Settle it once, or refuse it. Without
    either, as when the broker gave no answer, the event is looked up."""

    async def settle(self, result: PublishResult) -> None:
        """Records the result. Waits, and may raise ServiceError, only if the publish took so long that others may have given the
        event up; otherwise it returns at once. The event may be acknowledged when this returns."""

    def refuse(self) -> None:
        """Records that the broker has refused the event: it was not published."""


class EventWebhooks(Protocol):
    """What the publisher uses."""

    async def reserve(self, endpoint: str, publication: Publication) -> Reservation | None:
        """Writes the intent to publish an event. Await it before the publish.

        Returns None if the endpoint has not the tenant. Raises ServiceError: OVERLOADED (the queue is full), BROKER_UNAVAILABLE;
        then the event must not be published.
        """


async def publish_and_tell(
    broker: Broker, webhooks: EventWebhooks, endpoint: str, publication: Publication
) -> PublishResult:
    """Publishes an event between the two parts of its webhook: the intent, which is awaited, and the result.

    Raises ServiceError, as `EventWebhooks.reserve` and `Broker.publish` do.
    """
    reservation = await webhooks.reserve(endpoint, publication)
    try:
        result = await broker.publish(publication)
    except ServiceError as error:
        if reservation is not None and not error.retryable:  # else it may have been published, and is looked up
            reservation.refuse()
        raise
    if reservation is not None:
        await reservation.settle(result)
    return result


class WebhookTeller(Protocol):
    """What the sources of other entries use: presence, occupancy, connections."""

    def has(self, endpoint: str, tenant: str) -> bool:
        """True if the endpoint has the tenant. Otherwise nothing is told."""

    async def tell(self, endpoint: str, tenant: str, order_key: str, entry: Entry) -> None:
        """Appends an entry to a queue. Entries with the same `order_key` (a channel, or a user) go to one queue, in the order of
        these calls, if each is awaited.

        An entry with the same id within the idempotency window is appended once. Does nothing if the endpoint has not the tenant.
        Raises ServiceError: OVERLOADED (the queue is full), BROKER_UNAVAILABLE. A caller that does not try again calls `dropped`.
        """

    def dropped(self, endpoint: str, count: int = 1) -> None:
        """Counts entries that their source has given up."""


class Webhooks(WebhookTeller, Protocol):
    """What the backend API uses. `tenant` and `endpoint` exist, or ServiceError(NOT_FOUND) is raised."""

    def endpoints(self, tenant: str) -> Sequence[WebhookEndpoint]:
        """Returns the endpoints of a tenant, by name."""

    async def status(self, endpoint: str, tenant: str) -> Sequence[QueueStatus]:
        """Returns the status of each queue."""

    async def read(
        self, endpoint: str, tenant: str, queue: int, after: Cursor | None, limit: int, since: int | None = None
    ) -> EntryPage:
        """Reads entries after a place, delivered or not, in the order of delivery; from the oldest kept one without `after`.

        `since`: skips entries told before this time, in milliseconds since the Unix epoch. Changes nothing.
        """

    async def dead_letters(self, endpoint: str, tenant: str, after: int | None, limit: int) -> DeadLetterPage:
        """Reads dead letters after an offset, oldest first."""

    async def replay(
        self,
        endpoint: str,
        tenant: str,
        *,
        ids: Sequence[str] = (),
        since: int | None = None,
        dead_letters: bool = False,
    ) -> int:
        """Appends entries to their queues again, with the same ids. Returns their number.

        Exactly one of: `ids`, of dead letters or of kept entries; `since`, all kept entries told at or after this time;
        `dead_letters`, all of them. Dead letters that are replayed are no dead letters any more. Raises ServiceError(OVERLOADED)
        if a queue is full; `details.replayed` is the number until then.
        """

    async def drop(self, endpoint: str, tenant: str, *, ids: Sequence[str] = (), dead_letters: bool = False) -> int:
        """Drops dead letters: those with these ids, or all. Returns their number."""
