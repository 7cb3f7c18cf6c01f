"""Positions in a channel's stream, and when a client can resume from one."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from service.core.event import Event


class Position(Struct, frozen=True, gc=False):
    """A place in a stream: the epoch, the offset, and the id of the event at that offset (None at offset 0).

    The id is needed after a failover to a replica that lags. New publishes there get the lost offsets again, so epoch and offset
    match, but the events differ.
    """

    epoch: str
    offset: int
    id: str | None = None


def events_after(since: Position, newest: Position, kept: Sequence[Event]) -> Sequence[Event] | None:
    """Returns the events after `since` up to `newest`, or None if there may be a gap.

    `kept` holds the newest events of the stream, oldest first, and ends at `newest`. There may be a gap in each of these cases:

    - the epoch differs, or `since` is ahead of the stream;
    - the event at `since` has another id, or is no longer kept, so that its id cannot be compared (unless `since` is `newest`);
    - events after `since` are no longer kept.
    """
    if since.epoch != newest.epoch or since.offset > newest.offset:
        return None
    if since.offset == newest.offset:
        return () if since.id == newest.id else None
    first = newest.offset - len(kept) + 1
    if since.offset == 0:
        return kept if first == 1 and since.id is None else None
    if since.offset < first:
        return None
    index = since.offset - first
    return kept[index + 1 :] if kept[index].id == since.id else None
