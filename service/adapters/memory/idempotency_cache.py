"""The idempotency window: the results of publishes that may be repeated."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from msgspec.structs import replace

from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Publication


class _PublishKey(NamedTuple):
    channel: ChannelKey
    sender: str | None
    id: str


class IdempotencyCache:
    """Remembers the result of a publish for `window` seconds. Keeps at most `max_entries`, and evicts the oldest.

    A result outlives its channel's eviction. Otherwise a retry would be stored in the stream of the new channel.
    """

    __slots__ = ("_max_entries", "_results", "_window")

    def __init__(self, window: float, max_entries: int) -> None:
        self._window = window
        self._max_entries = max_entries
        # All have the same window, so the order of insertion is the order of expiry.
        self._results: OrderedDict[_PublishKey, tuple[float, PublishResult]] = OrderedDict()

    def find(self, publication: Publication, now: float) -> PublishResult | None:
        """Returns the result of an earlier publish of the same (channel, sender, id), marked as a duplicate."""
        self.expire(now)
        found = self._results.get(_key(publication))
        return replace(found[1], duplicate=True) if found else None

    def add(self, publication: Publication, result: PublishResult, now: float) -> None:
        """Remembers the result of a publish that `find` did not know."""
        self._results[_key(publication)] = (now + self._window, result)
        if len(self._results) > self._max_entries:
            self._results.popitem(last=False)

    def expire(self, now: float) -> None:
        """Drops results that are older than the window."""
        while self._results and next(iter(self._results.values()))[0] <= now:
            self._results.popitem(last=False)

    def clear(self) -> None:
        """Drops everything."""
        self._results.clear()


def _key(publication: Publication) -> _PublishKey:
    return _PublishKey(publication.channel, publication.sender, publication.id)
