"""The state of one channel of the in-memory broker: the newest event of every (type, key)."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from msgspec.structs import replace

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


class StoredState:
    """Values by state version. It drops what the retention, or a value's own TTL, does not cover."""

    __slots__ = ("_expiries", "_ttl", "size", "values")

    def __init__(self) -> None:
        self.values: OrderedDict[StateKey, Value] = OrderedDict()
        """The oldest first. Only this class changes it."""
        self.size = 0
        """Bytes of the values, estimated."""
        self._ttl = 0.0
        self._expiries: list[_Expiry] = []
        """A heap of the values with a TTL of their own. Also has values that were replaced, until their time."""

    def events(self, now: float) -> Sequence[Event]:
        """Returns the newest event of every (type, key), by state version. Call `expire` before."""
        return [_with_remaining_ttl(value, now) for value in self.values.values()]

    def growth(self, publication: Publication, retention: Retention) -> int:
        """Returns by how many bytes `put` would grow the state; negative if it drops more than it adds."""
        size = value_size(publication)
        replaced = self.values.get((publication.type, publication.key))
        if replaced is not None:
            return size - value_size(replaced.event)
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

    def expire(self, now: float) -> None:
        """Drops values that are older than the TTL of the retention, or than their own."""
        while self.values and next(iter(self.values.values())).accepted + self._ttl <= now:
            self._drop(next(iter(self.values)))
        while self._expiries and self._expiries[0].time <= now:
            ended = heapq.heappop(self._expiries)
            value = self.values.get(ended.key)
            if value is not None and value.event.state_version == ended.version:
                self._drop(ended.key)

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
