"""The members of a room who get the same frames, and what is on its way to them.

A room has one audience, and a second one where some of its members may not see presence (see hub.Room). Each member belongs to
exactly one, so nothing is decided for each member, and the order between two audiences does not matter.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

import structlog

from service.core.session import Subscription
from service.protocol.close import CloseCode
from service.realtime.connections.context import RoomContext
from service.realtime.connections.frame import MAX_BATCH_BYTES, Batch, Frame
from service.realtime.connections.transport import BatchSender

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection


_log = structlog.get_logger("hub")

FEW = 10
"""Members to whom a burst is written one by one: for so few a call of the sender hardly saves what it costs (ADR 19)."""


class Broadcast:
    """A burst on its way to the members there were when it was cut."""

    __slots__ = ("batch", "gone", "is_merged", "members", "next")

    def __init__(self, batch: Batch, members: tuple[Connection, ...], *, is_merged: bool = False) -> None:
        self.batch = batch
        self.members = members
        self.is_merged = is_merged
        """Whether it holds what came in several; see Audience._merge."""
        self.next = 0
        """The member whose turn it is."""
        self.gone: set[Connection] | None = None
        """Those who have left since."""

    def leave(self, connection: Connection) -> None:
        """Writes nothing more to a member."""
        if self.gone is None:
            self.gone = set()
        self.gone.add(connection)

    def is_owed(self, connection: Connection) -> bool:
        """Whether the member has yet to get the burst."""
        return connection in self.members[self.next :] and (self.gone is None or connection not in self.gone)


class Audience:
    """Members, and the bursts that have not been written to all of them."""

    __slots__ = ("_ways", "broadcasts", "live")

    def __init__(self, ways: RoomContext) -> None:
        self._ways = ways
        self.live: dict[Connection, Subscription] = {}
        """Those who get deliveries."""
        self.broadcasts: deque[Broadcast] = deque()

    def take(self, bursts: Iterable[Batch]) -> None:
        """Starts to deliver bursts to those who are members now."""
        members = tuple(self.live)
        self.broadcasts.extend(Broadcast(batch, members) for batch in bursts)

    def remove(self, connection: Connection) -> bool:
        """Takes a member out, at once; returns whether it was one. Harmless if it was not."""
        was_live = self.live.pop(connection, None) is not None
        for under_way in self.broadcasts:
            under_way.leave(connection)
        return was_live

    def release(self, connection: Connection) -> bool:
        """Takes a member out, after it has got what is on its way to it; returns whether it was one."""
        if self.live.pop(connection, None) is None:
            return False
        owed = [under_way for under_way in self.broadcasts if under_way.is_owed(connection)]
        for under_way in owed:
            under_way.leave(connection)
        if not all(connection.deliver(under_way.batch) for under_way in owed):
            connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
        return True

    def write(self, most: int) -> int:
        """Gives the round's burst to its next members; returns to how many."""
        if len(self.broadcasts) > 1 and not self.broadcasts[0].next:
            self._merge()
        now = self.broadcasts[0]
        batch, gone = now.batch, now.gone
        end = now.next + most
        members = now.members if end >= len(now.members) and not now.next else now.members[now.next : end]
        now.next = end
        wire, bits = batch.plain, 0
        slow: list[Connection] | None = None
        rest = members
        sender = self._ways.sender
        if sender is not None and len(members) > FEW:
            rest = self._send(sender, members, batch, gone or ())
        for member in rest:
            if gone is not None and member in gone:
                continue
            try:  # costs nothing as long as nothing is raised
                if member.is_clear:
                    if member.window_bits != bits:
                        wire = batch.wire(member.window_bits)
                        bits = member.window_bits
                    member.write(wire)
                elif not member.deliver(batch):
                    slow = slow or []
                    slow.append(member)
            except Exception:
                _log.exception("a delivery failed")
                member.fail()  # it alone: it has a hole now
        if end >= len(now.members):
            self.broadcasts.popleft()
            took = self._ways.clock.monotonic() - batch.frames[0].accepted
            self._ways.metrics.delivery.publish_to_write_seconds.observe(max(0.0, took))
        if slow is not None:
            for member in slow:  # at once: it must not get the next burst, with a hole before it
                member.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")
        return len(members) or 1

    def _send(
        self, sender: BatchSender, members: tuple[Connection, ...], batch: Batch, gone: Collection[Connection]
    ) -> tuple[Connection, ...]:
        """Gives the burst to all those who have nothing waiting, at once, unless they are few; returns the others.

        Nothing else runs until every call of the sender is done, and then who got a part gets the rest before anything else can
        be written to them.
        """
        ready = [member for member in members if member.is_clear and member.fd >= 0 and member not in gone]
        if len(ready) <= FEW:  # where everybody publishes, most have an ack waiting
            return members
        windows = {member.window_bits for member in ready}
        short: list[tuple[Connection, bytes]] = []
        failed: list[Connection] = []
        for bits in windows:
            group = ready if len(windows) == 1 else [member for member in ready if member.window_bits == bits]
            try:
                wire = batch.wire(bits)
                taken = sender([member.fd for member in group], wire)
                short += [(group[index], wire[size:]) for index, size in taken]
            except Exception:
                _log.exception("a delivery failed")
                failed += group
        whole, parts = self._ways.metrics.delivery.sent_natively
        whole.inc(len(ready) - len(short) - len(failed))
        parts.inc(len(short))
        for member, part in short:
            try:
                member.complete(part)
            except Exception:
                _log.exception("a delivery failed")
                failed.append(member)
        for member in failed:
            member.fail()  # they alone: they have a hole now
        if len(ready) == len(members):
            return ()
        given = set(ready)
        return tuple(member for member in members if member not in given)

    def _merge(self) -> None:
        """Makes one round of those that have not begun and fit in one message, and small ones for who came in between.

        Every join draws a line. Were each of them a write to every member, a room with much traffic would fall further and
        further behind while thousands come back to it.
        """
        broadcasts = self.broadcasts
        frames, size, last = list[Frame](), 0, 0
        for waiting in broadcasts:
            size += len(waiting.batch.payload)
            if (
                waiting.is_merged
                or size > MAX_BATCH_BYTES
                or len(frames) + len(waiting.batch.frames) > self._ways.max_batch
            ):
                break
            frames += waiting.batch.frames
            last += 1
        if last < 2:
            return
        merged = [broadcasts.popleft() for _ in range(last)]
        first = merged[0]
        known = set(first.members).difference(first.gone or ())
        parts = [(0, tuple(member for member in first.members if member in known))]
        at = 0
        for before, after in pairwise(merged):
            at += len(before.batch.frames)
            # Whoever was in the round before and has not left is in this one too, and newcomers are at its end.
            newcomers = list(takewhile(lambda member: member not in known, reversed(after.members)))
            newcomers = [member for member in reversed(newcomers) if after.gone is None or member not in after.gone]
            if newcomers:
                known.update(newcomers)
                parts.append((at, tuple(newcomers)))
        broadcasts.extendleft(
            Broadcast(Batch(tuple(frames[start:]), self._ways.encoder), members, is_merged=True)
            for start, members in reversed(parts)
        )
