"""Events between the gate, the broker and the hub. Structs: one is made for every message, in a tenth of a dataclass's time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from msgspec import Struct

from service.core.channel import ChannelKey


class Delivery(Enum):
    """What every queue on the way owes an event."""

    DURABLE = "durable"
    """Kept in the channel's stream with a dense offset; never dropped: a client too slow for it is closed and resumes."""
    LATEST = "latest"
    """The newest value per key; a newer one replaces it in every queue."""
    EPHEMERAL = "ephemeral"
    """No history; dropped first under pressure, and counted."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of a channel is kept: of its stream (durable events) or of its state (keys of latest events)."""

    entries: int
    """Durable events, or keys, at most; the oldest goes first."""
    ttl: float
    """Seconds after its publication that an entry is dropped."""


class Publication(Struct, frozen=True):
    """An event that has passed the gate and has not reached the broker."""

    channel: ChannelKey
    type: str
    id: str
    delivery: Delivery
    data: bytes
    """UTF-8 JSON, checked against the contract."""
    sender: str | None
    """The publishing user; None for the backend and the service itself."""
    at: int
    """Milliseconds since the Unix epoch."""
    key: str | None = None
    """Only with LATEST, and on presence events."""
    retention: Retention | None = None
    """What to keep of the stream (DURABLE) or the state (LATEST); None with EPHEMERAL."""


class Event(Struct, frozen=True):
    """An event that the broker has accepted."""

    channel: ChannelKey
    type: str
    id: str
    delivery: Delivery
    data: bytes
    sender: str | None
    at: int
    offset: int | None = None
    """Dense per channel and epoch, from 1; only DURABLE."""
    state_version: int | None = None
    """Dense per channel and epoch, from 1; only LATEST."""
    key: str | None = None
    epoch: str = ""
    """The stream's, of offset and state version; empty with EPHEMERAL."""
