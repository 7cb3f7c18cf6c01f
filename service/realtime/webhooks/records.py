"""What queues consist of: their channels in the broker, and the records in them.

A queue is a durable channel without a tenant. An event takes an intent before its publish, and a result after it. Everything else
takes one record.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NamedTuple
from zlib import crc32

import msgspec
from msgspec import UNSET, Raw, Struct
from msgspec.structs import replace

from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.core.webhooks import Cursor, Entry, EntryEvent, EntryType, WebhookLimits, entry_id
from service.realtime.cluster.messages import INTERNAL_TENANT

INTENT, RESULTS, ENTRY = "webhook.intent", "webhook.results", "webhook.entry"
"""Event types of the records."""
LETTER, LETTERS_GONE = "webhook.letter", "webhook.letters_gone"
"""The event type of a dead letter, and that of the ephemeral notice that some are gone."""
LEASE = "webhook.lease"
_PLAIN = re.compile(r"[A-Za-z0-9_.@=+-]{1,40}")


class Target(NamedTuple):
    """An endpoint and a tenant. They have queues, leases and dead letters of their own."""

    endpoint: str
    tenant: str

    @property
    def name(self) -> str:
        """The part of channel names that stands for it."""
        endpoint = self.endpoint
        if not _PLAIN.fullmatch(endpoint):  # a channel name has few characters
            endpoint = f"~{blake2b(endpoint.encode('utf-8', 'surrogatepass'), digest_size=12).hexdigest()}"
        return f"{endpoint}:{self.tenant}"

    @property
    def leases(self) -> ChannelKey:
        """The channel of the leases: a latest value for each queue."""
        return ChannelKey(INTERNAL_TENANT, f"webhooks-leases:{self.name}")

    @property
    def dead_letters(self) -> ChannelKey:
        """The channel of the dead letters."""
        return ChannelKey(INTERNAL_TENANT, f"webhooks-dead:{self.name}")

    def queue(self, number: int) -> ChannelKey:
        """The channel of a queue."""
        return ChannelKey(INTERNAL_TENANT, f"webhooks:{self.name}:{number}")


CHANNELS_BESIDE_QUEUES = 2
"""Channels of a target beside its queues: leases and dead letters."""


def queue_number(order_key: str, queues: int) -> int:
    """Returns the queue of a channel or user. The same on all nodes."""
    return crc32(order_key.encode("utf-8", "surrogatepass")) % queues


def queue_retention(limits: WebhookLimits) -> Retention:
    """Returns the retention of a queue. Above what may wait, it has space for events under way when the queue gets full; above
    `keep`, time for the owner to make dead letters of what is too old."""
    return Retention(limits.queue_entries * 5 // 4 + 1_000, limits.keep * 1.25 + 3_600.0)


def lease_retention(limits: WebhookLimits) -> Retention:
    """Returns the retention of the leases. Each outlives all that its queue holds, so its place is not forgotten before."""
    return Retention(10_000, 2 * queue_retention(limits).ttl)


def dead_letter_retention(limits: WebhookLimits) -> Retention:
    """Returns the retention of the dead letters. They are kept until they are too many, or for a year."""
    return Retention(limits.dead_letters, 366 * 86_400.0)


class Intent(Struct, frozen=True, omit_defaults=True):
    """An event that is about to be published."""

    entry: Entry
    """Without id, and its event without a position."""
    is_latest: bool = False


LARGE_INTENT = 65_536
"""Bytes of an intent below which no store can refuse what becomes of it."""
MAX_GROWTH = 2_048
"""Bytes by which a dead letter, or an entry that is told again, may be larger than its intent: the id, the place, the reason of
at most 256 characters, and the channel a second time."""


class Result(Struct, frozen=True, omit_defaults=True):
    """What became of an intent: published if there is an epoch, otherwise refused, unless `is_lost`."""

    intent: str
    """The id of the intent's record."""
    epoch: str = ""
    number: int = 0
    """Offset or state version."""
    is_lost: bool = False
    """True if the event was looked up, and nobody can tell any more."""


class Results(Struct, frozen=True):
    """What became of several intents. If an intent has several results, the first one counts."""

    results: list[Result]


class WholeEntry(Struct, frozen=True, omit_defaults=True):
    """An entry that needs no result."""

    entry: Entry
    key: str
    """Its channel or user, which has selected the queue."""
    is_replay: bool = False
    """True if it is told again on purpose."""


class Lease(Struct, frozen=True, omit_defaults=True):
    """Which node delivers a queue, until when, and how far it is: the value of a queue in the channel of leases."""

    node: str = ""
    """Empty if no node delivers."""
    until: float = 0.0
    """Seconds since the Unix epoch, by the store clock."""
    cursor: Cursor = Cursor()
    oldest_at: int | None = None
    """When the oldest waiting record was written, in milliseconds."""
    failure: str | None = None


encode = msgspec.json.Encoder().encode
decode_intent = msgspec.json.Decoder(Intent).decode
decode_results = msgspec.json.Decoder(Results).decode
decode_whole = msgspec.json.Decoder(WholeEntry).decode
decode_lease = msgspec.json.Decoder(Lease).decode


def encode_intent(intent: Intent) -> bytes:
    """Returns the record of an intent. If it is large, it has the size of all that may become of it.

    A store that takes the intent then takes the dead letter, too. Otherwise an entry that is refused would hold up its queue for
    ever.
    """
    data = encode(intent)
    return data if len(data) < LARGE_INTENT else data + b" " * MAX_GROWTH


def intent_of(publication: Publication) -> Intent:
    """Returns the intent to publish an event."""
    return Intent(
        Entry(
            "",
            EntryType.PUBLISHED.value,
            publication.at,
            publication.channel.name,
            EntryEvent(
                publication.type,
                publication.id,
                publication.at,
                publication.sender,
                UNSET if publication.removed else Raw(publication.data),
                key=publication.key,
                ttl=publication.ttl,
                removed=publication.removed,
                exclude=publication.exclude,
            ),
        ),
        publication.delivery is Delivery.LATEST,
    )


def result_of(intent: str, published: PublishResult) -> Result:
    """Returns the result of an event that the broker has accepted."""
    number = published.offset if published.offset is not None else published.state_version
    return Result(intent, published.epoch, number or 0)


def settled_entry(intent: Intent, result: Result, tenant: str) -> Entry:
    """Returns the entry of an event that was published, or may have been.

    Its id follows from the event's place. So an event that is published again has the same one, wherever it was found.
    """
    event, channel = intent.entry.event, intent.entry.channel
    if event is None:
        raise ValueError("an intent without an event")
    if result.is_lost:
        return replace(intent.entry, id=entry_id(tenant, channel, event.sender, event.id, event.at))
    placed = replace(event, epoch=result.epoch, **{"rev" if intent.is_latest else "offset": result.number})
    return replace(
        intent.entry, id=entry_id(tenant, channel, intent.is_latest, result.epoch, result.number), event=placed
    )
