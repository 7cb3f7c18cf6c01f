"""What the service in memory keeps: events by channel, values by key."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidewire.errors import ApiError, api_error
from tidewire.events import Event, new_id

MAX_EVENTS = 10_000
"""Durable events of a channel that are kept; the oldest ones are dropped."""

Json = dict[str, Any]


@dataclass
class Channel:
    """One channel."""

    name: str
    epoch: str
    offset: int = 0
    rev: int = 0
    last: str | None = None
    events: deque[Event] = field(default_factory=lambda: deque(maxlen=MAX_EVENTS))
    values: dict[tuple[str, str], Event] = field(default_factory=dict)
    results: dict[tuple[str | None, str], Json] = field(default_factory=dict)

    def position(self) -> Json:
        """The newest position, as fields of a message."""
        return {"epoch": self.epoch, "offset": self.offset, **({} if self.last is None else {"last": self.last})}

    def page(self, after: int | None, before: int | None, limit: int) -> tuple[list[Event], bool]:
        """A page of history, and whether there is more."""
        low, high = after or 0, before if before is not None else self.offset + 1
        found = [event for event in self.events if low < (event.offset or 0) < high]
        page = found[:limit] if after is not None else found[-limit:]
        return page, len(found) > len(page)


class Store:
    """All channels. Every type is durable, unless it is said to be latest or ephemeral."""

    def __init__(self, latest: Mapping[str, str], ephemeral: frozenset[str]) -> None:
        self._latest = latest
        self._ephemeral = ephemeral
        self._epochs = 0
        self.channels: dict[str, Channel] = {}
        self.published: list[Event] = []
        """Every event that was accepted, once each and in order."""

    def channel(self, name: str) -> Channel:
        """The channel of that name."""
        if name not in self.channels:
            self._epochs += 1
            self.channels[name] = Channel(name, f"fake{self._epochs:08d}")
        return self.channels[name]

    def publish(self, name: str, fields: Mapping[str, Any]) -> tuple[Json, Event | None]:
        """Publishes; returns the result, and the event unless it is a duplicate. Raises ApiError."""
        kind = fields.get("type")
        if not isinstance(kind, str) or "." not in kind:
            raise api_error("unknown_event", f"{kind!r} is no event type: it has a dot", status=404)
        channel, sender, id = self.channel(name), fields.get("from"), fields.get("id") or new_id()
        if (before := channel.results.get((sender, id))) is not None:
            return {**before, "duplicate": True}, None
        place = self._place(channel, kind, fields)
        event = Event(
            type=kind,
            channel=name,
            id=id,
            at=int(time.time() * 1000),
            sender=sender,
            data=fields.get("data"),
            removed=fields.get("removed") is True,
            exclude=fields.get("exclude"),
            **place,
        )
        if event.offset is not None:
            channel.offset, channel.last = event.offset, id
            channel.events.append(event)
        elif event.rev is not None:
            channel.rev = event.rev
            name_of_value = (kind, event.key or "")
            channel.values.pop(name_of_value, None)
            if not event.removed:
                channel.values[name_of_value] = event
        result: Json = {"id": id, **{name: one for name, one in place.items() if name != "key"}}
        if place:
            result["epoch"] = channel.epoch
            channel.results[sender, id] = result
        self.published.append(event)
        return {**result, "duplicate": False}, event

    def _place(self, channel: Channel, kind: str, fields: Mapping[str, Any]) -> Json:
        if kind in self._ephemeral:
            return {}
        if kind not in self._latest:
            return {"offset": channel.offset + 1}
        data = fields.get("data")
        key = fields.get("key")
        if key is None and isinstance(data, dict):
            key = data.get(self._latest[kind])
        if key is None:
            raise api_error("invalid_key", f"{kind} needs its key: `{self._latest[kind]}` of the data", status=422)
        known = channel.values.get((kind, str(key)))
        rev = known.rev if known is not None else 0
        if fields.get("if_rev") is not None and fields["if_rev"] != rev:
            raise api_error("conflict", "the value has another rev", status=409, details={"rev": rev})
        return {"rev": channel.rev + 1, "key": str(key)}

    def remove_event(self, name: str, id: str, offset: int | None) -> Json:
        """Takes back a durable event. Raises ApiError."""
        channel = self.channel(name)
        for number in range(len(channel.events) - 1, -1, -1):
            event = channel.events[number]
            if event.id == id and offset in (None, event.offset):
                data = {"id": id, "offset": event.offset}
                channel.events[number] = Event(
                    type="event.removed", channel=name, id=id, at=event.at, data=data, offset=event.offset
                )
                return {"channel": name, "id": id, "epoch": channel.epoch, "offset": event.offset}
        raise not_found("the channel keeps no such event")

    def purge(self, name: str) -> Channel:
        """Drops all of a channel, and begins a new epoch."""
        before = self.channel(name)
        self._epochs += 1
        self.channels[name] = Channel(name, f"fake{self._epochs:08d}", offset=before.offset, rev=before.rev)
        return self.channels[name]


def not_found(message: str) -> ApiError:
    """The error for what is not there."""
    return api_error("not_found", message, status=404)
