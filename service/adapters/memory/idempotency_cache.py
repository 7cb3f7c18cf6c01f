"""The idempotency window: what became of each publication that could be repeated."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from msgspec.structs import replace

from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Publication


class _Sending(NamedTuple):
    channel: ChannelKey
    sender: str | None
    id: str


class Receipts:
    """Remembers a publication's receipt for `window` seconds, and at most `entries` of them: the oldest goes first.

    Receipts outlive their channel's eviction on purpose: a retry must not enter the stream that took its place.
    """

    __slots__ = ("_entries", "_receipts", "_window")

    def __init__(self, window: float, entries: int) -> None:
        self._window = window
        self._entries = entries
        # One window for all, so the order of insertion is the order of expiry.
        self._receipts: OrderedDict[_Sending, tuple[float, PublishResult]] = OrderedDict()

    def find(self, publication: Publication, now: float) -> PublishResult | None:
        """The receipt of an earlier publication of the same (channel, sender, id), marked as a duplicate."""
        self.expire(now)
        found = self._receipts.get(_sending(publication))
        return replace(found[1], duplicate=True) if found else None

    def add(self, publication: Publication, receipt: PublishResult, now: float) -> None:
        """Remembers what became of a publication that `find` did not know."""
        self._receipts[_sending(publication)] = (now + self._window, receipt)
        if len(self._receipts) > self._entries:
            self._receipts.popitem(last=False)

    def expire(self, now: float) -> None:
        """Forgets what is older than the window."""
        while self._receipts and next(iter(self._receipts.values()))[0] <= now:
            self._receipts.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything."""
        self._receipts.clear()


def _sending(publication: Publication) -> _Sending:
    return _Sending(publication.channel, publication.sender, publication.id)
