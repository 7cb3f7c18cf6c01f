"""Events and positions, as subscribers and readers of history get them."""

from __future__ import annotations

import secrets
from datetime import datetime, timezone
from typing import Any

from msgspec import UNSET, Struct, UnsetType, field

MAX_EVENT_BATCH = 1000
"""Events in one request (docs/http-api.md#publishing)."""


class Position(Struct, frozen=True):
    """A place in a channel's stream: all events up to this one are known."""

    epoch: str
    offset: int
    id: str | None = None

    @classmethod
    def parse(cls, text: str) -> Position:
        """Parses `EPOCH:OFFSET:ID`, the form of `str`. Raises ValueError."""
        parts = text.split(":", 2)
        if len(parts) != 3 or not parts[0] or not (parts[1].isascii() and parts[1].isdecimal()):
            raise ValueError("a position is EPOCH:OFFSET:ID")
        return cls(parts[0], int(parts[1]), parts[2] or None)

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}:{self.id or ''}"


class Event(Struct, frozen=True, kw_only=True, omit_defaults=True, rename={"sender": "from"}):
    """A typed message in a channel. Durable events have `offset`, latest events `rev` and `key`, ephemeral ones neither."""

    type: str
    channel: str
    id: str
    at: int
    """Milliseconds since the Unix epoch."""
    sender: str | None = None
    """The publishing user; None for the backend."""
    data: Any = None
    offset: int | None = None
    """Dense per channel and epoch."""
    rev: int | None = None
    """The state version: grows with every change in the channel."""
    key: str | None = None
    ttl: int | None = None
    """Milliseconds until the value ends."""
    removed: bool = False
    """Whether the value of `key` was removed, or has ended (then `expired`). It has no data."""
    expired: bool = False
    exclude: str | None = None

    @property
    def time(self) -> datetime:
        """When the service accepted the event, in UTC."""
        return datetime.fromtimestamp(self.at / 1000, timezone.utc)


def new_id() -> str:
    """Returns a random id for an event."""
    return secrets.token_urlsafe(16)


class NewEvent(Struct, frozen=True, omit_defaults=True, rename={"sender": "from"}):
    """An event to publish with `publish_many`. It gets an id when it is made, so that the same object can be sent again."""

    channel: str
    type: str
    data: Any = UNSET
    id: str = field(default_factory=new_id)
    key: str | None = None
    if_rev: int | None = None
    sender: str | None = None
    exclude: str | None = None
    removed: bool | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.removed is False:
            raise ValueError("leave `removed` out: only True is a removal")
        if (self.data is UNSET) is (self.removed is UNSET):
            raise ValueError("an event has `data`, or is a removal: `removed=True` and `key`")
