"""The order of one channel: each durable event once, gaps found, values kept by key. Without I/O; the time is an argument."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Union

import msgspec

from tidewire.events import Event, Position
from tidewire.results import Member, Presence

MAX_VALUES = 100_000
"""Values whose `rev` is kept; a service keeps fewer, unless its contract says otherwise."""
MAX_MEMBERS = 10_000
"""Members that are listed; a service lists fewer."""


@dataclass(frozen=True, slots=True)
class Missed:
    """Durable events may be missing here. The channel continues from this position."""

    position: Position


@dataclass(frozen=True, slots=True)
class Item:
    """What an application gets next, if anything, and the position once it has handled that."""

    content: Event | Missed | None
    position: Position | None = None


class Gap(Exception):  # noqa: N818  # not an error: the channel subscribes again
    """Events before this one have not arrived."""


@dataclass(slots=True)
class _Value:
    event: Event
    ends: float | None


_Name = tuple[str, str]
_Message = Mapping[str, Any]


def to_event(message: _Message) -> Event:
    """Reads an event. Raises msgspec.ValidationError."""
    return msgspec.convert(message, Event)


class _Subscribed(msgspec.Struct):
    epoch: str
    offset: int
    events: list[Event]
    state: list[Event]
    last: str | None = None
    recovered: bool | None = None
    tail: list[Event] = []
    presence: Presence | None = None


class ChannelStream:
    """What has been received of one channel. `position` is that of the last durable event."""

    def __init__(self, is_own: Callable[[Event], bool], since: Position | None = None) -> None:
        self._is_own = is_own
        self.position = since
        self.presence: Presence | None = None
        self._values: dict[_Name, _Value] = {}

    def start(self, message: _Message, now: float) -> list[Item]:
        """Takes `subscribed`: of a new subscription, a resumed one, or a resync."""
        one = msgspec.convert(message, _Subscribed)
        position = Position(one.epoch, one.offset, one.last)
        items: list[Item] = []
        if one.recovered is False:
            items.append(Item(Missed(position)))
        if self.position is None:
            items += [Item(event) for event in one.tail]
        known = self.position.offset if self.position is not None and self.position.epoch == one.epoch else 0
        for event in one.events:
            # Some may have arrived before the connection broke.
            if event.offset is not None and event.offset > known:
                place = Position(one.epoch, event.offset, event.id)
                items.append(Item(None if self._is_own(event) else event, place))
        items += [Item(event) for event in self._replace(one.state, now)]
        if one.presence is not None:
            self.presence = one.presence
        self.position = position
        return [*items, Item(None, position)]

    def _replace(self, state: list[Event], now: float) -> Iterator[Event]:
        before, self._values = self._values, {}
        for event in state:
            name = (event.type, event.key or "")
            known = before.pop(name, None)
            self._keep(name, event, now)
            if known is None or (known.event.rev, known.event.id) != (event.rev, event.id):
                yield event
        for name, value in before.items():
            yield _ended(value.event, name[1], expired=value.ends is not None and value.ends <= now)

    def event(self, message: _Message, now: float) -> Item | None:
        """Takes a live event; returns None if the application knows it already. Raises Gap."""
        event = to_event(message)
        is_own = self._is_own(event)
        if event.offset is not None:
            return self._durable(event, is_own)
        if event.rev is not None:
            return self._latest(event, now, is_own)
        return None if is_own else Item(event)

    def _durable(self, event: Event, is_own: bool) -> Item | None:
        if self.position is None or event.offset is None:
            return None
        if event.offset <= self.position.offset:
            return None
        if event.offset > self.position.offset + 1:
            raise Gap
        self.position = Position(self.position.epoch, event.offset, event.id)
        return Item(None if is_own else event, self.position)

    def _latest(self, event: Event, now: float, is_own: bool) -> Item | None:
        name = (event.type, event.key or "")
        known = self._values.get(name)
        if known is not None and (event.rev or 0) <= (known.event.rev or 0):
            return None
        if event.removed:
            self._values.pop(name, None)
        else:
            self._keep(name, event, now)
        return None if is_own else Item(event)

    def _keep(self, name: _Name, event: Event, now: float) -> None:
        if name in self._values or len(self._values) < MAX_VALUES:
            self._values[name] = _Value(event, None if event.ttl is None else now + event.ttl / 1000)

    def expire(self, now: float) -> list[Item]:
        """Removes the values whose time has passed."""
        ended = [(name, value) for name, value in self._values.items() if value.ends is not None and value.ends <= now]
        for name, _ in ended:
            del self._values[name]
        return [Item(_ended(value.event, name[1], expired=True)) for name, value in ended]

    @property
    def next_end(self) -> float | None:
        """When the next value ends."""
        return min((value.ends for value in self._values.values() if value.ends is not None), default=None)

    def update_presence(self, message: _Message) -> Event | None:
        """Takes a presence event; returns it, unless its type is unknown."""
        event = to_event(message)
        data = event.data if isinstance(event.data, dict) else {}
        before = self.presence or Presence(0, [])
        if event.type == "presence.count":
            self.presence = Presence(int(data["count"]))
        elif event.type in ("presence.joined", "presence.left"):
            self.presence = _changed(before, event.type == "presence.joined", data)
        else:
            return None
        return event

    def replace_presence(self, value: Any) -> None:
        """Takes the members after a change of rights; None: nobody can be seen."""
        self.presence = None if value is None else msgspec.convert(value, Presence)


def _ended(event: Event, key: str, *, expired: bool) -> Event:
    return Event(
        type=event.type,
        channel=event.channel,
        id=event.id,
        at=event.at,
        rev=event.rev,
        key=key,
        removed=True,
        expired=expired,
    )


def _changed(before: Presence, joined: bool, data: Mapping[str, Any]) -> Presence:
    user = str(data["user"])
    if before.members is None:
        return before
    others = [member for member in before.members if member.user != user]
    was_there = len(others) < len(before.members)
    if not joined:
        return Presence(max(0, before.count - was_there), others)
    member = Member(user, info=data.get("info"), updated=data.get("updated") is True)
    members = [*others, member] if len(others) < MAX_MEMBERS else others
    return Presence(before.count + (not was_there), members)


Taken = Union[Event, Missed]  # noqa: UP007  # evaluated at run time on Python 3.10
