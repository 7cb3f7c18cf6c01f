"""The state of one channel of the in-memory broker: the newest event of every (type, key)."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from service.core.broker import MAX_REMOVED_VALUES
from service.core.event import Event, Publication, Retention

STATE_ENTRY_BYTES = 620
TTL_BYTES = 400
"""Bytes that a value's own TTL takes in addition, with entries of replaced values."""
SPARE_EXPIRIES = 64
"""Entries of replaced values that the list of expiries may hold beside those of all values."""

StateKey = tuple[str, str | None]
"""Type and key."""


class Value(NamedTuple):
    """A stored event. Times are monotonic, so a jump of the wall clock ends nothing."""

    accepted: float
    event: Event
    expiry: float | None
    """When it ends by its own TTL; None if only the retention ends it."""


class _Expiry(NamedTuple):
    time: float
    version: int
    key: StateKey


class _Removal(NamedTuple):
    expiry: float
    event: Event


class StoredState:
    """Values by state version, and the newest removals. It drops what the retention, or a value's own TTL, does not cover."""

    __slots__ = ("_expiries", "_removals", "_ttl", "size", "values")

    def __init__(self) -> None:
        self.values: OrderedDict[StateKey, Value] = OrderedDict()
        """The oldest first. Only this class changes it."""
        self.size = 0
        """Bytes of values and removals, estimated."""
        self._ttl = 0.0
        self._removals: deque[_Removal] | None = None
        """The oldest first; None until there is one, because an empty deque takes 600 bytes."""
        self._expiries: list[_Expiry] = []
        """A heap of the values with a TTL of their own. Also has values that were replaced, until their time."""

    def events(self, now: float) -> Sequence[Event]:
        """Returns the newest event of every (type, key), by state version. Call `expire` before."""
        return [_with_remaining_ttl(value, now) for value in self.values.values()]

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a value nor a removal."""
        return not self.values and not self._removals

    def version_of(self, type: str, key: str | None) -> int:
        """Returns the state version of a value; 0 if there is none. Call `expire` before."""
        value = self.values.get((type, key))
        return 0 if value is None else value.event.state_version or 0

    def removals(self, after: int) -> Sequence[Event]:
        """Returns the removals above a state version."""
        return [removal.event for removal in self._removals or () if (removal.event.state_version or 0) > after]

    def growth(self, publication: Publication, retention: Retention) -> int:
        """Returns by how many bytes `put` would grow the state; negative if it drops more than it adds."""
        size = value_size(publication)
        replaced = self.values.get((publication.type, publication.key))
        if replaced is not None:
            return size - value_size(replaced.event)
        if publication.removed:
            return size
        surplus = max(0, len(self.values) - retention.entries + 1)
        return size - sum(
            value_size(value.event) for _, value in zip(range(surplus), self.values.values(), strict=False)
        )

    def put(self, event: Event, retention: Retention, now: float) -> None:
        """Stores a value, and drops what the retention does not cover."""
        self._ttl = retention.ttl
        key = (event.type, event.key)
        # Removed first, so that the new value is the last one: the order is by state version.
        self._drop(key)
        expiry = None if event.ttl is None else now + event.ttl / 1000
        self.values[key] = Value(now, event, expiry)
        self.size += value_size(event)
        if expiry is not None:
            self._add_expiry(_Expiry(expiry, event.state_version or 0, key))
        while len(self.values) > retention.entries:
            self._drop(next(iter(self.values)))

    def remove(self, event: Event, retention: Retention, expiry: float) -> None:
        """Removes the value of an event's key, and keeps the event until `expiry`."""
        self._drop((event.type, event.key))
        if self._removals is None:
            self._removals = deque()
        self._removals.append(_Removal(expiry, event))
        self.size += value_size(event)
        while len(self._removals) > min(retention.entries, MAX_REMOVED_VALUES):
            self._drop_oldest_removal(self._removals)

    def expire(self, now: float) -> None:
        """Drops values that are older than the TTL of the retention, or than their own; and old removals."""
        while self.values and next(iter(self.values.values())).accepted + self._ttl <= now:
            self._drop(next(iter(self.values)))
        while self._expiries and self._expiries[0].time <= now:
            ended = heapq.heappop(self._expiries)
            value = self.values.get(ended.key)
            if value is not None and value.event.state_version == ended.version:
                self._drop(ended.key)
        while self._removals and self._removals[0].expiry <= now:
            self._drop_oldest_removal(self._removals)

    def _drop_oldest_removal(self, removals: deque[_Removal]) -> None:
        self.size -= value_size(removals.popleft().event)

    def _add_expiry(self, expiry: _Expiry) -> None:
        if len(self._expiries) > 2 * len(self.values) + SPARE_EXPIRIES:
            self._expiries = list(self._current_expiries())
            heapq.heapify(self._expiries)
        else:
            heapq.heappush(self._expiries, expiry)

    def _current_expiries(self) -> Iterator[_Expiry]:
        for key, value in self.values.items():
            if value.expiry is not None:
                yield _Expiry(value.expiry, value.event.state_version or 0, key)

    def _drop(self, key: StateKey) -> None:
        value = self.values.pop(key, None)
        if value is not None:
            self.size -= value_size(value.event)


def value_size(event: Event | Publication) -> int:
    """Returns the bytes of a value, estimated."""
    fixed = STATE_ENTRY_BYTES if event.ttl is None else STATE_ENTRY_BYTES + TTL_BYTES
    return fixed + len(event.data) + len(event.id) + len(event.key or "")


def _with_remaining_ttl(value: Value, now: float) -> Event:
    if value.expiry is None:
        return value.event
    return replace(value.event, ttl=max(1, round((value.expiry - now) * 1000)))
