"""A broadcast: the writing of one batch to the members that the room had when the batch was made."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

import structlog

from service.realtime.connections.context import RoomContext
from service.realtime.connections.encoder import MAX_BATCH_BYTES, Batch
from service.realtime.connections.frame import Frame
from service.realtime.connections.transport import UNREAD_FD, BatchSender

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection


_log = structlog.get_logger("delivery")

MAX_SINGLE_WRITES = 10
"""Up to this many members are written to one by one: for so few, the batch sender saves little (ADR 19)."""


class Broadcast:
    """A batch, and the members that still have to get it."""

    __slots__ = ("_is_merged", "_left", "_members", "batch", "end", "next")

    def __init__(
        self,
        batch: Batch,
        members: tuple[Connection, ...],
        start: int = 0,
        end: int | None = None,
        *,
        is_merged: bool = False,
    ) -> None:
        """For the members from the index `start` to the index `end`, or all."""
        self.batch = batch
        self._members = members
        self._is_merged = is_merged
        """True if this broadcast must not be merged with others; `merge` has made it, or its members get other frames."""
        self.next = start
        """The index of the first member that has not been written to."""
        self.end = len(members) if end is None else end
        """The index behind the last member."""
        self._left: set[Connection] | None = None
        """Members that have left the room since the batch was made."""

    def leave(self, connection: Connection) -> None:
        """Excludes a member from further writes."""
        if self._left is None:
            self._left = set()
        self._left.add(connection)

    def is_pending_for(self, connection: Connection) -> bool:
        """True if the batch has not been written to the member yet."""
        return connection in self._members[self.next : self.end] and (
            self._left is None or connection not in self._left
        )

    def write(self, max_members: int, context: RoomContext) -> list[Connection] | None:
        """Writes the batch to the next members. Returns the members that are too slow for it; the caller must close them."""
        batch, left, start = self.batch, self._left, self.next
        members, end = self._members, min(start + max_members, self.end)
        if start or end < len(members):
            members = members[start:end]
        self.next = end
        wire, bits = batch.plain, 0
        slow: list[Connection] | None = None
        rest = members
        sender = context.batch_sender
        if sender is not None and len(members) > MAX_SINGLE_WRITES:
            rest = _send_to_ready(sender, members, batch, left or (), context)
        for member in rest:
            if left is not None and member in left:
                continue
            try:  # a try block costs nothing unless it raises
                if member.is_clear:
                    if member.window_bits != bits:
                        wire = batch.wire(member.window_bits)
                        bits = member.window_bits
                    member.writer.write(wire)
                elif not member.deliver(batch):
                    slow = slow or []
                    slow.append(member)
            except Exception:
                _log.exception("delivery_failed")
                member.fail()  # only this member has missed an event
        return slow

    def extend(self, frames: Collection[Frame], context: RoomContext) -> Broadcast | None:
        """Returns a broadcast of this batch and more frames to the members that are left. None if it would be too large."""
        every = (*self.batch.frames, *frames)
        if len(every) > context.max_batch or sum(len(frame.payload) for frame in every) > MAX_BATCH_BYTES:
            return None
        return Broadcast(Batch(every, context.encoder), self._members, self.next, self.end, is_merged=True)

    @classmethod
    def merge(cls, broadcasts: list[Broadcast], context: RoomContext) -> None:
        """Merges as many of the first broadcasts as fit into one batch. None of them may have started.

        Members that joined between two of them get a smaller batch of their own. Every join starts a new batch. Without merging,
        each batch would be a write to every member, and a busy room would fall behind while thousands reconnect.
        """
        frames, size, last = list[Frame](), 0, 0
        for waiting in broadcasts:
            size += len(waiting.batch.payload)
            if (
                waiting._is_merged
                or size > MAX_BATCH_BYTES
                or len(frames) + len(waiting.batch.frames) > context.max_batch
            ):
                break
            frames += waiting.batch.frames
            last += 1
        if last < 2:
            return
        merged = broadcasts[:last]
        first = merged[0]
        known = set(first._members).difference(first._left or ())
        parts = [(0, tuple(member for member in first._members if member in known))]
        at = 0
        for before, after in pairwise(merged):
            at += len(before.batch.frames)
            # Members of the previous broadcast are in this one too, unless they have left. New members are at its end.
            newcomers = list(takewhile(lambda member: member not in known, reversed(after._members)))
            newcomers = [member for member in reversed(newcomers) if after._left is None or member not in after._left]
            if newcomers:
                known.update(newcomers)
                parts.append((at, tuple(newcomers)))
        broadcasts[:last] = [
            cls(Batch(tuple(frames[start:]), context.encoder), members, is_merged=True) for start, members in parts
        ]


def _send_to_ready(
    sender: BatchSender,
    members: tuple[Connection, ...],
    batch: Batch,
    left: Collection[Connection],
    context: RoomContext,
) -> tuple[Connection, ...]:
    """Sends the batch to all members with an empty queue, unless they are few. Returns the members that did not get it.

    No other code runs between the sender's call and the write of the rest to members whose sockets took a part of the frame. So
    nothing can be written in the middle of a frame.
    """
    short: list[tuple[Connection, bytes]] = []
    failed: list[Connection] = []
    ready: Sequence[Connection] = members
    groups: list[tuple[int, Sequence[Connection]]] = [(0, members)]
    # Mostly every member is ready and reads plain frames. One look at each of them then does.
    fds = [member.fd for member in members if member.is_clear and not member.window_bits]
    if left or len(fds) < len(members) or min(fds) < 0:
        ready = [
            member
            for member in members
            if member.is_clear
            and (member.fd >= 0 or (member.fd == UNREAD_FD and member.read_fd() >= 0))
            and member not in left
        ]
        if len(ready) <= MAX_SINGLE_WRITES:  # if every member publishes, most have an ack queued
            return members
        windows = {member.window_bits for member in ready}
        groups = [(bits, [member for member in ready if member.window_bits == bits]) for bits in windows]
    for bits, group in groups:
        try:
            wire = batch.wire(bits)
            taken = sender(fds if group is members else [member.fd for member in group], wire)
            short += [(group[index], wire[size:]) for index, size in taken]
        except Exception:
            _log.exception("delivery_failed")
            failed += group
    whole, parts = context.metrics.delivery.sent_natively
    whole.inc(len(ready) - len(short) - len(failed))
    parts.inc(len(short))
    for member, part in short:
        try:
            member.write_rest(part)
        except Exception:
            _log.exception("delivery_failed")
            failed.append(member)
    for member in failed:
        member.fail()  # only these members have missed an event
    if len(ready) == len(members):
        return ()
    sent = set(ready)
    return tuple(member for member in members if member not in sent)
