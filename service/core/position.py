"""Positions in a channel's stream, and when one can be resumed from."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from service.core.event import Event


class Position(Struct, frozen=True, gc=False):
    """A place in a stream: the epoch, the offset, and the id of the event at that offset (None at offset 0).

    All three are needed: after a failover to a lagging replica and as many new publishes, epoch and offset match again
    while the events differ.
    """

    epoch: str
    offset: int
    id: str | None = None


def missed(since: Position, top: Position, kept: Sequence[Event]) -> Sequence[Event] | None:
    """The events after `since` up to `top`, or None if the stream cannot show that there is no hole.

    `kept` holds the stream's newest events, oldest first, ending at `top`. None if the epoch differs, `since` is ahead of
    the stream, the event at `since` has another id, or events after it are gone. An id that can no longer be compared,
    because the entry at `since` itself has been trimmed, counts as a hole unless nothing was published since (then `top`
    still knows its id).
    """
    if since.epoch != top.epoch or since.offset > top.offset:
        return None
    if since.offset == top.offset:
        return () if since.id == top.id else None
    first = top.offset - len(kept) + 1
    if since.offset == 0:
        return kept if first == 1 and since.id is None else None
    if since.offset < first:
        return None
    at = since.offset - first
    return kept[at + 1 :] if kept[at].id == since.id else None
