"""Facts, their periods, and the entries that tell of them. Pure.

A fact is a connected client, an occupied channel, or a user who is present in a channel. From its begin to its end, it has one
period. The period is kept with the fact in the store, so every node gives the entries of a period the same ids.
"""

from __future__ import annotations

from enum import Enum
from hashlib import blake2b
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from service.core.channel import ChannelKey
from service.core.presence import updated_info
from service.core.webhooks import Entry, EntryType, entry_id
from service.protocol.close import CloseCode

PARTITIONS = 256
"""Internal channels that keep the facts. NATS keeps one document for each, which must stay below its `max_payload`."""
INTERNAL_TENANT = ""
"""The tenant of internal channels, which no client has."""


class FactKind(Enum):
    """What a fact is about."""

    CLIENT = "client"
    """A client is connected."""
    CHANNEL = "channel"
    """A channel has a subscriber."""
    USER = "user"
    """A user is present in a channel."""


TYPES = {
    FactKind.CLIENT: (EntryType.CONNECTED, EntryType.DISCONNECTED),
    FactKind.CHANNEL: (EntryType.OCCUPIED, EntryType.VACATED),
    FactKind.USER: (EntryType.JOINED, EntryType.LEFT),
}
"""The types of the entries about a begin and an end."""


class Fact(NamedTuple):
    """One fact, for one endpoint."""

    kind: FactKind
    endpoint: str
    tenant: str
    channel: str
    """Empty for CLIENT."""
    subject: str
    """The id of a connection, or a user; empty for CHANNEL."""

    @property
    def name(self) -> str:
        """The fact in the store, where it takes the place of a user."""
        return msgspec.json.encode(self).decode()

    @property
    def partition(self) -> ChannelKey:
        """The internal channel that keeps the fact."""
        digest = blake2b(self.name.encode(), digest_size=2).digest()
        return partition_channel(int.from_bytes(digest, "big") % PARTITIONS)


_decode_fact = msgspec.json.Decoder(Fact).decode


def partition_channel(number: int) -> ChannelKey:
    """Returns the internal channel of a partition."""
    return ChannelKey(INTERNAL_TENANT, f"webhook-facts:{number}")


def fact_of(name: str) -> Fact | None:
    """Returns the fact with this name; None if another version has written it."""
    try:
        return _decode_fact(name)
    except msgspec.DecodeError:
        return None


class Period(Struct, frozen=True, array_like=True):
    """The time from the begin of a fact to its end, and what entries tell of it."""

    began_at: int
    """Milliseconds since the Unix epoch, by the store clock."""
    node: str
    """The node that has begun it, and tells so."""
    serial: str
    """Random, so that two periods differ."""
    tells_begin: bool
    tells_end: bool
    user: str = ""
    """The user of a client; empty for an anonymous one."""
    client: str = ""
    """Name and version of a client's library."""
    info: str | None = None
    """JSON that presence shows of a user."""

    def encode(self) -> bytes:
        """Returns the period as the info of its fact in the store. Of several nodes, the first one's stays (`is_updated`)."""
        return updated_info(msgspec.json.encode(self))

    def resumed(self, node: str) -> Period:
        """Returns the period that follows if the end of this one was told too early. The same on any node, but for `node`."""
        return msgspec.structs.replace(self, node=node, serial=f"{self.serial}+")

    def is_same(self, other: Period | None) -> bool:
        """True if both are one period."""
        return other is not None and (self.began_at, self.serial) == (other.began_at, other.serial)


_decode_period = msgspec.json.Decoder(Period).decode


def period_of(info: bytes | None) -> Period | None:
    """Returns the period in the info of a fact; None if another version has written it."""
    try:
        return None if info is None else _decode_period(info)
    except msgspec.DecodeError:
        return None


def begin_entry(fact: Fact, period: Period) -> Entry:
    """Returns the entry that tells the begin of a period."""
    return _entry(fact, period, TYPES[fact.kind][0], period.began_at)


def end_entry(fact: Fact, period: Period, at: int, code: int | None) -> Entry:
    """Returns the entry that tells the end of a period. `code`: how a client's connection was closed, if that is known."""
    if fact.kind is FactKind.CLIENT:
        code = CloseCode.ABNORMAL.code if code is None else code
    return _entry(fact, period, TYPES[fact.kind][1], at, code)


def order_key(fact: Fact, period: Period) -> str:
    """Returns what entries that must keep their order have in common."""
    return fact.channel or period.user or fact.subject


def _entry(fact: Fact, period: Period, type_: EntryType, at: int, code: int | None = None) -> Entry:
    kind, endpoint, tenant, channel, subject = fact
    id = entry_id(kind.value, endpoint, tenant, channel, subject, period.began_at, period.serial, type_.value)
    if kind is FactKind.CLIENT:
        return Entry(id, type_.value, at, user=period.user or None, connection=subject, client=period.client, code=code)
    if kind is FactKind.CHANNEL:
        return Entry(id, type_.value, at, channel=channel)
    if period.info is None or type_ is EntryType.LEFT:
        return Entry(id, type_.value, at, channel=channel, user=subject)
    return Entry(id, type_.value, at, channel=channel, user=subject, info=Raw(period.info.strip().encode()))
