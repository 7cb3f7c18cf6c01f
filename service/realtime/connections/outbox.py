"""The outgoing queue of a connection whose client does not keep up. Does no I/O.

Example:
    outbox = Outbox(limits, account, metrics)
    if not outbox.put(frame):
        ...  # too slow for a durable event: close the connection
    for frame in outbox.take(max_bytes, max_frames): ...
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import count

from service.core.event import Delivery
from service.core.limits import OutboxLimits
from service.realtime.connections.byte_budget import MAX_SMALL_REPLY, Account
from service.realtime.connections.frame import Frame
from service.telemetry.metrics import Metrics

EVENT_OVERHEAD = 128
"""Bytes that a queued event takes in an outbox, without its payload, which outboxes share (measured: 105 to 115)."""
REPLY_OVERHEAD = 256
"""Bytes that a queued reply takes in an outbox, without its payload: queue entry and frame (measured: 240)."""


class Outbox:
    """Queues frames by delivery class. `durable` events and replies are never dropped. A `latest` event replaces one with the
    same key. `ephemeral` events are dropped first.

    Events and replies are limited separately, so that a large reply does not close the connection at the next event. Two things
    limit replies: no command runs while `is_full`, and the node's byte budget.

    A new value takes the place of the old one in the queue: at the end, a key that changes faster than the client reads would
    never be sent. A frame that `keeps_order` goes to the end.
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
        """True if the queue exceeds a limit, or the tenant has no capacity left. Then the client's commands wait."""
        return (
            self.bytes > self._limits.bytes
            or len(self._queue) > self._limits.messages
            or not self._account.has_capacity()
        )

    def put(self, frame: Frame) -> bool:
        """Queues a frame. False if it does not fit and may not be dropped: close the connection."""
        if frame.key is not None and frame.key in self._queue:
            self._replace(frame.key, frame)
            return self._evict_ephemeral(0, 0)
        if frame.delivery is None:
            if len(frame.payload) > MAX_SMALL_REPLY and not self._account.has_capacity(len(frame.payload)):
                self._metrics.limits.limit_hits.labels(limit="outbox_node").inc()
                return False
            self._add(next(self._serial), frame)
            return True
        if not self._evict_ephemeral(1, len(frame.payload)):
            if frame.delivery is Delivery.EPHEMERAL:
                self._metrics.outbox.outbox_dropped.labels(delivery=Delivery.EPHEMERAL.value).inc()
                return True
            has_capacity = self._account.has_capacity(len(frame.payload))
            self._metrics.limits.limit_hits.labels(limit="outbox" if has_capacity else "outbox_node").inc()
            return False
        if frame.key is not None:
            self._add(frame.key, frame)
            return True
        serial = next(self._serial)
        if frame.delivery is Delivery.EPHEMERAL:
            self._ephemeral.append(serial)
        self._add(serial, frame)
        return True

    def take(self, max_bytes: int, max_frames: int) -> list[Frame]:
        """Removes and returns the oldest frames, up to the limits. The first one may exceed `max_bytes`."""
        taken: list[Frame] = []
        size = 0
        while self._queue and len(taken) < max_frames:
            key, frame = next(iter(self._queue.items()))
            if taken and size + len(frame.payload) > max_bytes:
                break
            del self._queue[key]
            self._count(frame, -1)
            taken.append(frame)
            size += len(frame.payload)
        if not self._queue:
            self._ephemeral.clear()
        return taken

    def clear(self) -> None:
        """Drops all frames."""
        for frame in self._queue.values():
            self._count(frame, -1)
        self._queue.clear()
        self._ephemeral.clear()

    def _replace(self, key: tuple[str, str, str], frame: Frame) -> None:
        old = self._queue[key]
        self._queue[key] = frame
        if frame.keeps_order:
            self._queue.move_to_end(key)
        self._count(old, -1)
        self._count(frame, 1)
        self._metrics.outbox.outbox_replaced.inc()

    def _add(self, key: int | tuple[str, str, str], frame: Frame) -> None:
        self._queue[key] = frame
        self._count(frame, 1)

    def _evict_ephemeral(self, messages: int, size: int) -> bool:
        """Drops the oldest ephemeral events until `messages` messages of `size` bytes fit. False if they do not fit then."""
        while not self._fits(messages, size):
            if not self._drop_oldest_ephemeral():
                return False
        return True

    def _fits(self, messages: int, size: int) -> bool:
        return (
            self.bytes - self._reply_bytes + size <= self._limits.bytes
            and len(self._queue) - self._replies + messages <= self._limits.messages
            and self._account.has_capacity(size)
        )

    def _drop_oldest_ephemeral(self) -> bool:
        while self._ephemeral:
            frame = self._queue.pop(self._ephemeral.popleft(), None)
            if frame is not None:  # else `take` has removed it
                self._count(frame, -1)
                self._metrics.outbox.outbox_dropped.labels(delivery=Delivery.EPHEMERAL.value).inc()
                return True
        return False

    def _count(self, frame: Frame, sign: int) -> None:
        """Counts a frame that was queued (1) or removed (-1)."""
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
