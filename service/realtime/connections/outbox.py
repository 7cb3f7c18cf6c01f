"""One connection's outgoing queue, and what each delivery class is owed when the peer does not keep up. No I/O."""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count

from service.core.event import Delivery
from service.core.limits import OutboxLimits
from service.realtime.connections.byte_budget import SMALL_REPLY, Account
from service.realtime.connections.frame import Frame
from service.telemetry.metrics import Metrics

EVENT_OVERHEAD = 128
"""Bytes that a queued event takes beside its payload, which it shares with other outboxes (measured: 105 to 115)."""
REPLY_OVERHEAD = 256
"""Bytes that a queued reply takes beside its payload: an entry of the queue and a frame of its own (measured: 240)."""


class Outbox:
    """Queues frames: `durable` ones and replies are never dropped, `latest` ones are replaced by key, `ephemeral` ones go first.

    The limits hold for events and for replies apart: a reply that the peer has asked for, however large, must not make it
    too slow for the next event. Replies are bounded by reading no further commands while `is_full`, and by the node's budget.
    A replaced frame keeps its place in the queue: a key that changes faster than the peer reads would otherwise wait for ever.
    (Unless it is `ordered`.)
    """

    __slots__ = (
        "_account",
        "_ephemeral",
        "_limits",
        "_metrics",
        "_queue",
        "_replies",
        "_reply_bytes",
        "_serial",
        "bytes",
    )

    def __init__(self, limits: OutboxLimits, account: Account, metrics: Metrics) -> None:
        self._limits = limits
        self._account = account
        self._metrics = metrics
        self._queue: OrderedDict[int | tuple[str, str, str], Frame] = OrderedDict()
        self._ephemeral: deque[int] = deque()
        self._serial = count()
        self._replies = 0
        self._reply_bytes = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether the peer is behind by more than the limits, or the node's budget has nothing left for its tenant; then no more
        of its commands are read."""
        return self.bytes > self._limits.bytes or len(self._queue) > self._limits.messages or not self._account.fits()

    def put(self, frame: Frame) -> bool:
        """Queues a frame. False if it does not fit and may not be dropped: the connection is too slow and must end."""
        if frame.key is not None and frame.key in self._queue:
            self._replace(frame.key, frame)
            return self._make_room(0, 0)
        if frame.delivery is None:
            if len(frame.payload) > SMALL_REPLY and not self._account.fits(len(frame.payload)):
                self._metrics.limits.limit_hits.labels(limit="outbox_node").inc()
                return False
            self._add(next(self._serial), frame)
            return True
        if not self._make_room(1, len(frame.payload)):
            if frame.delivery is Delivery.EPHEMERAL:
                self._metrics.outbox.outbox_dropped.labels(delivery=Delivery.EPHEMERAL.value).inc()
                return True
            fits = self._account.fits(len(frame.payload))
            self._metrics.limits.limit_hits.labels(limit="outbox" if fits else "outbox_node").inc()
            return False
        if frame.key is not None:
            self._add(frame.key, frame)
            return True
        serial = next(self._serial)
        if frame.delivery is Delivery.EPHEMERAL:
            self._ephemeral.append(serial)
        self._add(serial, frame)
        return True

    def take(self, most_bytes: int, most_frames: int) -> list[Frame]:
        """Removes and returns the oldest frames: at least one if there is one, else up to the bounds."""
        taken: list[Frame] = []
        size = 0
        while self._queue and len(taken) < most_frames:
            key, frame = next(iter(self._queue.items()))
            if taken and size + len(frame.payload) > most_bytes:
                break
            del self._queue[key]
            self._count(frame, -1)
            taken.append(frame)
            size += len(frame.payload)
        if not self._queue:
            self._ephemeral.clear()
        return taken

    def clear(self) -> None:
        """Forgets everything; for a connection that ends."""
        for frame in self._queue.values():
            self._count(frame, -1)
        self._queue.clear()
        self._ephemeral.clear()

    def _replace(self, key: tuple[str, str, str], frame: Frame) -> None:
        old = self._queue[key]
        self._queue[key] = frame
        if frame.ordered:
            self._queue.move_to_end(key)
        self._count(old, -1)
        self._count(frame, 1)
        self._metrics.outbox.outbox_replaced.inc()

    def _add(self, key: int | tuple[str, str, str], frame: Frame) -> None:
        self._queue[key] = frame
        self._count(frame, 1)

    def _make_room(self, messages: int, size: int) -> bool:
        while not self._fits(messages, size):
            if not self._drop_oldest_ephemeral():
                return False
        return True

    def _fits(self, messages: int, size: int) -> bool:
        return (
            self.bytes - self._reply_bytes + size <= self._limits.bytes
            and len(self._queue) - self._replies + messages <= self._limits.messages
            and self._account.fits(size)
        )

    def _drop_oldest_ephemeral(self) -> bool:
        while self._ephemeral:
            frame = self._queue.pop(self._ephemeral.popleft(), None)
            if frame is not None:  # else it has been sent since
                self._count(frame, -1)
                self._metrics.outbox.outbox_dropped.labels(delivery=Delivery.EPHEMERAL.value).inc()
                return True
        return False

    def _count(self, frame: Frame, sign: int) -> None:
        """Counts a frame that is queued (1) or that is not any more (-1)."""
        size = sign * len(frame.payload)
        self.bytes += size
        if frame.delivery is None:
            self._replies += sign
            self._reply_bytes += size
            size += sign * REPLY_OVERHEAD
        else:
            size += sign * EVENT_OVERHEAD
        self._account.add(size)
        self._metrics.outbox.outbox_messages.inc(sign)
