"""Frames: messages to clients, each encoded once for all its receivers."""

from __future__ import annotations

from msgspec import Raw, Struct

from service.core.broker import Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.protocol import messages


class Frame(Struct, frozen=True, eq=False, gc=False):
    """One encoded message. `delivery` is None for a reply, which belongs to one connection and is never dropped."""

    payload: bytes
    type: str
    delivery: Delivery | None = None
    key: tuple[str, str, str] | None = None
    """A newer frame with the same (channel, type, key) replaces this one in a queue."""
    offset: int | None = None
    state_version: int | None = None
    received_at: float = 0.0
    """Monotonic seconds at which this node received the event; for the latency metric."""
    epoch: str = ""
    """The stream epoch of `offset` and `state_version`."""
    keeps_order: bool = False
    """True if this frame moves to the end of a queue when it replaces another frame; else it takes that frame's place."""
    is_resync: bool = False
    """True if the subscription restarts at (epoch, offset, state_version), whatever was delivered before."""
    compress: bool | None = None
    """The contract's rule for compression; None if only the size decides."""
    is_removal: bool = False
    """True if only clients that have announced the feature `removal` get it."""


def encode_event(event: Event) -> bytes:
    """Encodes an event as subscribers get it."""
    if event.removed:
        return messages.encode(
            messages.RemovedValue(
                event.type,
                event.channel.name,
                event.id,
                event.at,
                event.sender,
                event.state_version or 0,
                event.key or "",
                True,
            )
        )
    # By position: names would take as long again.
    return messages.encode(
        messages.Event(
            event.type,
            event.channel.name,
            event.id,
            event.at,
            event.sender,
            Raw(event.data),
            event.offset,
            event.state_version,
            event.key,
            event.ttl,
            event.exclude,
        )
    )


def event_frame(event: Event, now: float, compress: bool | None = None) -> Frame:
    """Encodes an event. In a queue, a newer event with the same key replaces an older one, whatever their delivery class.

    Presence events are replaced too, but they keep their order: they have no `state_version`, so only the order shows whether a
    user joined or left last. A second join must not take the place of the first, before the leave between them.
    """
    key = None if event.key is None else (event.channel.name, event.type, event.key)
    return Frame(  # by position, as above
        encode_event(event),
        event.type,
        event.delivery if key is None else Delivery.LATEST,
        key,
        event.offset,
        event.state_version,
        now,
        event.epoch,
        key is not None and event.state_version is None,
        False,
        compress,
        event.removed,
    )


def resync_frame(channel: ChannelKey, snapshot: Snapshot, now: float, *, recovered: bool | None) -> Frame:
    """Encodes a `subscribed` that restarts live subscriptions at a snapshot, because the stream or the state did not continue.

    `recovered`: False if durable events may be missing, None in a channel without durable events.
    """
    message = messages.Subscribed(
        id=None,
        channel=channel.name,
        epoch=snapshot.position.epoch,
        offset=snapshot.position.offset,
        last=snapshot.position.id,
        recovered=recovered,
        events=[],
        state=[Raw(encode_event(event)) for event in snapshot.state],
    )
    head = snapshot.head
    return Frame(
        messages.encode(message),
        "subscribed",
        None,
        None,
        head.offset,
        head.state_version,
        now,
        epoch=head.epoch,
        is_resync=True,
        compress=False,
    )


class SnapshotFilter:
    """Passes the frames that are newer than a member's snapshot. The snapshot may be newer than the room."""

    __slots__ = ("_head",)

    def __init__(self, head: StreamHead) -> None:
        self._head = head

    @property
    def head(self) -> StreamHead:
        """The member's position: that of the snapshot, moved by each recorded frame."""
        return self._head

    def record(self, frame: Frame) -> None:
        """Moves the head to a frame that has passed."""
        epoch, offset, state_version = self._head
        self._head = StreamHead(epoch, max(offset, frame.offset or 0), max(state_version, frame.state_version or 0))

    def passes(self, frame: Frame) -> bool:
        """True if the frame is newer than the head. Call it in the order of the room's frames: a resync moves the head."""
        epoch, offset, state_version = self._head
        if frame.is_resync:
            if frame.epoch == epoch and (frame.offset or 0) <= offset and (frame.state_version or 0) <= state_version:
                return False
            self._head = StreamHead(frame.epoch, frame.offset or 0, frame.state_version or 0)
            return True
        if frame.offset is not None:
            return frame.epoch == epoch and frame.offset > offset
        if frame.state_version is not None:
            return frame.epoch == epoch and frame.state_version > state_version
        return True
