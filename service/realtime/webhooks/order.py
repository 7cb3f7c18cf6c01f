"""The order in which the entries of one queue are delivered. Pure: it gets records in the order of the log, and returns entries.

An event's entry is released when every intent of the same channel that stands in the log before its result has a result, too; and
then after all events of the channel with lower offsets. docs/adr/0064-webhooks.md shows why that is the order of the offsets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from service.core.epoch import start_of
from service.core.webhooks import Cursor, Entry
from service.realtime.webhooks.records import Intent, Result, WholeEntry, settled_entry

MAX_AHEAD = 500
"""Entries that may be done beyond one that is not, before the others wait for it."""

_Place = tuple[int, int]
"""The start of an epoch, and an offset or state version in it."""
_Key = tuple[str | None, bool]
"""A channel, and whether it is about latest events. Durable and latest events are counted apart, and have no common order."""


class Ready(NamedTuple):
    """An entry that may be delivered now."""

    offset: int
    """That of its intent or whole record in the queue."""
    at: int
    """When that was written, in milliseconds since the Unix epoch."""
    entry: Entry
    is_replay: bool = False


class OpenIntent(NamedTuple):
    """An intent without a result."""

    id: str
    offset: int
    at: int
    """When it was written, in milliseconds since the Unix epoch."""
    intent: Intent


class _Settled(NamedTuple):
    """An event that waits for its release."""

    place: _Place
    result_offset: int
    ready: Ready


class _Channel:
    """The events of one channel that are not released."""

    __slots__ = ("open", "settled")

    def __init__(self) -> None:
        self.open: dict[int, None] = {}
        """Offsets of intents without a result, ascending."""
        self.settled: list[_Settled] = []


class EntryOrder:
    """Orders what comes after a cursor. The cursor moves with what is done."""

    def __init__(self, tenant: str, cursor: Cursor) -> None:
        self._tenant = tenant
        self.epoch = cursor.epoch
        self.read_offset = cursor.offset
        """The offset of the last record that was added."""
        self._ahead = set(cursor.ahead)
        """Records that were done before, and are not read yet."""
        self._pending: dict[int, None] = {}
        """Offsets of intents and entries that are not done, ascending."""
        self._pending_at: dict[int, int] = {}
        self._done: dict[int, None] = {}
        """Offsets that are done, while one below is not."""
        self._open: dict[str, OpenIntent] = {}
        self._channels: dict[_Key, _Channel] = {}
        self._ready: deque[Ready] = deque()

    # --- what comes in ------------------------------------------------------------------------------------------------

    def add_intent(self, offset: int, id: str, at: int, intent: Intent) -> None:
        """Adds an intent. Its result comes later in the log."""
        self.read_offset = offset
        if not self._begin(offset, at):
            return
        self._open[id] = OpenIntent(id, offset, at, intent)
        self._channels.setdefault(_key(intent), _Channel()).open[offset] = None

    def add_whole(self, offset: int, at: int, whole: WholeEntry) -> None:
        """Adds an entry that needs no result."""
        self.read_offset = offset
        if self._begin(offset, at):
            self._ready.append(Ready(offset, at, whole.entry, whole.is_replay))

    def add_results(self, offset: int, results: Sequence[Result]) -> None:
        """Adds the results of intents. Ignores those of intents that have one, or are done."""
        self.read_offset = offset
        for result in results:
            found = self._open.pop(result.intent, None)
            if found is not None:
                self._settle(offset, found, result)

    def skip(self, offset: int) -> None:
        """Passes over a record that holds nothing, or that the store has lost."""
        self.read_offset = offset

    # --- what goes out ------------------------------------------------------------------------------------------------

    def ready(self, limit: int) -> Sequence[Ready]:
        """Returns the next entries. Empty, too, while too many are done beyond one that is not released."""
        if len(self._done) >= MAX_AHEAD:
            first = next(iter(self._pending))
            if not any(one.offset == first for one in self._ready):
                return ()
        return list(islice(self._ready, limit))

    def finish(self, count: int) -> None:
        """Marks the first `count` ready entries as done."""
        for _ in range(count):
            self._finish(self._ready.popleft().offset)

    @property
    def has_ready(self) -> bool:
        """True if `ready` may return something."""
        return bool(self._ready)

    @property
    def open_intents(self) -> Iterator[OpenIntent]:
        """The intents without a result, in the order of the log."""
        return iter(self._open.values())

    @property
    def cursor(self) -> Cursor:
        """Where the queue continues, should this be all."""
        first = next(iter(self._pending), None)
        offset = self.read_offset if first is None else first - 1
        return Cursor(self.epoch, offset, (*sorted(self._done), *sorted(self._ahead)))

    @property
    def oldest_at(self) -> int | None:
        """When the first record that is not done was written; None if all are done."""
        first = next(iter(self._pending), None)
        return None if first is None else self._pending_at[first]

    # --- the rules ----------------------------------------------------------------------------------------------------

    def _begin(self, offset: int, at: int) -> bool:
        if offset in self._ahead:
            self._ahead.discard(offset)
            if self._pending:
                self._done[offset] = None
            return False
        self._pending[offset] = None
        self._pending_at[offset] = at
        return True

    def _finish(self, offset: int) -> None:
        del self._pending[offset], self._pending_at[offset]
        first = next(iter(self._pending), None)
        if first is None:
            self._done.clear()
        elif offset > first:
            self._done[offset] = None
        else:
            self._done = {done: None for done in self._done if done > first}

    def _settle(self, offset: int, found: OpenIntent, result: Result) -> None:
        key = _key(found.intent)
        channel = self._channels[key]
        del channel.open[found.offset]
        if result.epoch or result.is_lost:
            ready = Ready(found.offset, found.at, settled_entry(found.intent, result, self._tenant))
            if result.is_lost:
                self._ready.append(ready)  # it has no place among the others
            else:
                channel.settled.append(_Settled((start_of(result.epoch), result.number), offset, ready))
        else:
            self._finish(found.offset)
        self._release(channel)
        if not channel.open and not channel.settled:
            del self._channels[key]

    def _release(self, channel: _Channel) -> None:
        if not channel.open:
            released, kept = channel.settled, []
        else:
            first_open = next(iter(channel.open))
            bound = max((one.place for one in channel.settled if one.result_offset < first_open), default=None)
            if bound is None:
                return
            released = [one for one in channel.settled if one.place <= bound]
            kept = [one for one in channel.settled if one.place > bound]
        self._ready.extend(one.ready for one in sorted(released, key=_place))
        channel.settled = kept


def _key(intent: Intent) -> _Key:
    return intent.entry.channel, intent.is_latest


def _place(settled: _Settled) -> _Place:
    return settled.place
