"""The live members of a room that get the same frames, and their unfinished broadcasts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from service.core.session import Subscription
from service.protocol.close import CloseCode
from service.realtime.connections.context import RoomContext
from service.realtime.connections.encoder import Batch
from service.realtime.delivery.broadcast import Broadcast

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection


class LiveMembers:
    """Writes batches to its members in order, a slice at a time.

    A room has one such group, and a second one for members that may not see presence. Every live member is in exactly one group,
    so a write checks no rights. The two groups are not ordered against each other.
    """

    __slots__ = ("_context", "broadcasts", "members")

    def __init__(self, context: RoomContext) -> None:
        self._context = context
        self.members: dict[Connection, Subscription] = {}
        self.broadcasts: list[Broadcast] = []
        """Unfinished broadcasts. Only this class changes this list and `members`. It is not a deque, because an empty deque takes
        600 bytes, and a room rarely has two broadcasts."""

    def add(self, connection: Connection, subscription: Subscription) -> None:
        """Adds a member, which gets all later batches."""
        self.members[connection] = subscription

    def remove(self, connection: Connection) -> None:
        """Removes a member, which gets no unfinished broadcast. Does nothing if it is no member."""
        self.members.pop(connection, None)
        for broadcast in self.broadcasts:
            broadcast.leave(connection)

    def flush_and_remove(self, connection: Connection) -> None:
        """Writes the unfinished broadcasts to a member, then removes it."""
        self.members.pop(connection, None)
        pending = [broadcast for broadcast in self.broadcasts if broadcast.is_pending_for(connection)]
        for broadcast in pending:
            broadcast.leave(connection)
        if not all(connection.deliver(broadcast.batch) for broadcast in pending):
            connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")

    def broadcast(self, batches: Iterable[Batch]) -> None:
        """Starts a broadcast of each batch to the current members."""
        members = tuple(self.members)
        for batch in batches:
            self.broadcasts.append(Broadcast(batch, members))

    def write(self, max_members: int) -> int:
        """Writes the first broadcast to its next members. Returns their number, but at least 1, so that a caller's loop ends."""
        broadcasts, context = self.broadcasts, self._context
        if len(broadcasts) > 1 and not broadcasts[0].next:
            Broadcast.merge(broadcasts, context)
        current = broadcasts[0]
        start = current.next
        slow = current.write(max_members, context)
        if current.next >= current.size:
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
