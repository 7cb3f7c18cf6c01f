"""The live members of a room that get the same frames, and their unfinished broadcasts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from service.core.session import Subscription
from service.protocol.close import CloseCode
from service.realtime.connections.context import RoomContext
from service.realtime.connections.encoder import Batch, split_batches
from service.realtime.connections.frame import Frame
from service.realtime.delivery.broadcast import Broadcast

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection

REMOVAL = "removal"
"""The feature of clients that know removals (protocol/features.py)."""
MAX_PARTS = 16
"""Unfinished broadcasts up to which a batch is added to them: each costs a join of its frames."""


class LiveMembers:
    """Writes batches to its members in order, a slice at a time.

    A room has one such group, and a second one for members that may not see presence. Every live member is in exactly one group,
    so a write checks no rights. The two groups are not ordered against each other.
    """

    __slots__ = ("_common", "_context", "broadcasts", "members")

    def __init__(self, context: RoomContext) -> None:
        self._context = context
        self._common: tuple[Connection, ...] | None = None
        """The members of all unfinished broadcasts, in the order of the writes; each is left in at most one of them.

        None if members have changed since, or a batch was too large or compressed."""
        self.members: dict[Connection, Subscription] = {}
        self.broadcasts: list[Broadcast] = []
        """Unfinished broadcasts. Only this class changes this list and `members`. It is not a deque, because an empty deque takes
        600 bytes, and a room rarely has two broadcasts."""

    def add(self, connection: Connection, subscription: Subscription) -> None:
        """Adds a member, which gets all later batches."""
        self.members[connection] = subscription
        self._common = None

    def remove(self, connection: Connection) -> bool:
        """Removes a member, which gets no unfinished broadcast. False if it is no member."""
        if self.members.pop(connection, None) is None:
            return False
        self._common = None
        for broadcast in self.broadcasts:
            broadcast.leave(connection)
        return True

    def flush_and_remove(self, connection: Connection) -> None:
        """Writes the unfinished broadcasts to a member, then removes it."""
        self.members.pop(connection, None)
        self._common = None
        pending = [broadcast for broadcast in self.broadcasts if broadcast.is_pending_for(connection)]
        for broadcast in pending:
            broadcast.leave(connection)
        if not all(connection.deliver(broadcast.batch) for broadcast in pending):
            connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")

    @property
    def can_extend(self) -> bool:
        """True if a batch need not wait for the end of the unfinished broadcasts."""
        return self._common is not None and len(self.broadcasts) < MAX_PARTS

    def broadcast(self, batches: Sequence[Batch]) -> None:
        """Starts a broadcast of each batch to the current members.

        A member that is left in an earlier broadcast gets both batches in one write, if possible.
        """
        is_single = len(batches) == 1
        if is_single and self.broadcasts and self._common is not None and self._extend(batches[0], self._common):
            return
        members = tuple(self.members)
        self._common = members if is_single and not self.broadcasts else None
        for batch in batches:
            self.broadcasts.append(Broadcast(batch, members))

    def knows_removals(self) -> int:
        """Returns the number of members that get removals. Looks at every member."""
        return sum(REMOVAL in member.session.features for member in self.members)

    def broadcast_with_removals(self, frames: Collection[Frame], knowing: int) -> None:
        """Starts broadcasts of frames with removals. Members whose client does not know removals get only the other frames.

        `knowing`: the result of `knows_removals`.
        """
        context = self._context
        others = [frame for frame in frames if not frame.is_removal]
        if knowing in (0, len(self.members)):
            visible = frames if knowing else others
            if visible:
                self.broadcast(split_batches(visible, context.max_batch, context.encoder))
            return
        self._common = None
        groups: tuple[list[Connection], list[Connection]] = ([], [])
        for member in self.members:
            groups[REMOVAL in member.session.features].append(member)
        for visible, group in ((others, groups[False]), (frames, groups[True])):
            for batch in split_batches(visible, context.max_batch, context.encoder) if visible else ():
                # Not merged with other broadcasts: their members differ.
                self.broadcasts.append(Broadcast(batch, tuple(group), is_merged=True))

    def broadcast_except(self, frames: Collection[Frame], exclusions: Mapping[Connection, Collection[Frame]]) -> None:
        """Starts broadcasts to the current members, some of whom do not get certain frames. Each of these gets its own batches.

        The broadcasts are neither extended nor merged, because that would give a member what it must not get.
        """
        context = self._context
        self._common = None
        parts = [(frames, tuple(member for member in self.members if member not in exclusions))]
        parts += [(without(frames, excluded), (member,)) for member, excluded in exclusions.items()]
        for theirs, members in parts:
            if theirs and members:
                self.broadcasts += [
                    Broadcast(batch, members, is_merged=True)
                    for batch in split_batches(theirs, context.max_batch, context.encoder)
                ]

    def _extend(self, batch: Batch, members: tuple[Connection, ...]) -> bool:
        """Adds a batch to the unfinished broadcasts, and starts one for all other members. False if a batch would be too large.

        The broadcasts go round: the members that were written to last are the last to be written to. So an event waits for one
        write to each member, and not for the rest of one round and a second whole one.
        """
        extended: list[Broadcast] = []
        for broadcast in self.broadcasts:
            larger = broadcast.extend(batch.frames, self._context)
            if larger is None:
                return False
            extended.append(larger)
        start, end = extended[-1].end, extended[0].next
        parts = ((start, end),) if start <= end else ((start, len(members)), (0, end))
        extended += [Broadcast(batch, members, *part, is_merged=True) for part in parts if part[0] < part[1]]
        self.broadcasts[:] = extended
        return True

    def write(self, max_members: int) -> int:
        """Writes the first broadcast to its next members. Returns their number, but at least 1, so that a caller's loop ends."""
        broadcasts, context = self.broadcasts, self._context
        if len(broadcasts) > 1 and self._common is None and not broadcasts[0].next:
            Broadcast.merge(broadcasts, context)
        current = broadcasts[0]
        start = current.next
        slow = current.write(max_members, context)
        if current.batch.is_compressed:  # else each part of the members would have its own batch compressed
            self._common = None
        if current.next >= current.end:
            del broadcasts[0]
            seconds = context.clock.monotonic() - current.batch.frames[0].received_at
            context.metrics.delivery.publish_to_write_seconds.observe(max(0.0, seconds))
        if slow is not None:
            for member in slow:  # closed now, so that it does not get the next batch after a gap
                member.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
        return current.next - start or 1

    def drop_broadcasts(self) -> None:
        """Drops the unfinished broadcasts."""
        self.broadcasts.clear()


def without(frames: Collection[Frame], excluded: Collection[Frame]) -> Collection[Frame]:
    """Returns the frames but for the excluded ones."""
    return [frame for frame in frames if frame not in excluded] if excluded else frames
