"""Frames: messages to clients, each encoded once for everyone who gets it."""

from __future__ import annotations

from msgspec import Raw

from service.core.broker import Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.protocol import messages


class Frame:
    """One message, encoded. `delivery` is None for replies, which belong to one connection and are never dropped."""

    __slots__ = (
        "accepted",
        "compress",
        "delivery",
        "epoch",
        "key",
        "offset",
        "ordered",
        "payload",
        "restarts",
        "state_version",
        "type",
    )

    def __init__(
        self,
        payload: bytes,
        type: str,
        delivery: Delivery | None = None,
        key: tuple[str, str, str] | None = None,
        offset: int | None = None,
        state_version: int | None = None,
        accepted: float = 0.0,
        *,
        epoch: str = "",
        ordered: bool = False,
        restarts: bool = False,
        compress: bool | None = None,
    ) -> None:
        self.payload = payload
        self.type = type
        self.delivery = delivery
        self.key = key
        """What a newer frame replaces it by: (channel, type, key)."""
        self.ordered = ordered
        """Whether it goes to the end of the queue when it replaces another, instead of in its place."""
        self.offset = offset
        self.state_version = state_version
        self.epoch = epoch
        """The stream epoch of `offset` and `state_version`."""
        self.restarts = restarts
        """Whether it tells that the stream goes on from (epoch, offset, state_version), whatever came before."""
        self.compress = compress
        """What the contract says to compressing it; None: that its size decides."""
        self.accepted = accepted
        """Monotonic seconds at which this node got the event; for the latency metric."""


def encode_event(event: Event) -> bytes:
    """The event as subscribers see it."""
    return messages.encode(
        messages.Event(
            type=event.type,
            channel=event.channel.name,
            id=event.id,
            at=event.at,
            sender=event.sender,
            data=Raw(event.data),
            offset=event.offset,
            rev=event.state_version,
            key=event.key,
        )
    )


def event_frame(event: Event, now: float, compress: bool | None = None) -> Frame:
    """Encodes an event. One with a key is replaceable in queues, whatever its class: presence changes are, too.

    Presence changes have no `state_version`: only their order tells whether a user joined or left last. So a second join must
    not take the place of the first, before the leave between them. They are rare, as leaves are debounced.
    """
    key = None if event.key is None else (event.channel.name, event.type, event.key)
    delivery = event.delivery if key is None else Delivery.LATEST
    ordered = key is not None and event.state_version is None
    return Frame(
        encode_event(event),
        event.type,
        delivery,
        key,
        event.offset,
        event.state_version,
        now,
        epoch=event.epoch,
        ordered=ordered,
        compress=compress,
    )


def restart_frame(channel: ChannelKey, snapshot: Snapshot, now: float, *, lost: bool) -> Frame:
    """A `subscribed` in place: the subscription goes on, from a stream that could not be joined to what came before.

    `lost`: whether durable events may be missing, so that clients are told `recovered: false`.
    """
    message = messages.Subscribed(
        id=None,
        channel=channel.name,
        epoch=snapshot.position.epoch,
        offset=snapshot.position.offset,
        last=snapshot.position.id,
        recovered=False if lost else None,
        events=[],
        state=[Raw(encode_event(event)) for event in snapshot.state],
    )
    mark = snapshot.head
    return Frame(
        messages.encode(message),
        "subscribed",
        None,
        None,
        mark.offset,
        mark.state_version,
        now,
        epoch=mark.epoch,
        restarts=True,
        compress=False,
    )


class SnapshotFilter:
    """What one subscriber has been given already: the snapshot in its `subscribed`, which may be ahead of its room."""

    __slots__ = ("_mark",)

    def __init__(self, mark: StreamHead) -> None:
        self._mark = mark

    @property
    def mark(self) -> StreamHead:
        """How far the subscriber has come."""
        return self._mark

    def reach(self, frame: Frame) -> None:
        """Takes note of a frame that has passed."""
        epoch, offset, state_version = self._mark
        self._mark = StreamHead(epoch, max(offset, frame.offset or 0), max(state_version, frame.state_version or 0))

    def passes(self, frame: Frame) -> bool:
        """Whether the frame is news to the subscriber. Frames must be asked about in the order of the room."""
        epoch, offset, state_version = self._mark
        if frame.restarts:
            if frame.epoch == epoch and (frame.offset or 0) <= offset and (frame.state_version or 0) <= state_version:
                return False
            self._mark = StreamHead(frame.epoch, frame.offset or 0, frame.state_version or 0)
            return True
        if frame.offset is not None:
            return frame.epoch == epoch and frame.offset > offset
        if frame.state_version is not None:
            return frame.epoch == epoch and frame.state_version > state_version
        return True
